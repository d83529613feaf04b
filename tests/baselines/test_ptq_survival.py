"""Every post-training method on layers and models that could break it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel, WanTransformer3DModel
from torch import Tensor, nn

from baselines.gptq import GPTQ
from baselines.layerwise import chosen_layers
from baselines.rtn import RTN, RTNStatic
from baselines.svdquant import SVDQuant
from baselines.viditq import ViDiTQ
from evalharness.cost import count_cost, count_macs
from qvgen.linear import FrozenQuantLinear
from qvgen.method import QuantMethod
from tests.baselines.ptq import LAYERS, Context, distance, inputs, make_block, sample
from tests.finished import finished_layers

Make = Callable[..., QuantMethod]


def made(cls: Any, **options: Any) -> Make:
    return lambda w_bits=8, a_bits=8: cls(w_bits=w_bits, a_bits=a_bits, prompts=1, **options)


METHODS: dict[str, Make] = {
    "static": made(RTNStatic),
    "gptq": made(GPTQ),
    "svdquant": made(SVDQuant, rank=4, grid=4),
    "svdquant-author": made(SVDQuant, rank=4, grid=4, mode="author", solver="gptq"),
    "viditq": made(ViDiTQ),
    "viditq-gptq": made(ViDiTQ, solver="gptq"),
    "viditq-author": made(ViDiTQ, mode="author"),
}
every_method = pytest.mark.parametrize("name", METHODS)


@every_method
def test_zero_rows_zero_columns_and_dead_inputs(name: str) -> None:
    """At 8 bits the output must stay: nothing is divided by a zero."""
    model = make_block()
    with torch.no_grad():
        for layer in (model.to_q, model.to_out, model.down):
            layer.weight[3] = 0
            layer.weight[:, 5] = 0
        model.up.weight.zero_()
        model.to_v.weight[7] = 0
        model.to_v.bias[7] = 0  # the channel of to_out's input that is always zero

    def one_dead(module: nn.Module, number: int) -> None:
        x = inputs(number)
        x[..., 9] = 0
        module(x)

    reference = copy.deepcopy(model)
    done = METHODS[name]().apply(model, Context(copy.deepcopy(model), one_dead))
    assert all(torch.isfinite(t).all() for t in done.state_dict().values() if t.is_floating_point())
    if name != "static":  # a fixed range is too narrow for other inputs
        assert distance(done, reference) < 1e-3


@every_method
def test_constant_inputs(name: str) -> None:
    def constant(module: nn.Module, number: int) -> None:
        module(torch.full((1, 6, 24), 0.5))

    model = make_block()
    reference = copy.deepcopy(model)
    done = METHODS[name]().apply(model, Context(copy.deepcopy(model), constant))
    x = torch.full((1, 6, 24), 0.5)
    with torch.no_grad():
        wanted = reference(x)
        assert float((done(x) - wanted).abs().max()) < 0.02 * float(wanted.abs().max())
        assert torch.isfinite(done(inputs(1))).all()


class Twice(nn.Module):
    """One linear under two names, in two parents, around another one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.ModuleDict(), nn.ModuleDict()
        self.first["shared"] = self.second["shared"] = nn.Linear(24, 24)
        self.middle = nn.Linear(24, 24)

    def forward(self, x: Tensor, timestep: Tensor | None = None) -> Tensor:
        out: Tensor = self.second["shared"](torch.tanh(self.middle(self.first["shared"](x))))
        return out


