"""The eight silhouettes of tinyworld as signed distances (negative inside).

All take local coordinates ``u`` (right) and ``v`` (down), in units of the object's radius, any
equal shapes, and return the same shape. Distances are exact or close to it near the outline,
which is all that anti-aliasing needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def ball(u: Tensor, v: Tensor) -> Tensor:
    """A disc."""
    return torch.hypot(u, v) - 0.88


def box(u: Tensor, v: Tensor) -> Tensor:
    """A square."""
    return torch.maximum(u.abs(), v.abs()) - 0.78


def triangle(u: Tensor, v: Tensor) -> Tensor:
    """Equilateral, one corner up."""
    slope = math.sqrt(3.0) / 2.0
    return torch.maximum(slope * u.abs() - 0.5 * v, v) - 0.52


def star(u: Tensor, v: Tensor) -> Tensor:
    """Five points; the outline is a straight line between an outer and an inner corner."""
    outer, inner, sector = 1.08, 0.46, math.pi / 5.0
    angle = torch.atan2(u, -v)
    angle = torch.remainder(angle + sector, 2.0 * sector) - sector
    x, y = torch.hypot(u, v) * torch.cos(angle), torch.hypot(u, v) * torch.sin(angle).abs()
    ex, ey = inner * math.cos(sector) - outer, inner * math.sin(sector)
    length = math.hypot(ex, ey)
    return ((x - outer) * ey - y * ex) / length


def heart(u: Tensor, v: Tensor) -> Tensor:
    """Two discs on top of a corner; symmetric in u."""
    a, w = u.abs(), -v + 0.62
    lobe = torch.hypot(a - 0.42, w - 0.95) - 0.48
    # The flank is the tangent from the lobe down to the tip at (0, -0.35).
    flank = torch.maximum((a - (w + 0.35) * 0.86) / math.hypot(1.0, 0.86), w - 0.95)
    return torch.minimum(lobe, flank)


def ring(u: Tensor, v: Tensor) -> Tensor:
    """An annulus."""
    return (torch.hypot(u, v) - 0.68).abs() - 0.27


def cross(u: Tensor, v: Tensor) -> Tensor:
    """Two equal bars."""
    long, short = torch.maximum(u.abs(), v.abs()), torch.minimum(u.abs(), v.abs())
    return torch.maximum(long - 0.95, short - 0.32)


def moon(u: Tensor, v: Tensor) -> Tensor:
    """A crescent, open to the right."""
    return torch.maximum(torch.hypot(u, v) - 0.95, 0.78 - torch.hypot(u - 0.48, v))


SHAPE_FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ball": ball,
    "box": box,
    "triangle": triangle,
    "star": star,
    "heart": heart,
    "ring": ring,
    "cross": cross,
    "moon": moon,
}

# Where the white highlight sits: off-centre, so that even a ball is seen to spin.
HIGHLIGHTS: dict[str, tuple[float, float]] = {
    "ball": (0.0, -0.45),
    "box": (-0.4, -0.4),
    "triangle": (0.0, -0.4),
    "star": (0.0, -0.5),
    "heart": (-0.42, -0.35),
    "ring": (0.0, -0.68),
    "cross": (0.0, -0.62),
    "moon": (-0.6, 0.0),
}
