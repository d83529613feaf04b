"""LSQ, Q-DM and EfficientDM in both modes: what they train, what they leave, what they survive."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from baselines.adapter import Adapter, attach_adapters_, merge_adapters_
from baselines.efficientdm import EfficientDM
from baselines.lsq import LSQ
from baselines.qdm import QDM
from baselines.rtn import RTN
from baselines.trajectory import along_trajectory
from qvgen.api import convert_, frozen_layers, quant_layers, quantize_
from qvgen.config import QuantConfig
from qvgen.method import TrainedMethod
from qvgen.training.context import Extras
from qvgen.training.optim import parameter_groups
from qvgen.training.recipe import TrainRecipe

RECIPE = TrainRecipe(steps=4, batch_size=4)
METHODS: list[TrainedMethod] = [
    cls(w_bits=4, a_bits=4, mode=mode, recipe=RECIPE, **options)
    for cls, options in ((LSQ, {}), (QDM, {"buckets": 5}), (EfficientDM, {"buckets": 5, "rank": 4}))
    for mode in ("fair", "author")
]
IDS = [f"{method.name}-{getattr(method, 'mode', '')}" for method in METHODS]

Make = Callable[[], Any]


def distance(model: nn.Module, ctx: Any) -> float:
    """Relative squared distance to the teacher on held-out samples."""
    batch = next(ctx.batches(256))
    with torch.no_grad():
        wanted = ctx.predict(ctx._teacher, batch)
        return float((ctx.predict(model, batch) - wanted).square().mean() / wanted.square().mean())


@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_saved_and_loaded_is_the_same_function(
    method: TrainedMethod, make_block: Make, make_context: Any, tmp_path: Path
) -> None:
    ctx = make_context(make_block())
    live = method.apply(make_block(), ctx)
    method.save(live, tmp_path)
    loaded = method.load(make_block(), tmp_path)
    batch = next(ctx.batches(6))
    assert torch.equal(ctx.predict(loaded, batch), ctx.predict(live, batch))
    assert not any(p.requires_grad for p in live.parameters()) and not live.training
    assert len(dict(frozen_layers(live))) == 5


@pytest.mark.parametrize("method", METHODS, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_rows_and_dtypes_survive(
    method: TrainedMethod, dtype: torch.dtype, make_block: Make, make_context: Any
) -> None:
    model = make_block()
    with torch.no_grad():
        model.up.weight[3] = 0
        model.attn1.to_k.weight.zero_()
        model.down.weight[:, 5] = 0
    model.to(dtype)
    result = method.apply(model, make_context(copy.deepcopy(model)))
    out = make_context(result).predict(result, next(make_context(result).batches(3)))
    assert out.dtype == dtype and torch.isfinite(out).all()
    assert torch.count_nonzero(result.up.weight[3]) == 0 or method.name == "efficientdm"


@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_constant_inputs_survive(method: TrainedMethod, make_block: Make, make_context: Any) -> None:
    class Constant(type(make_context(make_block()))):  # type: ignore[misc]
        def batches(self, batch_size: int) -> Iterator[Any]:
            for batch in super().batches(batch_size):
                batch.inputs["x"].zero_()
                batch.inputs["timestep"].zero_()
                yield batch

    ctx = Constant(make_block())
    result = method.apply(make_block(), ctx)
    assert torch.isfinite(ctx.predict(result, next(ctx.batches(2)))).all()
    assert all(math.isfinite(record["loss"]) for record in ctx.records)


@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_eight_bits_lose_next_to_nothing_and_training_helps_at_three(
    method: TrainedMethod, make_block: Make, make_context: Any
) -> None:
    ctx = make_context(make_block())
    recipe = {"steps": 1, "batch_size": 4, "lr_scales": 0.0, "lr_clips": 0.0}
    untouched = {"kd": True} if method.name == "lsq" else {}
    plain = dataclasses.replace(method, w_bits=8, a_bits=8, recipe=recipe, **untouched)
    wide = distance(plain.apply(make_block(), ctx), ctx)
    config = method.quant_config()
    # The LSQ paper's start is coarse where bits are many: 127 levels span 22 times the mean.
    clipped = 5e-3 if config.a_range == "static" or config.learn_clip else 5e-4
    assert wide < (1e-2 if config.range_init == "lsq" else clipped)
    recipe = {"steps": 80, "batch_size": 16, "lr_scales": 2e-3}
    if method.name != "efficientdm":
        recipe["lr_weights"] = 2e-3
    short = dataclasses.replace(method, w_bits=3, a_bits=3, recipe=recipe | {"steps": 1}, **untouched)
    long = dataclasses.replace(method, w_bits=3, a_bits=3, recipe=recipe, **untouched)
    start, end = (distance(m.apply(make_block(), ctx), ctx) for m in (short, long))
    assert end < 0.95 * start


def test_modes_have_their_granularity() -> None:
    fair, author = (
        LSQ(w_bits=3, a_bits=4).quant_config(),
        LSQ(w_bits=3, a_bits=4, mode="author").quant_config(),
    )
    assert fair == QuantConfig(w_bits=3, a_bits=4, zero_point="fixed")
    assert (author.w_granularity, author.a_range, author.w_symmetric) == ("tensor", "static", True)
    for cls in (QDM, EfficientDM):
        fair = cls(w_bits=3, a_bits=4).quant_config()
        assert (fair.w_granularity, fair.a_granularity, fair.a_range) == ("channel", "token", "dynamic")
        assert fair.learn_clip and fair.buckets == 50
        author = cls(w_bits=3, a_bits=4, mode="author").quant_config()
        assert (author.a_granularity, author.a_range, author.buckets) == ("tensor", "static", 50)


def test_lsq_author_has_one_step_a_matrix_of_the_papers_size(make_block: Make, make_context: Any) -> None:
    method = LSQ(w_bits=3, a_bits=3, mode="author", recipe={"steps": 1, "lr_scales": 0.0, "lr_clips": 0.0})
    ctx = make_context(make_block())
    weight = make_block().up.weight.detach()
    layer = method.apply(make_block(), ctx).up
    assert layer.scale.shape == (1, 1) and layer.a_scale.shape == (1,)
    assert layer.scale.item() == pytest.approx(2 * weight.abs().mean().item() / math.sqrt(3), rel=1e-5)
    assert not ctx.teacher_asked


def test_static_steps_are_learnt_and_follow_the_timestep(make_block: Make, make_context: Any) -> None:
    ctx = make_context(make_block())
    still = {"steps": 1, "lr_clips": 0.0}
    first = QDM(w_bits=4, a_bits=4, mode="author", buckets=5, recipe=still).apply(make_block(), ctx)
    # The toy's inputs grow by 0.5 + 2 t, so the step of attention's inputs must grow alike.
    ratio = first.attn1.to_q.a_scale[-1] / first.attn1.to_q.a_scale[0]
    assert 2.5 < ratio < 4.0
    # Behind the norm nothing is normalised: one step for all timesteps.
    assert first.up.a_scale.unique().numel() == 1
    later = QDM(w_bits=4, a_bits=4, mode="author", buckets=5, recipe={"steps": 10}).apply(make_block(), ctx)
    assert not torch.equal(later.up.a_scale, first.up.a_scale)
    with pytest.raises(ValueError, match="set taq_layers=all"):
        QDM(w_bits=4, a_bits=4, mode="author").timestep_aware(["up", "down"])
    assert QDM(w_bits=4, a_bits=4, taq_layers="all").timestep_aware(["up"]) == {"up"}


def test_timestep_awareness_helps_where_inputs_move(make_block: Make, make_context: Any) -> None:
    ctx = make_context(make_block())
    found = [
        distance(
            QDM(w_bits=8, a_bits=3, mode="author", buckets=b, recipe={"steps": 1}).apply(make_block(), ctx),
            ctx,
        )
        for b in (1, 20)
    ]
    assert found[1] < found[0]


def quantized(make_block: Make) -> nn.Module:
    config = QuantConfig(w_bits=4, a_bits=8, zero_point="fixed")
    model = quantize_(make_block(), config)
    attach_adapters_(model, 4, 0, scale_aware=True)
    return model


def test_merged_equals_unmerged(make_block: Make, make_context: Any) -> None:
    model = quantized(make_block)
    for part in model.modules():
        if isinstance(part, Adapter):  # as if trained
            nn.init.normal_(part.B, std=5.0, generator=torch.Generator().manual_seed(1))
    ctx = make_context(make_block())
    batch = next(ctx.batches(5))
    with torch.no_grad():
        adapted = ctx.predict(model, batch)
        by_hand = {}
        for name, layer in quant_layers(model):
            adapter = layer.parametrizations.weight[0]
            low_rank = adapter.unit**2 * (adapter.B.double() @ adapter.A.double())
            by_hand[name] = (layer.parametrizations.weight.original.double() + low_rank).float()
        converted = convert_(copy.deepcopy(model))
        merge_adapters_(model)
        merged = ctx.predict(model, batch)
    assert torch.equal(merged, adapted)
    assert not any(isinstance(part, Adapter) for part in model.modules())
    for name, layer in quant_layers(model):
        torch.testing.assert_close(layer.weight, by_hand[name], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ctx.predict(converted, batch), adapted, atol=1e-5, rtol=1e-5)
    assert not any("parametrizations" in name for name in converted.state_dict())


def test_the_adapter_starts_as_nothing_and_alone_is_trained(make_block: Make) -> None:
    model = quantized(make_block)
    plain = make_block()
    assert torch.equal(model.up.weight, plain.up.weight)
    groups = parameter_groups(model)
    assert sorted(groups) == ["scales", "weights"]
    adapters = {id(p) for part in model.modules() if isinstance(part, Adapter) for p in part.parameters()}
    assert {id(p) for p in groups["weights"]} == adapters
    assert not model.norm.weight.requires_grad and not model.up.bias.requires_grad


@pytest.mark.parametrize("size", [1.0, 1e-9])
def test_scale_aware_rate_is_a_rate_for_each_layer(size: float) -> None:
    """AdamW on A / unit and B / unit at eta is AdamW on A and B at eta * unit, its epsilon included."""
    unit, eta, shape = 0.037, 0.01, (6, 5)
    adapter = Adapter(shape, 2, unit, torch.Generator().manual_seed(0), torch.device("cpu")).double()
    a = nn.Parameter((adapter.A * adapter.unit).detach().clone())
    b = nn.Parameter(torch.zeros(6, 2, dtype=torch.float64))
    ours = torch.optim.AdamW(adapter.parameters(), lr=eta, eps=1e-8, weight_decay=0.0)
    theirs = torch.optim.AdamW([a, b], lr=eta * float(adapter.unit), eps=1e-8, weight_decay=0.0)
    weight, target = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for _ in range(5):
        for optimizer, product in ((ours, lambda: adapter(weight)), (theirs, lambda: weight + b @ a)):
            optimizer.zero_grad()
            (size * (product() - target).square().sum()).backward()
            optimizer.step()
        # What the clipping of the global norm sees is the same too.
        for stored, plain in ((adapter.A, a), (adapter.B, b)):
            torch.testing.assert_close(stored.grad, plain.grad, atol=0.0, rtol=1e-7)
    torch.testing.assert_close(adapter(weight), weight + b @ a, atol=1e-9, rtol=1e-7)
    assert not torch.equal(b, torch.zeros_like(b))


def test_the_adapter_is_multiplied_out_in_float32_under_autocast() -> None:
    """As ``convert_`` does after training, or another weight would be stored than the trained one."""
    adapter = Adapter((6, 5), 2, 0.5, torch.Generator().manual_seed(0), torch.device("cpu"))
    nn.init.normal_(adapter.B, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(6, 5, generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = adapter(weight)
    assert inside.dtype == torch.float32
    by_hand = weight.double() + 0.25 * adapter.B.double() @ adapter.A.double()
    torch.testing.assert_close(inside.double(), by_hand, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_adapter_is_multiplied_out_once_a_pass(precision: str) -> None:
    """A look at the weight's dtype would compute it as well."""
    model = quantize_(
        nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 4)), QuantConfig(w_bits=4, a_bits=4)
    )
    attach_adapters_(model, 2, 0, scale_aware=True)
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    for module in model.modules():
        if isinstance(module, Adapter):
            module.register_forward_hook(count)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        out = model(torch.randn(3, 6))
    assert calls == 2
    out.float().sum().backward()
    assert calls == 2


