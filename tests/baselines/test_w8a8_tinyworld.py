"""W8A8 of every installed method that needs no training is tinyworld itself, or the method is broken."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from baselines.calibration import Needs
from evalharness.api import Bits
from evalharness.calibration import calibrate
from evalharness.cells import Cell, build_method
from evalharness.models import tinyworld
from evalharness.registry import Registry
from tests.baselines.recorded import Recorded, track

STEPS = 5
# Relative squared error of the prediction; one range for all tokens and steps is coarse even at 8 bits.
LIMITS = {"rtn-static": 2e-2}
USUAL_LIMIT = 1e-3


def untrained() -> list[str]:
    """Names of the methods of this distribution; other plugins that are installed are not judged."""
    registry = Registry()
    return [
        name
        for name, cls in registry.load_all("methods").items()
        if cls.needs != "training" and cls.__module__.startswith(("baselines.", "qvgen."))
    ]


@dataclass
class WithStates(Recorded):
    """Also states that another video goes through."""

    states: list[dict[str, Any]] = field(kw_only=True)

    def outputs(self, model: nn.Module) -> Tensor:
        """Predictions along another video's way from noise to picture."""
        with torch.no_grad():
            return torch.cat([model(**state)[0] for state in self.states])


@pytest.fixture(scope="module")
def recorded() -> Iterator[WithStates]:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tinyworld, "SETTINGS", replace(tinyworld.SETTINGS, steps=STEPS))
        loaded = tinyworld.TinyWorld().load("cpu")
        skip = loaded.skip_layers("std")
        linears = [n for n, m in loaded.transformer.named_modules() if isinstance(m, nn.Linear)]
        names = tuple(n for n in linears if n not in skip)
        needs = Needs(layers=names, prompts=2, rows=256, hessian=True)
        statistics = calibrate(loaded.transformer, loaded.calibration_runs(seed=0), needs, 0, track)
        states = loaded.trajectories(loaded.transformer, batch_size=2, seed=77)
        drawn = [dict(next(states).inputs) for _ in range(STEPS)]
        yield WithStates(loaded.transformer, skip, statistics, states=drawn)


@pytest.mark.slow
@pytest.mark.parametrize("name", untrained())
def test_eight_bits_are_full_precision(name: str, recorded: WithStates) -> None:
    options = {"grid": 5, "iterations": 5, "rows": 256} if name == "svdquant" else {}
    cell = Cell(model="tinyworld", method=name, bits=Bits(8, 8), seed=0, options=options)
    method = build_method(Registry(), cell)
    model = method.apply(copy.deepcopy(recorded.transformer), recorded)  # type: ignore[arg-type]
    wanted = recorded.outputs(recorded.transformer)
    found = recorded.outputs(model)
    error = float((found - wanted).square().sum() / wanted.square().sum())
    assert 0 < error < LIMITS.get(name, USUAL_LIMIT)


def test_the_list_is_not_empty() -> None:
    assert {"gptq", "rtn", "rtn-minmax", "rtn-static", "svdquant", "viditq"} <= set(untrained())
