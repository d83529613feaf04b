"""Phi's starts, the order in which its columns go, and its ends, on a live model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from qvgen.api import convert_, frozen_layers, phis, quant_layers, quantize_
from qvgen.config import Direction, PhiInit, QuantConfig, QVGenConfig
from qvgen.method import KDQAT, QVGen
from qvgen.phi_init import quantization_error
from qvgen.schedule import RankSchedule
from qvgen.training.decay import RankDecay
from qvgen.training.loop import train_
from qvgen.training.optim import build_optimizer
from qvgen.training.recipe import TrainRecipe

QUANT = QuantConfig(w_bits=3, a_bits=4, learn_clip=True)
RECIPE = TrainRecipe(steps=24, batch_size=4, lr_weights=1e-3, lr_phi=1e-3, log_every=6)
Make = Callable[[], nn.Module]


def config(**options: Any) -> QVGenConfig:
    return QVGenConfig(quant=QUANT, rank=8, **options)


def test_the_default_start_is_the_error_of_each_layer(make_model: Make) -> None:
    model = quantize_(make_model(), config())
    for _, layer in quant_layers(model):
        assert layer.phi is not None
        error = quantization_error(layer).detach().double().numpy()
        rest = np.linalg.norm(error - layer.phi().detach().double().numpy()) ** 2
        np.testing.assert_allclose(rest, (scipy.linalg.svdvals(error)[8:] ** 2).sum(), rtol=1e-3, atol=1e-9)


def test_zero_start_changes_nothing_yet_can_learn(make_model: Make) -> None:
    plain, model = quantize_(make_model(), QUANT), quantize_(make_model(), config(phi_init="zero"))
    x = torch.randn(2, 5, 16)
    assert torch.equal(plain(x), model(x))
    model(x).square().sum().backward()
    for phi in phis(model):
        assert phi.L.grad is not None and phi.L.grad.ne(0).any()


def test_random_start_has_the_stated_norm_and_follows_the_seed(make_model: Make) -> None:
    def start() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(5)
            return quantize_(make_model(), config(phi_init="random"))

    model, again = start(), start()
    for (_, layer), other in zip(quant_layers(model), phis(again), strict=True):
        assert layer.phi is not None and torch.equal(layer.phi.L, other.L)
        share = np.sqrt(layer.phi.rank / min(layer.weight.shape))
        expected = share * quantization_error(layer).norm().item()
        assert layer.phi().norm().item() == pytest.approx(expected, rel=1e-4)
        # The decay takes columns to come by descending singular value, from the first stage on.
        singular = scipy.linalg.svdvals(layer.phi().detach().double().numpy())[: layer.phi.rank]
        np.testing.assert_allclose(layer.phi.L.detach().norm(dim=0) ** 2, singular, rtol=1e-3)


@pytest.mark.parametrize("init", ["error", "zero", "random"])
def test_every_start_trains_to_exactly_zero(
    init: PhiInit, make_model: Make, make_context: Callable[..., Any]
) -> None:
    model = quantize_(make_model(), config(phi_init=init))
    ctx = make_context(make_model())
    schedule = RankSchedule.of(config(), 24)
    train_(model, RECIPE, ctx, schedule=schedule)
    for phi in phis(model):
        assert phi.L.eq(0).all() and phi.R.eq(0).all() and phi.gamma.eq(0).all()
    assert all(record["loss"] > 0 for record in ctx.records)
    convert_(model)


@pytest.mark.parametrize("hold", [0.0, 0.25])
@pytest.mark.parametrize("direction", ["small", "large", "random"])
def test_the_direction_decides_which_singular_values_stay(
    direction: Direction, hold: float, make_model: Make
) -> None:
    """Without optimiser steps, after the first stage, each layer holds 4 of its 8 values."""
    options = config(direction=direction, hold=hold)
    model = quantize_(make_model(), options)
    full = [np.sort(scipy.linalg.svdvals(p().detach().double()))[::-1][:8] for p in phis(model)]
    schedule = RankSchedule.of(options, 40)
    decay, optimizer = RankDecay(model, schedule, seed=3), build_optimizer(model, RECIPE)
    second = schedule.hold_steps + schedule.stage_steps
    for step in range(second + 1):
        decay.before_step(step, optimizer)
    for phi, values in zip(phis(model), full, strict=True):
        kept = np.sort(scipy.linalg.svdvals(phi().detach().double()))[::-1][:4]
        if direction == "random":
            places = [int(np.argmin(abs(values - value))) for value in kept]
            np.testing.assert_allclose(values[places], kept, rtol=1e-3)
            assert places not in ([0, 1, 2, 3], [4, 5, 6, 7])
        else:
            expected = values[:4] if direction == "small" else values[4:]
            np.testing.assert_allclose(kept, expected, rtol=1e-3, atol=1e-5)


def test_dead_columns_stay_exactly_zero_and_have_no_momentum(make_model: Make) -> None:
    model = quantize_(make_model(), config())
    schedule = RankSchedule(rank=8, steps=40)
    decay, optimizer = RankDecay(model, schedule), build_optimizer(model, RECIPE)
    for step in range(25):  # into the third stage: two columns alive
        decay.before_step(step, optimizer)
        model(torch.randn(2, 5, 16)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    for phi in phis(model):
        assert phi.L[:, 2:].eq(0).all() and phi.R[2:].eq(0).all()
        assert phi.L[:, :2].ne(0).all() and phi.R[:2].ne(0).all()
        for parameter, dead in ((phi.L, (slice(None), slice(2, None))), (phi.R, (slice(2, None),))):
            state = optimizer.state[parameter]
            assert state["exp_avg"][dead].eq(0).all() and state["exp_avg_sq"][dead].eq(0).all()
            assert state["exp_avg"].ne(0).any() and state["step"] == 5


@pytest.mark.parametrize("refactor", [True, False])
def test_what_is_gone_stays_gone_to_the_last_step(refactor: bool, make_model: Make) -> None:
    """Momentum of the last stage, or of any without re-factorisation, would move columns without gamma."""
    model = quantize_(make_model(), config())
    schedule = RankSchedule(rank=8, steps=40, decay_until=0.8, refactor=refactor)  # stages of 8 steps
    decay, optimizer = RankDecay(model, schedule), build_optimizer(model, RECIPE)
    places = [(phi.L.data_ptr(), phi.R.data_ptr()) for phi in phis(model)]
    for step in range(40):
        alive = decay.before_step(step, optimizer).rank
        model(torch.randn(2, 5, 16)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        for phi in phis(model):
            for parameter, dim in ((phi.L, 1), (phi.R, 0)):
                moments = (optimizer.state[parameter][key] for key in ("exp_avg", "exp_avg_sq"))
                for tensor in (parameter, *moments):
                    living, dead = tensor.detach().split([alive, phi.rank - alive], dim)
                    assert dead.eq(0).all(), step
                    assert alive == 0 or living.ne(0).any()
    assert alive == 0
    assert [(phi.L.data_ptr(), phi.R.data_ptr()) for phi in phis(model)] == places, "in place"


def test_dropping_at_the_end_reports_the_loss_with_and_without(
    make_model: Make, make_context: Callable[..., Any]
) -> None:
    ctx = make_context(make_model())
    ctx.validation_batches = ctx.batches
    model = quantize_(make_model(), config(phi_end="drop"))
    recipe = TrainRecipe(steps=24, batch_size=4, log_every=6, validate_every=6)
    train_(model, recipe, ctx, schedule=RankSchedule.of(config(phi_end="drop"), 24))
    assert all(record["gamma"] == 1 and record["rank"] == 8 for record in ctx.records)
    last = ctx.records[-1]
    assert last["val_loss_end"] > last["val_loss"], "Phi held the layers' leading error until then"
    batch = next(ctx.batches(4))
    with torch.no_grad():
        by_hand = (ctx.predict(model, batch) - ctx.predict(ctx.teacher(), batch)).square().mean()
    assert last["val_loss_end"] == pytest.approx(float(by_hand), rel=1e-6)
    convert_(model)


def test_an_early_end_trains_the_rest_without_phi(make_model: Make, make_context: Callable[..., Any]) -> None:
    ctx = make_context(make_model())
    ctx.validation_batches = ctx.batches
    model = quantize_(make_model(), config(decay_until=0.5))
    recipe = TrainRecipe(steps=24, batch_size=4, log_every=6, validate_every=6)
    before = {}

    def weights_at_half(record: Any) -> None:
        ctx.records.append(record)
        if record["step"] == 12:
            before.update({n: layer.weight.detach().clone() for n, layer in quant_layers(model)})

    ctx.log = weights_at_half
    train_(model, recipe, ctx, schedule=RankSchedule.of(config(decay_until=0.5), 24))
    # rank 8: stages 8>4>2>1>0 of 12 / 4 = 3 steps; u at the last step of a stage is (1 + cos(2 pi / 3)) / 2
    ranks = [(record["rank"], record["gamma"]) for record in ctx.records]
    assert ranks == [(4, pytest.approx(0.25)), (1, pytest.approx(0.25)), (0, 0.0), (0, 0.0)]
    assert ctx.records[-1]["val_loss"] == ctx.records[-1]["val_loss_end"], "nothing was left to remove"
    assert len(before) == 2 and all(layer.weight.ne(before[n]).any() for n, layer in quant_layers(model))
    convert_(model)


def test_a_kept_phi_is_at_work_and_cannot_be_converted(
    make_model: Make, make_context: Callable[..., Any]
) -> None:
    model = quantize_(make_model(), config(phi_end="keep"))
    train_(model, RECIPE, make_context(make_model()), schedule=RankSchedule.of(config(phi_end="keep"), 24))
    assert all(phi().ne(0).any() for phi in phis(model))
    with pytest.raises(ValueError, match=r"layer first: Phi is still active .* phi_end drop removes it"):
        convert_(model)
    with pytest.raises(ValueError, match="phi_end is 'keep': a model with Phi is no low-bit model"):
        QVGen(w_bits=3, a_bits=3, phi_end="keep")


def test_kd_qat_is_qvgen_without_phi(make_model: Make, make_context: Callable[..., Any]) -> None:
    kd, qvgen = KDQAT(w_bits=3, a_bits=4, recipe=RECIPE), QVGen(w_bits=3, a_bits=4, recipe=RECIPE)
    assert kd.quant_config() == qvgen.quant_config()
    ctx = make_context(make_model())
    model = kd.apply(make_model(), ctx)
    assert "rank" not in ctx.records[0] and ctx.teacher_asked == 1
    assert ctx.records[-1]["loss"] < ctx.records[0]["loss"]
    assert not list(quant_layers(model))
    # a Phi that is zero and cannot learn leaves just KD-QAT
    silent = make_context(make_model())
    frozen = TrainRecipe(**{**{f: getattr(RECIPE, f) for f in RECIPE.__slots__}, "lr_phi": 0.0})
    QVGen(w_bits=3, a_bits=4, phi_init="zero", rank=4, recipe=frozen).apply(make_model(), silent)
    assert [r["loss"] for r in silent.records] == pytest.approx([r["loss"] for r in ctx.records], rel=1e-6)


def test_quantizer_options_of_the_methods_are_those_of_the_config() -> None:
    """With the same defaults, so that a plain qvgen is what it was."""
    plain = QuantConfig(w_bits=3, a_bits=4, learn_clip=True)
    chosen: dict[str, Any] = {
        "clip_init": 0.9, "range_init": "lsq", "zero_point": "fixed", "scale_param": "linear",
        "w_symmetric": True, "a_symmetric": True, "w_granularity": "group", "w_group_size": 8,
        "a_granularity": "tensor", "a_group_size": 16,
    }  # fmt: skip
    for method in (KDQAT, QVGen):
        assert method(w_bits=3, a_bits=4).quant_config() == plain
        assert method(w_bits=3, a_bits=4, **chosen).quant_config() == dataclasses.replace(plain, **chosen)
    with pytest.raises(ValueError, match="range_init lsq is the start of a symmetric step"):
        QVGen(w_bits=3, a_bits=4, range_init="lsq")


def test_a_checkpoint_of_other_quantizers_is_not_loaded(
    make_model: Make, make_context: Callable[..., Any], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"w_bits": 3, "a_bits": 4, "rank": 4, "recipe": RECIPE}
    made = QVGen(**options).apply(make_model(), make_context(make_model()))
    QVGen(**options).save(made, tmp_path)
    QVGen(**options).load(make_model(), tmp_path)
    symmetric = QVGen(**options, w_symmetric=True, scale_param="linear")
    with pytest.raises(ValueError, match="the checkpoint has scale_param 'log', wanted 'linear'"):
        symmetric.load(make_model(), tmp_path)
    trained = symmetric.apply(make_model(), make_context(make_model()))
    symmetric.save(trained, tmp_path)
    loaded, x = symmetric.load(make_model(), tmp_path), torch.randn(2, 5, 16)
    assert torch.equal(loaded(x), trained(x))
    assert all(layer.zero_point.eq(4).all() for _, layer in frozen_layers(loaded))
