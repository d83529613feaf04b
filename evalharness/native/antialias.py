"""Pillow's antialiased bicubic resize of bytes, on any device and to the same bytes.

Pillow weighs the pixels under a kernel that grows with the reduction, with weights in fixed point, along rows
and along columns, and rounds to bytes after each. Which comes first depends on the sizes and on its version
(13 has a rule for tall pictures), and is told from what it makes of one picture of these sizes.
Sums of such weights times bytes are whole numbers below 2^53, so that float64 products hold them exactly.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

__all__ = ["antialiased"]

BITS = 32 - 8 - 2  # of a weight behind the point
REACH = 2.0  # of the cubic, in pixels of the larger of both sizes
SHARPNESS = -0.5  # a of the cubic (Keys 1981)


def antialiased(frames: Tensor, size: tuple[int, int]) -> Tensor | None:
    """uint8 [T, H, W, 3] at ``size`` (rows, columns), uint8; as ``Image.resize`` with BICUBIC does it.

    None where the installed Pillow makes something else of these sizes.
    """
    order = _order(tuple(frames.shape[1:3]), size)
    return None if order is None else _resized(frames, size, order)


def _resized(frames: Tensor, size: tuple[int, int], order: str) -> Tensor:
    """``order``: of "across" (along rows) and "down", which comes first."""
    rows, columns = (
        _weights(old, new, frames.device) for old, new in zip(frames.shape[1:3], size, strict=True)
    )
    x = frames.permute(0, 1, 3, 2).double()  # [T, H, 3, W]
    for way in (order, "down" if order == "across" else "across"):
        if way == "across":
            x = _bytes(x @ columns.T)
        else:
            x = _bytes(rows @ x.flatten(2)).view(len(x), len(rows), 3, -1)
    return x.permute(0, 1, 3, 2).to(torch.uint8)


@functools.lru_cache(maxsize=64)
def _order(old: tuple[int, int], new: tuple[int, int]) -> str | None:
    """What gives the bytes that Pillow makes of black and white noise; None: nothing does."""
    import numpy as np
    from PIL import Image

    picture = torch.randint(0, 2, (1, *old, 3), generator=torch.Generator().manual_seed(0)).mul(255).byte()
    made = Image.fromarray(picture[0].numpy()).resize(new[::-1], Image.Resampling.BICUBIC)
    wanted = torch.from_numpy(np.array(made))
    orders = ("across", "down")
    return next((order for order in orders if torch.equal(_resized(picture, new, order)[0], wanted)), None)


def _bytes(sums: Tensor) -> Tensor:
    """Rounded half up, within 0..255; still float64."""
    return sums.add_(2.0 ** (BITS - 1)).mul_(2.0**-BITS).floor_().clamp_(0.0, 255.0)


@functools.lru_cache(maxsize=16)
def _weights(old: int, new: int, device: torch.device) -> Tensor:
    """Of ``old`` pixels in each of ``new``, whole numbers as float64 [new, old]."""
    with torch.inference_mode(False):
        ratio = old / new
        spread = max(ratio, 1.0)
        weights = torch.zeros(new, old, dtype=torch.float64)
        for place in range(new):
            centre = (place + 0.5) * ratio
            first = max(int(centre - REACH * spread + 0.5), 0)
            last = min(int(centre + REACH * spread + 0.5), old)
            found = [_cubic((pixel - centre + 0.5) * (1.0 / spread)) for pixel in range(first, last)]
            total = 0.0
            for weight in found:  # each addition rounded, as Pillow's; ``sum`` makes up for that
                total += weight
            for pixel, weight in zip(range(first, last), found, strict=True):
                scaled = weight / total * (1 << BITS)
                weights[place, pixel] = int(scaled + 0.5 if scaled >= 0 else scaled - 0.5)
        return weights.to(device)


def _cubic(x: float) -> float:
    x = abs(x)
    if x < 1.0:
        return ((SHARPNESS + 2.0) * x - (SHARPNESS + 3.0)) * x * x + 1.0
    if x < REACH:
        return (((x - 5.0) * x + 8.0) * x - 4.0) * SHARPNESS
    return 0.0