@every_method
def test_a_linear_in_two_places_is_quantized_in_both_and_counted_once(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = Twice()
    reference = copy.deepcopy(model)
    done = METHODS[name]().apply(model, Context(copy.deepcopy(model), sample))
    assert done.first["shared"] is done.second["shared"]  # type: ignore[index]
    assert [n for n, _ in finished_layers(done)] == ["first.shared", "middle"]
    assert not [n for n, m in done.named_modules() if type(m) is nn.Linear]
    assert distance(done, reference) < (0.05 if name == "static" else 1e-3)
    assert count_cost(done).linear_weights == 2 * 24 * 24
    low = {bits: n for bits, n in count_macs(done, lambda: done(inputs(0))).linear.items() if bits == (8, 8)}
    assert low == {(8, 8): 3 * 80 * 24 * 24}


def test_what_authors_spare_is_spared_under_any_of_its_names() -> None:
    model = Twice()
    assert chosen_layers(model, (), r"^second\.") == ("middle",)
    assert chosen_layers(model, (), r"^nothing") == ("first.shared", "middle")
    with pytest.raises(ValueError, match="spares every linear"):
        chosen_layers(model, (), r"shared|middle")


@every_method
def test_nan_in_calibration_names_the_layer(name: str) -> None:
    def broken(module: nn.Module, number: int) -> None:
        x = inputs(0)
        x[0, 0, 0] = float("nan")
        module(x)

    model = make_block()
    with pytest.raises(ValueError, match="input of layer to_q holds NaN"):
        METHODS[name]().apply(model, Context(copy.deepcopy(model), broken))


@every_method
def test_nan_in_a_weight_names_the_layer(name: str) -> None:
    model = make_block()
    context = Context(copy.deepcopy(model), sample)
    model.to_out.weight.data[2, 2] = float("nan")
    with pytest.raises(ValueError, match="layer to_out: a weight to quantize holds NaN"):
        METHODS[name]().apply(model, context)


@every_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_eight_bits_change_next_to_nothing(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = make_block().to(dtype)
    reference = copy.deepcopy(model)
    method = METHODS[name]()
    done = method.apply(model, Context(copy.deepcopy(model), sample))
    limit = 0.02 if name == "static" else 1e-3
    assert distance(done, reference) < (limit if dtype == torch.float32 else limit + 1e-3)
    method.save(done, tmp_path)
    loaded = method.load(make_block().to(dtype), tmp_path)
    x = inputs(8).to(dtype)
    assert done(x).dtype == dtype and torch.equal(done(x), loaded(x))


@every_method
def test_skipped_layers_stay_and_runs_repeat(name: str) -> None:
    def run() -> nn.Module:
        model = make_block()
        return METHODS[name](w_bits=3).apply(model, Context(copy.deepcopy(model), sample, ("to_q", "down")))

    done, again = run(), run()
    assert [n for n, _ in finished_layers(done)] == [n for n in LAYERS if n not in ("to_q", "down")]
    assert type(done.get_submodule("to_q")) is nn.Linear
    state, repeated = done.state_dict(), again.state_dict()
    assert all(torch.equal(state[key], repeated[key]) for key in state)


def test_a_context_without_calibration_is_told() -> None:
    class Bare:
        seed, device, skip_layers = 0, torch.device("cpu"), ()

    with pytest.raises(ValueError, match="gptq needs calibration data"):
        METHODS["gptq"]().apply(make_block(), Bare())  # type: ignore[arg-type]


def test_static_ranges_are_the_extremes_of_calibration() -> None:
    model = make_block()
    context = Context(copy.deepcopy(model), sample)
    done = METHODS["static"](a_bits=4).apply(model, context)
    x = torch.cat([inputs(0), inputs(1)])
    layer = done.get_submodule("to_q")
    assert isinstance(layer, FrozenQuantLinear)
    low, high = float(x.min()), float(x.max())
    assert float(layer.a_scale) == pytest.approx((high - low) / 15, rel=1e-6)
    assert float(layer.a_zero_point) == round(-low / (high - low) * 15)
    reference = make_block()
    plain = RTN(w_bits=8, a_bits=4, range="minmax").apply(make_block(), context)
    assert distance(done, reference) > 1.5 * distance(plain, reference), "the worst case is worse"


def test_rtn_options_are_checked_and_its_plain_form_asks_for_nothing() -> None:
    for wrong in ({"solver": "x"}, {"activations": "x"}, {"prompts": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            RTN(w_bits=4, a_bits=4, **wrong)  # type: ignore[arg-type]
    context = Context(make_block(), sample)
    RTN(w_bits=4, a_bits=4).apply(make_block(), context)
    assert context.needs == []
    same = [
        method.apply(make_block(), context).state_dict()
        for method in (RTN(w_bits=3, a_bits=4, solver="gptq"), GPTQ(w_bits=3, a_bits=4))
    ]
    assert all(torch.equal(same[0][key], same[1][key]) for key in same[0])


def cogvideox() -> tuple[nn.Module, dict[str, Tensor]]:
    model = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8,
        text_embed_dim=16, num_layers=1, sample_width=4, sample_height=4, sample_frames=5, patch_size=2,
        temporal_compression_ratio=4, max_text_seq_length=6,
    )  # fmt: skip
    g = torch.Generator().manual_seed(0)
    return model, {
        "hidden_states": torch.randn(2, 2, 4, 4, 4, generator=g),
        "encoder_hidden_states": torch.randn(2, 6, 16, generator=g),
    }


def wan() -> tuple[nn.Module, dict[str, Tensor]]:
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
        text_dim=16, freq_dim=16, ffn_dim=48, num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip
    g = torch.Generator().manual_seed(0)
    return model, {
        "hidden_states": torch.randn(1, 4, 2, 4, 4, generator=g),
        "encoder_hidden_states": torch.randn(1, 6, 16, generator=g),
    }


@every_method
@pytest.mark.parametrize("family", [cogvideox, wan])
def test_real_families(family: Callable[[], tuple[nn.Module, dict[str, Tensor]]], name: str) -> None:
    """Transformers of diffusers, tiny, random: every linear, also the embedders, at 8 bits."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model, batch = family()
    model.eval()

    def run(module: nn.Module, step: int) -> Tensor:
        out: Tensor = module(**batch, timestep=torch.tensor([step] * len(batch["hidden_states"])))[0]
        return out

    def sampler(module: nn.Module, number: int) -> None:
        for step in (950, 500, 50):
            run(module, step)

    with torch.no_grad():
        wanted = run(model, 500)
        method = METHODS[name]()
        done = method.apply(copy.deepcopy(model), Context(model, sampler))
        error = float((run(done, 500) - wanted).square().sum() / wanted.square().sum())
    assert error < 0.01
    linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    quantized = [n for n, _ in finished_layers(done)]
    assert quantized == linears or (name.endswith("author") and 4 <= len(quantized) < len(linears))
