"""The bfloat16 mode: near the float32 scores, and never taken for VBench's."""

from __future__ import annotations

import importlib.metadata
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from evalharness.api import Prompt, Sample, Video
from evalharness.interchange.submission import submittable
from evalharness.native import bf16, compiled, subject_consistency
from evalharness.native.aesthetic_quality import AestheticQuality
from evalharness.native.background_consistency import BackgroundConsistency

SAMPLE = Sample(prompt=Prompt(id="0000", text="", dimensions=()), index=0, seed=0)
PAIRS = [
    (bf16.SubjectConsistency, subject_consistency.SubjectConsistency),
    (bf16.BackgroundConsistency, BackgroundConsistency),
    (bf16.AestheticQuality, AestheticQuality),
]


@pytest.mark.parametrize(("half", "whole"), PAIRS, ids=lambda cls: cls.__module__)
def test_scores_are_near_and_named_apart(
    folder: Path, moving: Callable[..., np.ndarray], half: type, whole: type
) -> None:
    video = Video(moving(4), 8.0)
    ours, exact = half(folder=folder), whole(folder=folder)
    found, expected = ours.score(video, SAMPLE), exact.score(video, SAMPLE)
    assert found != expected and found == pytest.approx(expected, abs=0.02)
    assert ours.name == f"vbench-bf16.{exact.dimension}" and exact.name == f"vbench.{exact.dimension}"
    assert ours.info.faithful_to == "vbench, in bfloat16"
    assert ours.dtype() is torch.bfloat16
    assert half(folder=folder, precision="float32").precision == "bfloat16"


def test_compiled_networks_are_apart_from_the_others(
    folder: Path, moving: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is compiled is noted; it runs as it is, so that scores equal those in bfloat16."""
    noted: list[str] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: noted.append(type(self).__name__))
    video = Video(moving(4), 8.0)
    for ours, half in (
        (compiled.SubjectConsistency, bf16.SubjectConsistency),
        (compiled.AestheticQuality, bf16.AestheticQuality),
    ):
        made = ours(folder=folder)
        assert made.score(video, SAMPLE) == half(folder=folder).score(video, SAMPLE)
        assert made.info.faithful_to == "vbench, in bfloat16, compiled"
        assert made.name == f"vbench-compiled.{made.dimension}"
        assert made.network("raft-things", "float32") is half(folder=folder).network("raft-things", "float32")
    assert noted == ["Dino", "ClipImage"]
    compiled.OverallConsistency(folder=folder).network("viclip-l14")
    assert noted[2:] == ["ViClipVideo"]
    assert submittable(Cell, {"scene": "vbench-compiled.scene"}) == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_scores_are_near(folder: Path, moving: Callable[..., np.ndarray]) -> None:
    video = Video(moving(4), 8.0)
    found = compiled.SubjectConsistency(folder=folder).score(video, SAMPLE)
    exact = subject_consistency.SubjectConsistency(folder=folder).score(video, SAMPLE)
    assert found == pytest.approx(exact, abs=0.02)


class Cell:
    dimensions = {"scene": type("E", (), {"n": 5, "expected": 5})}  # noqa: RUF012


def test_no_submission_takes_them() -> None:
    assert submittable(Cell, {"scene": "vbench-bf16.scene"}) == []
    assert submittable(Cell, {"scene": "vbench.scene"}) == ["scene"]


def test_entry_points_name_classes_that_exist() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    entries = project["project"]["entry-points"]["evalharness.metrics"]
    ours = {name: value for name, value in entries.items() if name.startswith(("vbench", "upstream."))}
    assert {name.partition(".")[0] for name in ours} == {
        "vbench",
        "vbench-bf16",
        "vbench-compiled",
        "upstream",
    }
    for name, value in ours.items():
        cls = importlib.metadata.EntryPoint(name, value, "evalharness.metrics").load()
        assert (cls.name, cls.dimension) == (name, name.partition(".")[2])
