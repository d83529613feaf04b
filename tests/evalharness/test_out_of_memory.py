"""A GPU without room: smaller batches, all videos, and the record of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest


def small_gpu(room: int) -> tuple[Any, list[int]]:
    """A model that runs out of memory beyond ``room`` videos a call, and the sizes that it was asked for."""
    import torch

    asked: list[int] = []

    class Loaded:
        def generate(self, prompts: list[str], seeds: list[int]) -> np.ndarray:
            asked.append(len(prompts))
            if len(prompts) > room:
                raise torch.OutOfMemoryError("no room")
            return np.stack([np.full((5, 32, 32, 3), seed, np.uint8) for seed in seeds])

    return Loaded(), asked


def frames_of(
    room: int, batch: int, count: int, limit: int | None = None
) -> tuple[list[int], int, list[int], Any]:
    from toybench.model import ToyModel

    from evalharness.stages.generate import _frames

    loaded, asked = small_gpu(room)
    session = SimpleNamespace(batch_limit=limit, model=ToyModel())
    samples = [{"text": "x", "seed": seed} for seed in range(count)]
    frames, size = _frames(session, loaded, samples, batch)  # type: ignore[arg-type]
    return [int(video[0, 0, 0, 0]) for video in frames], size, asked, session


def test_out_of_memory_halves_the_batch_and_keeps_every_video(toy: Path) -> None:
    seeds, size, asked, session = frames_of(room=3, batch=8, count=5)
    assert (seeds, size, asked) == ([0, 1, 2, 3, 4], 2, [8, 4, 2, 2, 2])
    assert session.batch_limit == 2, "later batches start there"
    assert frames_of(room=3, batch=8, count=2, limit=2)[1:3] == (2, [2])
    assert frames_of(room=8, batch=8, count=5)[:3] == ([0, 1, 2, 3, 4], 8, [8])


def test_one_video_that_does_not_fit_is_an_error(toy: Path) -> None:
    import torch

    with pytest.raises(torch.OutOfMemoryError):
        frames_of(room=0, batch=4, count=4)
