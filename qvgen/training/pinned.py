"""Memory of the host that a GPU reads directly, without what torch's own pinning wastes of it."""

from __future__ import annotations

import torch
from torch import Tensor

_AT_ONCE = 1 << 30  # bytes; torch rounds pinned memory up to powers of two
_ALIGNED = 512


class HostMemory:
    """Room for tensors on the host, pinned where they are for CUDA, in chunks of ``at_once`` bytes.

    A tensor goes into the first chunk with room for it, so that large and small ones fill chunks together;
    one that is larger than a chunk has its own. No place is used again: a chunk goes when it is full and all
    of its tensors are gone.
    """

    def __init__(self, at_once: int = _AT_ONCE) -> None:
        self._at_once = at_once
        self._open: list[tuple[Tensor, int]] = []  # chunks and the bytes used of each

    def like(self, tensor: Tensor, *, pinned: bool) -> Tensor:
        """Empty, of the shape and dtype of ``tensor``; not pinned: memory of its own."""
        if not pinned:
            return torch.empty_like(tensor, device="cpu")
        size = tensor.numel() * tensor.element_size()
        chunk, start = self._room(size)
        return chunk[start : start + size].view(tensor.dtype).view(tensor.shape)

    def _room(self, size: int) -> tuple[Tensor, int]:
        taken = -(-size // _ALIGNED) * _ALIGNED
        for number, (chunk, start) in enumerate(self._open):
            if start + size <= chunk.numel():
                del self._open[number]
                break
        else:
            number, chunk, start = len(self._open), self._chunk(max(size, self._at_once)), 0
        if start + taken < chunk.numel():
            self._open.insert(number, (chunk, start + taken))
        return chunk, start

    def _chunk(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)