def test_weights_norms_and_biases_stay_frozen(make_block: Make, make_context: Any) -> None:
    method = EfficientDM(w_bits=4, a_bits=4, buckets=5, recipe={"steps": 6})
    result, plain = method.apply(make_block(), make_context(make_block())), make_block()
    assert torch.equal(result.up.bias, plain.up.bias) and torch.equal(result.norm.weight, plain.norm.weight)
    rounded = RTN(w_bits=4, a_bits=4).apply(make_block(), make_context(make_block()))
    assert not torch.equal(result.up.codes, rounded.up.codes)


def test_author_mode_trains_on_the_trajectory_where_there_is_one(make_block: Make, make_context: Any) -> None:
    class Sampling(type(make_context(make_block()))):  # type: ignore[misc]
        asked = 0

        def trajectories(self, batch_size: int) -> Iterator[Any]:
            self.asked += 1
            return super().batches(batch_size)

        def batches(self, batch_size: int) -> Iterator[Any]:
            raise AssertionError("data asked for")

    ctx = Sampling(make_block())
    method = EfficientDM(w_bits=4, a_bits=4, mode="author", buckets=5, recipe={"steps": 2})
    method.apply(make_block(), ctx)
    assert ctx.asked == 2 and ctx.teacher_asked  # first steps, then training
    without = make_context(make_block())
    method.apply(make_block(), without)
    assert without.drawn > 0
    with pytest.raises(AssertionError, match="data asked for"):
        dataclasses.replace(method, data="clips").apply(make_block(), Sampling(make_block()))


