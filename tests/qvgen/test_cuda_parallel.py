"""Two GPUs: what ``test_scale.py`` asks of two processes of a CPU, and how little memory they need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.qvgen.scaled_training import VARIANTS
from tests.qvgen.test_scale import scaled

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder: Path = tmp_path_factory.mktemp("scaled")
    return scaled(folder, "cuda")


def test_a_start_by_blocks_is_that_of_the_whole_model(found: dict[str, Any]) -> None:
    """Ranges bit for bit. A start from the error goes through decompositions in batches of other sizes."""
    for name, (differing, surplus, drawn_alike, left_in_student) in found["starts"].items():
        assert surplus == [] and drawn_alike and left_in_student == 0
        if not name.startswith("error"):
            assert differing == [], name
        assert all(".phi." in tensor for tensor in differing), name
    assert found["ends"] == []
    assert found["bad"] == {"steps": [[1, None], [2, None], [4, 1]], "finite": True}


def test_no_gpu_holds_more_than_its_shard_and_some_blocks(found: dict[str, Any]) -> None:
    """Of 12 blocks: half of the model, and the block at work as bfloat16, float32 and being cut."""
    held = found["held"]
    assert held["whole"] > 11 * held["block"]
    assert held["whole"] / 2 < held["most"] < held["whole"] / 2 + 3 * held["block"]


@pytest.mark.parametrize("name", [*VARIANTS, "resumed"])
def test_each_option_trains_alike(name: str, found: dict[str, Any]) -> None:
    """As far as the GPU's kernels repeat themselves; losses of the same weights are the same."""
    plain, other = found["trainings"]["plain"], found["trainings"][name]
    assert len(plain["log"]) == len(other["log"]) == 4
    assert other["log"][0]["loss"] == pytest.approx(plain["log"][0]["loss"], rel=1e-5)
    for ours, theirs in zip(other["log"], plain["log"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-2)
    if name == "all":
        assert other["saved"] == 2
