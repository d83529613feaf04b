"""Losses, accumulation, checkpointing, validation and what the log says, against plain arithmetic."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from qvgen.api import quant_layers, quantize_
from qvgen.auxiliary import Phi
from qvgen.config import QuantConfig, QVGenConfig
from qvgen.phi_init import quantization_error
from qvgen.schedule import RankSchedule
from qvgen.training.loop import train_
from qvgen.training.measures import spectrum
from qvgen.training.recipe import TrainRecipe

Make = Callable[[], nn.Module]
QUANT = QuantConfig(w_bits=3, a_bits=4, learn_clip=True)
RECIPE = TrainRecipe(steps=4, batch_size=6, log_every=1)


def first_losses(make_model: Make, ctx: Any) -> tuple[float, float]:
    """Distillation and task loss of the untrained model on the first batch."""
    model, batch = quantize_(make_model(), QUANT), next(ctx.batches(6))
    with torch.no_grad():
        out = ctx.predict(model, batch).double()
        teacher = ctx.predict(make_model(), batch).double()
    return float((out - teacher).square().mean()), float((out - batch.target.double()).square().mean())


@pytest.mark.parametrize(
    ("loss", "weight", "asked"), [("distill", 1.0, 1), ("task", 1.0, 0), ("distill+task", 0.25, 1)]
)
def test_losses(
    loss: str, weight: float, asked: int, make_model: Make, make_context: Callable[..., Any]
) -> None:
    ctx = make_context(make_model())
    distilled, task = first_losses(make_model, ctx)
    recipe = dataclasses.replace(RECIPE, loss=loss, task_weight=weight)  # type: ignore[arg-type]
    train_(quantize_(make_model(), QUANT), recipe, ctx)
    expected = {"distill": distilled, "task": task, "distill+task": distilled + 0.25 * task}
    assert ctx.records[0]["loss"] == pytest.approx(expected[loss], rel=1e-5)
    assert ctx.teacher_asked == asked


def test_accumulated_passes_are_one_large_batch(make_model: Make, make_context: Callable[..., Any]) -> None:
    class Halves:
        """The same samples, three at a time."""

        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def batches(self, batch_size: int) -> Iterator[Any]:
            assert batch_size == 3
            for batch in self.inner.batches(6):
                for half in (slice(0, 3), slice(3, 6)):
                    inputs = {name: value[half] for name, value in batch.inputs.items()}
                    yield type(batch)(inputs, batch.target[half])

    models, logs = [], []
    for halves in (False, True):
        ctx = make_context(make_model())
        model = quantize_(make_model(), QUANT)
        sizes = {"batch_size": 3, "accumulate": 2} if halves else {}
        recipe = dataclasses.replace(RECIPE, steps=1, eps=1.0, **sizes)  # type: ignore[arg-type]
        train_(model, recipe, Halves(ctx) if halves else ctx)
        models.append(model)
        logs.append(ctx.records)
    assert logs[0][0]["loss"] == pytest.approx(logs[1][0]["loss"], rel=1e-5)
    assert logs[0][0]["grad_norm"] == pytest.approx(logs[1][0]["grad_norm"], rel=1e-4)
    for whole, parts in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-7)


def test_layer_norms_are_those_before_clipping(make_model: Make, make_context: Callable[..., Any]) -> None:
    ctx = make_context(make_model())
    model = quantize_(make_model(), QUANT)
    twin, batch = copy.deepcopy(model), next(ctx.batches(6))
    (ctx.predict(twin, batch) - ctx.predict(make_model(), batch).detach()).square().mean().backward()
    expected = {
        f"grad_norm/{name}": float(
            np.sqrt(sum(float(p.grad.double().square().sum()) for p in layer.parameters()))  # type: ignore[union-attr]
        )
        for name, layer in quant_layers(twin)
    }
    recipe = dataclasses.replace(RECIPE, grad_clip=1e-3, log_layers_every=2)
    train_(model, recipe, ctx)
    found = {name: value for name, value in ctx.records[0].items() if name.startswith("grad_norm/")}
    assert found == pytest.approx(expected, rel=1e-3)
    assert all(value > 1e-3 for value in found.values()), "clipping was at work"
    with_layers = ["grad_norm/first" in record for record in ctx.records]
    assert with_layers == [True, False, True, False]


def test_clips_and_spectrum_in_the_log(make_model: Make, make_context: Callable[..., Any]) -> None:
    ctx = make_context(make_model())
    config = QVGenConfig(quant=QUANT, rank=4)
    model = quantize_(make_model(), config)
    sigmas = [
        np.linalg.svd(quantization_error(layer).detach().double().numpy(), compute_uv=False)[:4]
        for _, layer in quant_layers(model)
    ]
    recipe = dataclasses.replace(RECIPE, steps=12, lr_clips=0.0, log_layers_every=12)
    train_(model, recipe, ctx, schedule=RankSchedule.of(config, 12))
    assert ctx.records[0]["clip_mean"] == pytest.approx(0.95) == ctx.records[-1]["clip_min"]
    # stages of four steps: 4 > 2 > 1 > 0
    assert [n for n, record in enumerate(ctx.records) if "phi_sigma1" in record] == [0, 4, 8]
    assert ctx.records[0]["phi_sigma1"] == pytest.approx(np.mean([s[0] for s in sigmas]), rel=1e-3)
    share = np.mean([(s * 14 < s[0]).mean() for s in sigmas])
    assert ctx.records[0]["phi_negligible"] == pytest.approx(share)
    assert ctx.records[4]["phi_negligible"] >= 0.5 and ctx.records[8]["phi_negligible"] == 0.75
    text = [float(v) for v in str(ctx.records[0]["phi_sigma/second"]).split()]
    assert text == pytest.approx(sigmas[1], rel=2e-2)  # one step of training later


def test_every_stage_of_a_line_keeps_its_spectrum(make_model: Make, make_context: Callable[..., Any]) -> None:
    config = QVGenConfig(quant=QUANT, rank=4)  # 4 > 2 > 1 > 0 in stages of two steps
    logs = []
    for every in (1, 3):
        ctx = make_context(make_model())
        recipe = dataclasses.replace(RECIPE, steps=6, log_every=every)
        train_(quantize_(make_model(), config), recipe, ctx, schedule=RankSchedule.of(config, 6))
        logs.append(ctx.records)
    each, merged = logs
    assert [record.get("phi_step") for record in each] == [0, None, 2, None, 4, None]
    assert [record["phi_step"] for record in merged] == [2, 4]
    for name in ("phi_sigma1", "phi_negligible"):
        assert merged[0][f"{name}/0"] == each[0][name]
        assert merged[0][name] == each[2][name] and merged[1][name] == each[4][name]
    assert "phi_step/0" not in merged[0] and not any("/" in name for name in merged[1])


def test_validation_is_held_out_and_needs_the_context(
    make_model: Make, make_context: Callable[..., Any]
) -> None:
    ctx = make_context(make_model())
    recipe = dataclasses.replace(RECIPE, validate_every=2)
    with pytest.raises(ValueError, match="context has no validation_batches; set it to 0"):
        train_(quantize_(make_model(), QUANT), recipe, ctx)
    other = make_context(make_model())
    other.seed = 99
    ctx.validation_batches = other.batches
    model = quantize_(make_model(), QUANT)
    train_(model, recipe, ctx)
    assert ["val_loss" in record for record in ctx.records] == [False, True, False, True]
    batch = next(other.batches(6))
    with torch.no_grad():
        by_hand = (ctx.predict(model, batch) - ctx.predict(ctx.teacher(), batch)).square().mean()
    assert ctx.records[-1]["val_loss"] == pytest.approx(float(by_hand), rel=1e-6)
    plain = make_context(make_model())
    train_(quantize_(make_model(), QUANT), RECIPE, plain)
    assert [r["loss"] for r in plain.records] == [r["loss"] for r in ctx.records], "it only looks on"


def test_gradient_checkpointing_changes_no_number() -> None:
    from tests.qvgen.test_cogvideox import CogContext, tiny

    losses, modes = [], []
    for on in (False, True):
        ctx = CogContext()
        student = quantize_(tiny(), QUANT)
        blocks: list[bool] = []
        student.register_forward_hook(lambda m, *_, seen=blocks: seen.append(m.gradient_checkpointing))
        recipe = TrainRecipe(steps=3, batch_size=2, log_every=1, gradient_checkpointing=on)
        train_(student, recipe, ctx)
        losses.append(ctx.losses)
        modes.append(blocks)
        assert not student.gradient_checkpointing, "off again afterwards"
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert modes == [[False] * 3, [True] * 3]


def test_a_model_that_cannot_checkpoint_is_told(make_model: Make, make_context: Callable[..., Any]) -> None:
    recipe = dataclasses.replace(RECIPE, gradient_checkpointing=True)
    with pytest.raises(ValueError, match="Mlp has no enable_gradient_checkpointing"):
        train_(quantize_(make_model(), QUANT), recipe, make_context(make_model()))
    with pytest.raises(ValueError, match="does not go with compile: graph"):
        TrainRecipe(gradient_checkpointing=True, compile="graph")


@pytest.mark.parametrize(
    "wrong", [{"accumulate": 0}, {"loss": "both"}, {"task_weight": -1.0}, {"save_every_s": float("inf")},
              {"log_layers_every": -1}, {"validate_every": 0.5}, {"gradient_checkpointing": "yes"}],
)  # fmt: skip
def test_recipes_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is {next(iter(wrong.values()))!r}"):
        TrainRecipe(**wrong)


def test_a_recorded_step_needs_a_gpu(
    make_model: Callable[[], nn.Module], make_context: Callable[..., Any]
) -> None:
    student = quantize_(make_model(), QuantConfig(w_bits=3, a_bits=4))
    with pytest.raises(
        ValueError, match="compile: graph needs a CUDA device, this is cpu; use off or default"
    ):
        train_(student, TrainRecipe(steps=4, compile="graph"), make_context(make_model()))


def test_validation_switches_dropout_off_and_on_again(make_context: Callable[..., Any]) -> None:
    """Its loss is the same at each look, and the training goes on with dropout."""

    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.dropout = nn.Linear(16, 8), nn.Dropout(0.5)
            self.modes: list[bool] = []

        def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            self.modes.append(self.dropout.training)
            out: torch.Tensor = self.dropout(self.linear(x))
            return out

    ctx = make_context(Dropping())
    ctx.validation_batches = ctx.batches
    student = quantize_(Dropping(), QUANT)
    recipe = dataclasses.replace(
        RECIPE, validate_every=1, lr_weights=0.0, lr_scales=0.0, lr_clips=0.0, weight_decay=0.0
    )
    train_(student, recipe, ctx)
    assert student.modes == [True, False] * 4
    batch = next(ctx.batches(6))
    with torch.no_grad():
        by_hand = (student.eval()(**batch.inputs) - ctx.teacher()(**batch.inputs)).square().mean()
    assert [record["val_loss"] for record in ctx.records] == pytest.approx([float(by_hand)] * 4, rel=1e-6)


def test_negligible_is_fourteen_times_smaller() -> None:
    """The paper's figure 4 counts values more than about 14 times below the largest."""
    values = torch.tensor([1.0, 1 / 11.9, 1 / 12.1, 1 / 13.9, 1 / 14.1, 1 / 16, 0.0, 0.5])
    phi = Phi(torch.eye(8) * values, torch.eye(8))
    found = spectrum([phi])
    assert found["phi_sigma1"] == pytest.approx(1.0)
    assert found["phi_negligible"] == 3 / 8
