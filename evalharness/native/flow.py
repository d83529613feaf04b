"""How far the fastest parts of a picture move between two frames, by RAFT: one number a pair.

Each frame is encoded once, however many pairs it is in, and pairs go through the update in batches. A pair
that both the static filter and dynamic degree look at is judged once, for the shares of both.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, MutableMapping, Sequence

import torch
from torch import Tensor

from evalharness.native.inputs import Frames, planes
from evalharness.native.raft import Raft, padded

__all__ = ["DYNAMIC_SHARE", "STATIC_SHARE", "Known", "pair_strengths"]

CORRELATION_BYTES = 1 << 30
GPU_PART = 16  # of a GPU's memory, where that is more
MOST = 2**31 - 1  # correlations of a batch: their number has to pass as int32
STATIC_SHARE, DYNAMIC_SHARE = 0.02, 0.05  # of the pixels, VBench's

Pair = tuple[int, int]
Known = MutableMapping[Pair, dict[float, float]]  # strengths of a pair by share


def pair_strengths(
    network: Raft,
    frames: Frames,
    pairs: Sequence[Pair],
    *,
    share: float,
    batch: int,
    device: str,
    dtype: torch.dtype = torch.float32,
    known: Known | None = None,
) -> list[float]:
    """Mean flow length, in pixels, of the ``share`` of pixels that move farthest, for each pair.

    Args:
        network: RAFT on ``device`` in ``dtype``.
        frames: uint8 [T, H, W, 3], H and W at least ``raft.MIN_SIDE``; best on ``device`` already.
        pairs: (from, to) indices into ``frames``, in the order in which they should run.
        share: of all pixels, the added border included, as VBench counts.
        batch: pairs at a time, fewer where their correlations would pass 1 GiB (a GPU: a 16th of its
            memory, if that is more).
        device: where to run.
        dtype: of the network; the flow is averaged in float64.
        known: of pairs of these frames by this network; those in it are not run again, others are added.
    """
    known = {} if known is None else known
    fresh = [pair for pair in dict.fromkeys(pairs) if share not in known.get(pair, {})]
    shares = sorted({share, STATIC_SHARE, DYNAMIC_SHARE})
    for pair, strengths in _judged(network, frames, fresh, shares, batch, device, dtype):
        known[pair] = strengths
    return [known[pair][share] for pair in pairs]


def _judged(
    network: Raft,
    frames: Frames,
    pairs: Sequence[Pair],
    shares: Sequence[float],
    batch: int,
    device: str,
    dtype: torch.dtype,
) -> Iterator[tuple[Pair, dict[float, float]]]:
    frames = torch.as_tensor(frames)
    last_use = {index: number for number, pair in enumerate(pairs) for index in pair}
    encoded: dict[int, tuple[Tensor, Tensor]] = {}
    found: list[Tensor] = []
    size = _pairs_at_once(frames.shape[1:3], batch, dtype.itemsize, _correlation_bytes(device))
    for numbers in _batches(len(pairs), size):
        with torch.inference_mode():
            chosen = [pairs[number] for number in numbers]
            fresh = sorted({index for pair in chosen for index in pair} - encoded.keys())
            if fresh:
                images = padded(planes(torch.stack([frames[index] for index in fresh]), device)).to(dtype)
                compared, context = network.features(images)
                encoded |= {index: (compared[i], context[i]) for i, index in enumerate(fresh)}
            first = torch.stack([encoded[a][0] for a, _ in chosen])
            second = torch.stack([encoded[b][0] for _, b in chosen])
            flow = network.flow(first, second, torch.stack([encoded[a][1] for a, _ in chosen]))
            found.append(_strengths(flow, shares))
        encoded = {index: held for index, held in encoded.items() if last_use[index] > numbers[-1]}
    # A GPU works on while it is told what comes next: nothing is fetched from it before all is done.
    rows = torch.cat(found).tolist() if found else []
    for pair, row in zip(pairs, rows, strict=True):
        yield pair, dict(zip(shares, row, strict=True))


def _strengths(flow: Tensor, shares: Sequence[float]) -> Tensor:
    """[B, shares], float64."""
    lengths = flow.float().square().sum(dim=1).sqrt().flatten(1)
    counts = [max(1, int(share * lengths.shape[1])) for share in shares]
    farthest = lengths.topk(max(counts), dim=1).values.double()
    return torch.stack([farthest[:, :count].mean(dim=1) for count in counts], dim=1)


def _correlation_bytes(device: str) -> int:
    if torch.device(device).type != "cuda":
        return CORRELATION_BYTES
    whole: int = torch.cuda.get_device_properties(device).total_memory
    return max(CORRELATION_BYTES, whole // GPU_PART)


def _pairs_at_once(size: Sequence[int], batch: int, itemsize: int, limit: int) -> int:
    cells = -(-size[0] // 8) * -(-size[1] // 8)
    # The levels of the pyramid add a third to the first.
    return max(1, min(batch, MOST // cells**2, int(limit / (cells * cells * itemsize * 4 / 3))))


def _batches(total: int, size: int) -> Iterator[range]:
    for start, end in itertools.pairwise([*range(0, total, size), total]):
        yield range(start, end)
