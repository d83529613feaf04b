"""The loop: it learns, it logs, Phi ends as nothing, and divergence is reported."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from qvgen.api import phis, quantize_
from qvgen.auxiliary import Phi
from qvgen.config import QuantConfig, QVGenConfig
from qvgen.method import QVGen
from qvgen.schedule import RankSchedule
from qvgen.training.decay import RankDecay
from qvgen.training.loop import train_
from qvgen.training.optim import build_optimizer, parameter_groups
from qvgen.training.recipe import TrainRecipe

CONFIG = QVGenConfig(quant=QuantConfig(w_bits=3, a_bits=4, learn_clip=True), rank=8)
RECIPE = TrainRecipe(steps=160, batch_size=16, lr_weights=2e-3, lr_scales=2e-3, lr_phi=2e-3, log_every=20)


def distance(model: nn.Module, ctx: Any) -> float:
    batch = next(ctx.batches(64))
    with torch.no_grad():
        return float((ctx.predict(model, batch) - ctx.predict(ctx.teacher(), batch)).square().mean())


def test_groups_hold_every_parameter_once(make_model: Callable[[], nn.Module]) -> None:
    model = quantize_(make_model(), CONFIG)
    groups = parameter_groups(model)
    names = {id(p): n for n, p in model.named_parameters()}
    found = {group: sorted(names[id(p)] for p in members) for group, members in groups.items()}
    assert sorted(itertools.chain.from_iterable(found.values())) == sorted(names.values())
    assert found["phi"] == ["first.phi.L", "first.phi.R", "second.phi.L", "second.phi.R"]
    assert {n.rsplit(".", 1)[1] for n in found["scales"]} == {"log_scale", "zero_point"}
    assert {n.rsplit(".", 1)[1] for n in found["clips"]} == {"upper", "lower"}
    assert found["weights"] == [
        "first.bias", "first.weight", "norm.bias", "norm.weight", "second.weight", "table",
    ]  # fmt: skip


def test_distillation_brings_the_student_to_the_teacher(
    make_model: Callable[[], nn.Module], make_context: Callable[..., Any]
) -> None:
    ctx = make_context(make_model())
    untrained = distance(quantize_(make_model(), CONFIG.quant), ctx)
    method = QVGen(w_bits=3, a_bits=4, rank=8, recipe=RECIPE)
    model = method.apply(make_model(), ctx)
    assert distance(model, ctx) < 0.8 * untrained
    assert not any(isinstance(m, Phi) for m in model.modules()) and not model.training
    assert [r["step"] for r in ctx.records] == list(range(20, 161, 20))
    # four stages 8>4>2>1>0 of 40 steps each
    assert [r["rank"] for r in ctx.records] == [8, 8, 4, 4, 2, 2, 1, 1]
    assert all(r["loss"] > 0 and r["grad_norm"] > 0 for r in ctx.records)


def test_training_is_repeatable(
    make_model: Callable[[], nn.Module], make_context: Callable[..., Any]
) -> None:
    runs = []
    for _ in range(2):
        ctx = make_context(make_model())
        QVGen(w_bits=2, a_bits=4, rank=4, recipe=TrainRecipe(steps=12, log_every=3)).apply(make_model(), ctx)
        runs.append([r["loss"] for r in ctx.records])
    assert runs[0] == runs[1]


def test_phi_decays_to_exactly_zero_and_is_kept_in_order(make_model: Callable[[], nn.Module]) -> None:
    model = quantize_(make_model(), CONFIG)
    schedule = RankSchedule(rank=8, steps=40)
    decay, optimizer = RankDecay(model, schedule), build_optimizer(model, RECIPE)
    ranks = []
    for step in range(40):
        state = decay.before_step(step, optimizer)
        expected = torch.tensor(schedule.gamma(step))
        assert all(torch.allclose(phi.gamma, expected) for phi in phis(model))
        if state.refactor:
            ranks.append(state.rank)
            for phi in phis(model):
                sizes = phi.L.detach().norm(dim=0) * phi.R.detach().norm(dim=1)
                assert (sizes[: state.rank].diff() <= 1e-6).all() and sizes[state.rank :].eq(0).all()
                assert all(value.eq(0).all() for value in optimizer.state[phi.L].values())
        model(torch.randn(2, 5, 16)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert ranks == [4, 2, 1]
    decay.finish()
    assert all(phi().eq(0).all() for phi in phis(model))


def test_every_parameter_moves(make_model: Callable[[], nn.Module], make_context: Callable[..., Any]) -> None:
    model = quantize_(make_model(), CONFIG)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    recipe = dataclasses.replace(RECIPE, steps=4)
    train_(model, recipe, make_context(make_model()), schedule=RankSchedule(rank=8, steps=4))
    still = [n for n, p in model.named_parameters() if torch.equal(p, before[n])]
    assert still == []


def test_task_loss_needs_no_teacher(
    make_model: Callable[[], nn.Module], make_context: Callable[..., Any]
) -> None:
    ctx = make_context(make_model())
    recipe = dataclasses.replace(RECIPE, loss="task")
    result = train_(quantize_(make_model(), CONFIG.quant), recipe, ctx)
    assert ctx.teacher_asked == 0
    assert result.last_loss < 0.7 * result.first_loss
    assert "rank" not in ctx.records[0]


def test_bf16_autocast_keeps_float32_masters(
    make_model: Callable[[], nn.Module], make_context: Callable[..., Any]
) -> None:
    ctx = make_context(make_model())
    model = quantize_(make_model(), CONFIG.quant)
    recipe = dataclasses.replace(RECIPE, precision="bf16")
    result = train_(model, recipe, ctx)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert result.last_loss < result.first_loss


def test_a_bf16_model_comes_back_in_bf16(
    make_model: Callable[[], nn.Module], make_context: Callable[..., Any]
) -> None:
    ctx = make_context(make_model())
    model = QVGen(w_bits=4, a_bits=4, recipe=TrainRecipe(steps=6)).apply(make_model().to(torch.bfloat16), ctx)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.get_buffer("first.weight").dtype == torch.bfloat16
    assert model.get_buffer("first.scale").dtype == torch.float32


def test_divergence_is_an_error(
    make_model: Callable[[], nn.Module], make_context: Callable[..., Any]
) -> None:
    ctx = make_context(make_model())
    model = quantize_(make_model(), CONFIG.quant)
    with torch.no_grad():
        model.get_parameter("norm.bias").fill_(float("nan"))
    with pytest.raises(ValueError, match=r"training diverged: loss nan .* steps up to 20; lower lr_scales"):
        train_(model, RECIPE, ctx)


@pytest.mark.parametrize(
    ("rank", "schedule", "message"),
    [
        (8, None, "layer first has a Phi, but train_ was given no schedule"),
        (0, RankSchedule(rank=8, steps=12), "a schedule is given, but no layer has a Phi"),
        (8, RankSchedule(rank=8, steps=24), "the schedule is over 24 steps, the recipe has 12"),
        (8, RankSchedule(rank=8, steps=8), "the schedule is over 8 steps, the recipe has 12"),
        (8, RankSchedule(rank=4, steps=12), "layer first: Phi has 8 columns, the schedule is for 4"),
        (4, RankSchedule(rank=8, steps=12), "layer first: Phi has 4 columns, the schedule is for 8"),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused_at_once(
    rank: int,
    schedule: RankSchedule | None,
    message: str,
    make_model: Callable[[], nn.Module],
    make_context: Callable[..., Any],
) -> None:
    ctx = make_context(make_model())
    model = quantize_(make_model(), QVGenConfig(quant=CONFIG.quant, rank=rank) if rank else CONFIG.quant)
    with pytest.raises(ValueError, match=message):
        train_(model, dataclasses.replace(RECIPE, steps=12, log_every=1), ctx, schedule=schedule)
    assert ctx.records == [] and ctx.teacher_asked == 0


def test_a_small_layer_has_what_columns_it_can(
    make_model: Callable[[], nn.Module], make_context: Callable[..., Any]
) -> None:
    """Rank 12 is more than the second layer's 8 outputs: no mismatch."""
    model = quantize_(make_model(), dataclasses.replace(CONFIG, rank=12))
    recipe = dataclasses.replace(RECIPE, steps=12)
    train_(model, recipe, make_context(make_model()), schedule=RankSchedule(rank=12, steps=12))
    assert all(phi().eq(0).all() for phi in phis(model))


