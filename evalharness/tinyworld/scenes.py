"""The eight animated backgrounds of tinyworld.

Each function paints ``rgb`` [B, T, 3, H, W] in [0, 1] from a ``Canvas``. The animation is slow on
purpose: a background alone must stay below the dynamic-degree threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

TAU = 2.0 * math.pi


class Canvas(NamedTuple):
    """Pixel and time coordinates plus this video's own randomness.

    Attributes:
        x: [1, 1, 1, W] in [0, 1], right.
        y: [1, 1, H, 1] in [0, 1], down.
        t: [1, T, 1, 1] in [0, 1].
        phase: [B, 4] uniform in [0, 1]: what differs from video to video.
        spots: [B, S, 3] uniform in [0, 1]: x, y and brightness phase of small details.
    """

    x: Tensor
    y: Tensor
    t: Tensor
    phase: Tensor
    spots: Tensor

    def shift(self, index: int) -> Tensor:
        """Phase ``index`` as [B, 1, 1, 1]."""
        return self.phase[:, index, None, None, None]


def _rgb(*color: float) -> tuple[float, float, float]:
    return (color[0], color[1], color[2])


def _paint(weight: Tensor, low: tuple[float, float, float], high: tuple[float, float, float]) -> Tensor:
    """Blend two colours by ``weight`` [B, T, H, W]; returns [B, T, 3, H, W]."""
    a, b = weight.new_tensor(low), weight.new_tensor(high)
    return a[:, None, None] + (b - a)[:, None, None] * weight[:, :, None]


def _over(base: Tensor, mask: Tensor, top: Tensor) -> Tensor:
    """Put ``top`` over ``base`` where ``mask`` [B, T, H, W] is 1."""
    return base + (top - base) * mask[:, :, None]


def _soft(distance: Tensor, width: float = 0.02) -> Tensor:
    """1 where ``distance`` is clearly negative, 0 where positive, a ramp of ``width`` between."""
    return (0.5 - distance / width).clamp(0.0, 1.0)


def _field(c: Canvas) -> Tensor:
    """Zeros of the full [B, T, H, W]."""
    return c.x + c.y + c.t + c.shift(0) * 0.0 - c.x - c.y - c.t


def _dots(c: Canvas, *, fall: float, drift: float, radius: float, twinkle: float) -> Tensor:
    """Brightness [B, T, H, W] of small dots that move by ``fall`` and ``drift`` per clip, wrapping."""
    total = _field(c)
    for spot in c.spots.unbind(1):
        sx, sy, phase = (spot[:, i, None, None, None] for i in range(3))
        dx = torch.remainder(c.x - sx - drift * c.t + 0.5, 1.0) - 0.5
        dy = torch.remainder(c.y - sy - fall * c.t + 0.5, 1.0) - 0.5
        light = 1.0 - twinkle * (0.5 + 0.5 * torch.sin(TAU * (c.t + phase)))
        total = torch.maximum(total, light * _soft(torch.hypot(dx, dy) - radius, radius))
    return total


def snowy_field(c: Canvas) -> Tensor:
    """White ground under a pale sky, flakes falling."""
    sky = _paint(c.y + _field(c), _rgb(0.62, 0.7, 0.8), _rgb(0.84, 0.88, 0.93))
    horizon = 0.58 + 0.03 * torch.sin(TAU * (1.2 * c.x + c.shift(0)))
    ground = _paint(
        (c.y - horizon).clamp(0, 0.5) * 2.0 + _field(c), _rgb(0.97, 0.98, 1.0), _rgb(0.82, 0.87, 0.95)
    )
    scene = _over(sky, _soft(horizon - c.y + _field(c)), ground)
    flakes = _dots(c, fall=0.3, drift=0.06, radius=0.014, twinkle=0.0)
    return _over(scene, flakes, torch.ones_like(scene))


def ocean(c: Canvas) -> Tensor:
    """Blue waves that drift."""
    sky = _paint(c.y + _field(c), _rgb(0.55, 0.8, 0.95), _rgb(0.78, 0.92, 0.98))
    wave = torch.sin(TAU * (7.0 * c.y + 0.35 * torch.sin(TAU * (2.0 * c.x + c.shift(0) + 0.35 * c.t))))
    water = _paint(0.5 + 0.5 * wave + _field(c), _rgb(0.05, 0.25, 0.55), _rgb(0.18, 0.5, 0.75))
    return _over(sky, _soft(0.3 - c.y + _field(c)), water)


def desert(c: Canvas) -> Tensor:
    """Dunes with creeping ripples."""
    sky = _paint(c.y + _field(c), _rgb(0.98, 0.8, 0.55), _rgb(1.0, 0.92, 0.75))
    crest = 0.4 + 0.07 * torch.sin(TAU * (0.9 * c.x + c.shift(0)))
    ripple = torch.sin(TAU * (6.0 * (c.y - crest) + 0.8 * c.x + 0.2 * c.t + c.shift(1)))
    sand = _paint(0.5 + 0.5 * ripple + _field(c), _rgb(0.78, 0.57, 0.3), _rgb(0.9, 0.72, 0.44))
    return _over(sky, _soft(crest - c.y + _field(c)), sand)


def forest(c: Canvas) -> Tensor:
    """Dark leaves that sway, trunks."""
    leaves = 0.5 + 0.25 * torch.sin(TAU * (5.0 * c.x + 0.15 * torch.sin(TAU * c.t) + c.shift(0)))
    leaves = leaves + 0.25 * torch.sin(TAU * (6.0 * c.y + c.shift(1) + 0.1 * torch.sin(TAU * c.t)))
    scene = _paint(leaves + _field(c), _rgb(0.03, 0.2, 0.08), _rgb(0.16, 0.42, 0.16))
    trunk = torch.remainder(4.0 * c.x + c.shift(2), 1.0) - 0.5
    mask = _soft(trunk.abs() - 0.12, 0.08) * _soft(0.25 - c.y + _field(c), 0.1)
    return _over(scene, mask, _paint(_field(c) + 0.5, _rgb(0.3, 0.18, 0.08), _rgb(0.36, 0.24, 0.12)))


def night_sky(c: Canvas) -> Tensor:
    """Twinkling points on dark blue."""
    scene = _paint(c.y + _field(c), _rgb(0.02, 0.02, 0.1), _rgb(0.1, 0.08, 0.28))
    stars = _dots(c, fall=0.0, drift=0.05, radius=0.016, twinkle=0.7)
    return _over(scene, stars, torch.ones_like(scene) * 0.98)


def city(c: Canvas) -> Tensor:
    """A skyline whose windows brighten and dim."""
    sky = _paint(c.y + _field(c), _rgb(0.45, 0.4, 0.55), _rgb(0.85, 0.6, 0.55))
    column = torch.floor(5.0 * c.x + 5.0 * c.shift(0))
    height = 0.3 + 0.22 * (0.5 + 0.5 * torch.sin(12.9898 * column))
    walls = _paint(
        _field(c) + 0.3 * torch.sin(4.1 * column) + 0.5, _rgb(0.22, 0.23, 0.28), _rgb(0.36, 0.37, 0.43)
    )
    wx = torch.remainder(15.0 * c.x + 15.0 * c.shift(0), 1.0) - 0.5
    wy = torch.remainder(12.0 * c.y, 1.0) - 0.5
    lit = 0.5 + 0.5 * torch.sin(3.7 * column + 5.3 * torch.floor(12.0 * c.y) + TAU * 0.5 * c.t)
    windows = _soft(torch.maximum(wx.abs(), wy.abs()) - 0.27, 0.15) * lit
    walls = _over(walls, windows, _paint(_field(c), _rgb(0.98, 0.88, 0.5), _rgb(1.0, 0.9, 0.55)))
    return _over(sky, _soft(height - c.y + _field(c)), walls)


def meadow(c: Canvas) -> Tensor:
    """Grass in the wind, flowers."""
    sky = _paint(c.y + _field(c), _rgb(0.6, 0.85, 0.98), _rgb(0.8, 0.95, 1.0))
    blades = torch.sin(TAU * (9.0 * c.x + 0.8 * c.y + 0.12 * torch.sin(TAU * (c.t + c.shift(1)))))
    grass = _paint(0.5 + 0.5 * blades + _field(c), _rgb(0.35, 0.66, 0.22), _rgb(0.47, 0.77, 0.3))
    flowers = _dots(c, fall=0.0, drift=0.0, radius=0.02, twinkle=0.2)
    grass = _over(grass, flowers, _paint(_field(c), _rgb(1.0, 0.75, 0.9), _rgb(1.0, 0.9, 0.6)))
    return _over(sky, _soft(0.25 + 0.02 * torch.sin(TAU * (c.x + c.shift(0))) - c.y + _field(c)), grass)


def volcano(c: Canvas) -> Tensor:
    """Dark rock, glowing veins, rising embers."""
    rock = _paint(c.y + _field(c), _rgb(0.2, 0.1, 0.1), _rgb(0.12, 0.07, 0.07))
    bend = 0.18 * torch.sin(TAU * (1.5 * c.y + c.shift(0))) + 0.06 * torch.sin(TAU * (4.0 * c.y + c.shift(1)))
    vein = torch.remainder(2.0 * c.x + bend + c.shift(2), 1.0) - 0.5
    glow = 0.7 + 0.3 * torch.sin(TAU * (c.t + c.y))
    lava = _paint(glow + _field(c), _rgb(0.75, 0.15, 0.02), _rgb(1.0, 0.55, 0.1))
    scene = _over(rock, _soft(vein.abs() - 0.07, 0.08) + _field(c), lava)
    embers = _dots(c, fall=-0.3, drift=0.03, radius=0.012, twinkle=0.5)
    return _over(scene, embers, _paint(_field(c), _rgb(1.0, 0.75, 0.3), _rgb(1.0, 0.8, 0.4)))


SCENE_FUNCTIONS: dict[str, Callable[[Canvas], Tensor]] = {
    "a snowy field": snowy_field,
    "an ocean": ocean,
    "a desert": desert,
    "a forest": forest,
    "a night sky": night_sky,
    "a city": city,
    "a meadow": meadow,
    "a volcano": volcano,
}
