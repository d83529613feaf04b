"""How far the fastest parts of a picture move between two frames, by RAFT: one number a pair.

Each frame is encoded once, however many pairs it is in, and pairs go through the update in batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evalharness.native.inputs import planes
from evalharness.native.raft import Raft, padded

if TYPE_CHECKING:
    import numpy as np

__all__ = ["pair_strengths"]

CORRELATION_BYTES = 1 << 30


def pair_strengths(
    network: Raft,
    frames: np.ndarray,
    pairs: Sequence[tuple[int, int]],
    *,
    share: float,
    batch: int,
    device: str,
    dtype: torch.dtype = torch.float32,
) -> list[float]:
    """Mean flow length, in pixels, of the ``share`` of pixels that move farthest, for each pair.

    Args:
        network: RAFT on ``device`` in ``dtype``.
        frames: uint8 [T, H, W, 3], H and W at least ``raft.MIN_SIDE``.
        pairs: (from, to) indices into ``frames``, in the order in which they should run.
        share: of all pixels, the added border included, as VBench counts.
        batch: pairs at a time, fewer where their correlations would pass 1 GiB.
        device: where to run.
        dtype: of the network; the flow is averaged in float64.
    """
    last_use = {index: number for number, pair in enumerate(pairs) for index in pair}
    encoded: dict[int, tuple[Tensor, Tensor]] = {}
    strengths: list[float] = []
    size = _pairs_at_once(frames.shape[1:3], batch, dtype.itemsize)
    with torch.inference_mode():
        for numbers in _batches(len(pairs), size):
            chosen = [pairs[number] for number in numbers]
            fresh = sorted({index for pair in chosen for index in pair} - encoded.keys())
            if fresh:
                images = padded(planes(frames[fresh], device)).to(dtype)
                compared, context = network.features(images)
                encoded |= {index: (compared[i], context[i]) for i, index in enumerate(fresh)}
            first = torch.stack([encoded[a][0] for a, _ in chosen])
            second = torch.stack([encoded[b][0] for _, b in chosen])
            flow = network.flow(first, second, torch.stack([encoded[a][1] for a, _ in chosen]))
            strengths += _strengths(flow, share)
            encoded = {index: held for index, held in encoded.items() if last_use[index] > numbers[-1]}
    return strengths


def _strengths(flow: Tensor, share: float) -> list[float]:
    lengths = flow.float().square().sum(dim=1).sqrt().flatten(1)
    count = max(1, int(share * lengths.shape[1]))
    means: list[float] = lengths.topk(count, dim=1, sorted=False).values.double().mean(dim=1).tolist()
    return means


def _pairs_at_once(size: Sequence[int], batch: int, itemsize: int) -> int:
    cells = -(-size[0] // 8) * -(-size[1] // 8)
    # The levels of the pyramid add a third to the first.
    return max(1, min(batch, int(CORRELATION_BYTES / (cells * cells * itemsize * 4 / 3))))


def _batches(total: int, size: int) -> Iterator[range]:
    for start, end in itertools.pairwise([*range(0, total, size), total]):
        yield range(start, end)