@pytest.mark.parametrize("part", ["log_scale", "first.bias"])
def test_a_student_of_low_precision_is_refused_by_name(
    part: str, make_model: Callable[[], nn.Module], make_context: Callable[..., Any]
) -> None:
    """Log-scales around -4 in bfloat16 are 0.016 apart: steps of 5e-4 would move none of them."""
    model = quantize_(make_model(), CONFIG.quant)
    for name, parameter in model.named_parameters():
        if part in name:
            parameter.data = parameter.data.to(torch.bfloat16)
    ctx = make_context(make_model())
    with pytest.raises(ValueError, match=rf"{part} is bfloat16: .* train in float32: model.float\(\) before"):
        train_(model, RECIPE, ctx)
    assert ctx.records == []


def test_weights_and_phi_decay_scales_and_clips_do_not(make_model: Callable[[], nn.Module]) -> None:
    """A step of gradients that are all zero is decay alone: a factor of 1 - rate * decay."""
    model = quantize_(make_model(), CONFIG)
    recipe = dataclasses.replace(
        RECIPE, weight_decay=0.5, lr_weights=0.1, lr_scales=0.1, lr_phi=0.1, lr_clips=0.1
    )
    optimizer = build_optimizer(model, recipe)
    before = {id(p): p.detach().clone() for p in model.parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    factors = {"weights": 0.95, "phi": 0.95, "scales": 1.0, "clips": 1.0}
    groups = parameter_groups(model)
    assert groups.keys() == factors.keys()
    for name, members in groups.items():
        for parameter in members:
            torch.testing.assert_close(
                parameter.detach(), before[id(parameter)] * factors[name], rtol=1e-6, atol=0
            )