def test_a_trajectory_keeps_the_other_members_of_the_context(make_block: Make, make_context: Any) -> None:
    """As ``Extras`` lists them: a recipe that samples videos is no error in author mode."""

    class Sampling(type(make_context(make_block()))):  # type: ignore[misc]
        seen: list[int]

        def trajectories(self, batch_size: int) -> Iterator[Any]:
            return super().batches(batch_size)

        def validation_batches(self, batch_size: int) -> Iterator[Any]:
            return super().batches(batch_size)

        def sample_videos(self, transformer: nn.Module, step: int) -> None:
            self.seen.append(step)

    ctx = Sampling(make_block())
    ctx.seen = []
    recipe = {"steps": 4, "batch_size": 4, "sample_every": 2, "validate_every": 4, "log_every": 4}
    EfficientDM(w_bits=4, a_bits=4, mode="author", recipe=recipe).apply(make_block(), ctx)
    assert ctx.seen == [2, 4] and "val_loss" in ctx.records[0]
    assert set(Extras.__slots__) <= set(vars(along_trajectory(ctx)))


@pytest.mark.parametrize("cls", [LSQ, QDM, EfficientDM])
def test_a_checkpoint_of_the_other_mode_is_refused(
    cls: type[TrainedMethod], make_block: Make, make_context: Any, tmp_path: Path
) -> None:
    fair, author = (cls(w_bits=4, a_bits=4, mode=m, recipe={"steps": 1}) for m in ("fair", "author"))  # type: ignore[call-arg]
    for made, other, kind in ((fair, author, "dynamic"), (author, fair, "static")):
        folder = tmp_path / kind
        folder.mkdir()
        made.save(made.apply(make_block(), make_context(make_block())), folder)
        made.load(make_block(), folder)
        with pytest.raises(ValueError, match=f"has a_range '{kind}'"):
            other.load(make_block(), folder)


