"""RTN and LSQ: what they learn, what they leave alone."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from baselines.lsq import LSQ
from baselines.rtn import RTN
from qvgen.api import frozen_layers
from qvgen.method import QVGen
from qvgen.training.recipe import TrainRecipe
from tests.contexts import Batch, PlainContext

RECIPE = TrainRecipe(steps=120, batch_size=16, lr_weights=2e-3, lr_scales=2e-3, log_every=20)


class Context(PlainContext):
    def batches(self, batch_size: int) -> Iterator[Batch]:
        g = torch.Generator().manual_seed(self.seed)
        while True:
            x = torch.randn(batch_size, 12, generator=g)
            yield Batch({"input": x}, x[:, :6].abs())


def make_model() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(12, 40), nn.GELU(), nn.Linear(40, 6)).eval()


def losses(model: nn.Module, ctx: Context) -> tuple[float, float]:
    """Mean squared distance to the teacher and to the task's target."""
    batch = next(ctx.batches(256))
    with torch.no_grad():
        out = ctx.predict(model, batch)
        to_teacher = (out - ctx.predict(ctx._teacher, batch)).square().mean()
        return float(to_teacher), float((out - batch.target).square().mean())


def test_rtn_minmax_rounds_as_numpy_does() -> None:
    model = make_model()
    weight = model[0].weight.detach().numpy().copy()
    layer = dict(frozen_layers(RTN(w_bits=3, a_bits=3, range="minmax").apply(model, Context(model))))["0"]
    low, high = np.minimum(weight.min(1), 0), np.maximum(weight.max(1), 0)
    scale = ((high - low) / np.float32(7))[:, None]
    zero = np.rint(-low[:, None] / scale)
    np.testing.assert_array_equal(layer.codes.numpy(), np.clip(np.rint(weight / scale + zero), 0, 7))
    assert np.abs(layer.weight.numpy() - weight).max() <= scale.max() * 0.5 + 0.5 * scale.max()


def test_rtn_search_is_closer_than_minmax() -> None:
    weight = make_model()[0].weight.detach()
    errors = {}
    for kind in ("search", "minmax"):
        model = make_model()
        method = RTN(w_bits=3, a_bits=8, range=kind)  # type: ignore[arg-type]
        layer = dict(frozen_layers(method.apply(model, Context(model))))["0"]
        errors[kind] = float((layer.weight - weight).abs().pow(2.4).sum())
    assert errors["search"] < errors["minmax"]


def test_rtn_gets_closer_with_more_bits() -> None:
    ctx = Context(make_model())
    distance = [losses(RTN(w_bits=b, a_bits=b).apply(make_model(), ctx), ctx)[0] for b in (2, 3, 4, 6, 8)]
    assert distance == sorted(distance, reverse=True) and distance[-1] < 1e-4
    assert not ctx.teacher_asked and ctx.records == []


def test_lsq_learns_the_task_without_a_teacher() -> None:
    ctx = Context(make_model())
    before = losses(RTN(w_bits=3, a_bits=4).apply(make_model(), ctx), ctx)[1]
    model = LSQ(w_bits=3, a_bits=4, recipe=RECIPE).apply(make_model(), ctx)
    assert losses(model, ctx)[1] < 0.5 * before
    assert not ctx.teacher_asked


def test_lsq_zero_point_is_fixed_and_whole_and_scales_learn() -> None:
    ctx = Context(make_model())
    start = dict(frozen_layers(RTN(w_bits=3, a_bits=4).apply(make_model(), ctx)))
    end = dict(frozen_layers(LSQ(w_bits=3, a_bits=4, recipe=RECIPE).apply(make_model(), ctx)))
    for name in start:
        assert torch.equal(start[name].zero_point, end[name].zero_point)
        assert torch.equal(end[name].zero_point, end[name].zero_point.round())
        assert (start[name].scale - end[name].scale).abs().max() > 1e-4


def test_lsq_kd_learns_from_the_teacher() -> None:
    ctx = Context(make_model())
    task = losses(LSQ(w_bits=3, a_bits=4, recipe=RECIPE).apply(make_model(), ctx), ctx)
    distilled = losses(LSQ(w_bits=3, a_bits=4, kd=True, recipe=RECIPE).apply(make_model(), ctx), ctx)
    assert ctx.teacher_asked
    assert distilled[0] < task[0] and task[1] < distilled[1]


@pytest.mark.parametrize(
    ("recipe", "kd"),
    [
        (TrainRecipe(loss="task"), True),
        (TrainRecipe(loss="distill+task"), True),
        (TrainRecipe(loss="distill+task"), False),
        ({"loss": "task"}, True),
        ({"loss": "distill"}, False),
        ({"loss": "distill+task"}, False),
    ],
)
def test_a_recipe_against_kd_is_refused(recipe: Any, kd: bool) -> None:
    loss = recipe["loss"] if isinstance(recipe, dict) else recipe.loss
    with pytest.raises(ValueError, match=re.escape(f"recipe.loss is {loss!r} but kd is {kd}; set kd alone")):
        LSQ(w_bits=3, a_bits=3, kd=kd, recipe=recipe)


def test_recipe_loss_follows_kd() -> None:
    assert LSQ(w_bits=3, a_bits=3, recipe=TrainRecipe()).recipe.loss == "task", "its default is no wish"
    for kd, loss in ((True, "distill"), (False, "task")):
        same = LSQ(w_bits=3, a_bits=3, kd=kd, recipe={"loss": loss})  # type: ignore[arg-type]
        assert same.recipe.loss == loss and dataclasses.replace(same, w_bits=4).recipe.loss == loss
    assert LSQ(w_bits=3, a_bits=3, kd=True).recipe.loss == "distill"
    assert LSQ(w_bits=3, a_bits=3, recipe={"steps": 7}).recipe.steps == 7  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "method", [RTN(w_bits=3, a_bits=3), LSQ(w_bits=3, a_bits=3, recipe=TrainRecipe(steps=3))]
)
def test_save_and_load(method: RTN | LSQ, tmp_path: Path) -> None:
    ctx = Context(make_model())
    live = method.apply(make_model(), ctx)
    method.save(live, tmp_path)
    batch = next(ctx.batches(4))
    assert torch.equal(ctx.predict(method.load(make_model(), tmp_path), batch), ctx.predict(live, batch))
    with pytest.raises(ValueError, match=f"has method '{method.name}', wanted 'qvgen'"):
        QVGen(w_bits=3, a_bits=3).load(make_model(), tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RTN(w_bits=1, a_bits=3), "w_bits is 1"),
        (lambda: RTN(w_bits=3, a_bits=3, range="mse"), "range is 'mse'; allowed: 'search', 'minmax'"),
        (lambda: LSQ(w_bits=3, a_bits=9), "a_bits is 9"),
        (lambda: LSQ(w_bits=3, a_bits=3, kd="yes"), "kd is 'yes'"),
        (lambda: LSQ(w_bits=3, a_bits=3, recipe={"epochs": 3}), "recipe: unknown key 'epochs'"),
    ],
)
def test_bad_options(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
