"""``run --execution packed``: what is executed, what the rows say, and that scores stay what they were."""

from __future__ import annotations

import copy
import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evalharness.cost import executed_as
from evalharness.executor import WorkerSpec
from evalharness.models.tinyworld import CHECKPOINTS, LoadedTinyWorld, TinyWorld
from evalharness.session import Session
from qvgen.checkpoint import load_quantized
from qvgen.packed.convert import pack_

Call = Callable[..., Any]


class Said(nn.Module):
    def __init__(self, said: str) -> None:
        super().__init__()
        self._said = said

    def execution(self) -> str:
        return self._said


def test_a_model_is_as_real_as_its_least_real_layer() -> None:
    assert executed_as(nn.Sequential(nn.Linear(2, 2))) is None
    assert executed_as(nn.Sequential(Said("real"), nn.Linear(2, 2), Said("real"))) == "real"
    assert executed_as(nn.Sequential(Said("real"), Said("emulated"))) == "emulated"


def test_methods_without_a_packed_form_are_refused_before_work(toy_run: Call, tmp_path: Path) -> None:
    result = toy_run("--methods", "toy-round", "--execution", "packed")
    assert result.code == 2 and "method toy-round has no packed form" in result.err
    assert not (tmp_path / "out" / "cells").exists()
    result = toy_run("--execution", "quick")
    assert result.code == 2 and "--execution quick: expected fake or packed" in result.err


def test_the_session_asks_the_method_for_its_packed_form() -> None:
    class Method:
        def pack(self, module: nn.Module) -> nn.Module:
            return nn.Sequential(module, Said("real"))

    common: Mapping[str, Any] = {"model": "toy", "protocol": "toy", "device": "cpu", "skip_layers": "std"}
    module = nn.Linear(2, 2)
    assert Session(WorkerSpec(**common)).executable(Method(), module) is module
    packed = Session(WorkerSpec(**common, execution="packed")).executable(Method(), module)
    assert executed_as(packed) == "real"


def table(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "leaderboard.csv").open(newline="") as file:
        return {row["method"]: row for row in csv.DictReader(file)}


@pytest.mark.slow
def test_tinyworld_scores_are_the_same_at_eight_bits(call: Call, tmp_path: Path) -> None:
    """Two prompts; codes of 8 bits that fall to the other side of a border move a video by very little."""
    names = "motion_smoothness,scene,imaging_quality,subject_consistency"
    common = ("--methods", "rtn", "--bits", "8", "--limit", "2", "--workers", "0", "--dimensions", names)
    for execution in ("fake", "packed"):
        result = call("run", *common, "--execution", execution, "--output", str(tmp_path / execution))
        assert result.code == 0, result.err
    fake, packed = (table(tmp_path / name)["rtn"] for name in ("fake", "packed"))
    assert (fake["execution"], packed["execution"]) == ("fake", "real")
    for name in names.split(","):
        assert float(fake[name]) == pytest.approx(float(packed[name]), abs=1.5), name
    profile = json.loads((tmp_path / "packed" / "cells" / "rtn-w8a8-s0" / "profile.json").read_text())
    assert profile["step_ms"] > 0 and profile["macs"]["w8a8"] > 0
    refused = call("run", *common, "--execution", "fake", "--output", str(tmp_path / "packed"))
    assert refused.code == 2 and "execution" in refused.err and "different run" in refused.err


@pytest.fixture(scope="module")
def loaded() -> LoadedTinyWorld:
    return TinyWorld().load("cpu")


def trajectory(model: nn.Module, loaded: LoadedTinyWorld, factor: float) -> Iterator[Tensor]:
    inputs = loaded.step_inputs()
    x = inputs["hidden_states"] * factor
    with torch.inference_mode():
        for time in range(950, 550, -50):
            steps = {**inputs, "hidden_states": x, "timestep": torch.tensor([time, time])}
            x = x - 0.05 * model(**steps)[0]
            yield x


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qvgen-w4a4", "lsq-w4a4", "qvgen-w3a3"])
def test_packed_differs_from_fake_as_fake_from_itself_after_one_rounding(
    name: str, loaded: LoadedTinyWorld
) -> None:
    """The input times 1 + 2^-23 moves a few codes over a border; so does another order of summation."""
    fake = load_quantized(copy.deepcopy(loaded.transformer), CHECKPOINTS / name, {})
    packed = pack_(copy.deepcopy(fake))
    base = list(trajectory(fake, loaded, 1.0))

    def distances(model: nn.Module, factor: float) -> list[float]:
        pairs = zip(base, trajectory(model, loaded, factor), strict=True)
        return [float((a - b).norm() / a.norm()) for a, b in pairs]

    found = distances(packed, 1.0)
    usual = [max(d) for d in zip(distances(fake, 1 + 2**-23), distances(fake, 1 - 2**-23), strict=True)]
    assert found[-1] < 2 * usual[-1] < 0.05
    assert all(a < 5e-3 * (step + 1) for step, a in enumerate(found))