def test_a_killed_author_training_resumes_to_the_same_codes(
    make_block: Make, make_context: Any, tmp_path: Path
) -> None:
    class Killed(type(make_context(make_block()))):  # type: ignore[misc]
        state_folder = tmp_path
        stop = 5

        def track(self, steps: range, what: str) -> Iterator[int]:
            for step in steps:
                if step == self.stop:
                    raise KeyboardInterrupt
                yield step

    method = EfficientDM(
        w_bits=4, a_bits=4, mode="author", buckets=3, recipe={"steps": 8, "save_every": 3, "batch_size": 4}
    )
    whole = method.apply(make_block(), make_context(make_block())).state_dict()
    ctx = Killed(make_block())
    with pytest.raises(KeyboardInterrupt):
        method.apply(make_block(), ctx)
    ctx.stop = -1
    resumed = method.apply(make_block(), ctx).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LSQ(w_bits=3, a_bits=3, mode="paper"), "mode is 'paper'; allowed: 'fair', 'author'"),  # type: ignore[arg-type]
        (lambda: QDM(w_bits=3, a_bits=3, mode="x"), "mode is 'x'"),  # type: ignore[arg-type]
        (lambda: QDM(w_bits=3, a_bits=3, buckets=0), "buckets is 0"),
        (lambda: QDM(w_bits=3, a_bits=3, taq_layers="attn"), "taq_layers is 'attn'"),  # type: ignore[arg-type]
        (lambda: EfficientDM(w_bits=3, a_bits=3, rank=0), "rank is 0"),
        (lambda: EfficientDM(w_bits=3, a_bits=3, data="none"), "data is 'none'"),  # type: ignore[arg-type]
        (lambda: EfficientDM(w_bits=3, a_bits=3, lr_adapter=2.0), "lr_adapter is 2.0"),
        (
            lambda: EfficientDM(w_bits=3, a_bits=3, recipe={"lr_weights": 1e-3}),  # type: ignore[arg-type]
            "set lr_adapter instead",
        ),
    ],
)
def test_bad_options(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
