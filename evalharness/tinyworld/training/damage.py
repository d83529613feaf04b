"""Damage done to renderings on purpose, with a severity that says how much.

Blur, noise and blocking are what ``imaging_quality`` must feel; colour shift and warping change
what a thing looks like and are felt by the consistency features. ``codec`` is the light loss of
H.264 at CRF 10 with 4:2:0 chroma, which every judged frame has gone through.

A severity is 0 for none and tends to 1; each kind's strength is a fixed function of it, so the
judges learn one scale for all. All functions take frames [N, 3, H, W] in [0, 1], H and W
multiples of 8, and a strength for each frame [N]; randomness comes from ``generator``, on the
frames' device.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

NOISE_SCALE = 0.08  # standard deviation at severity 1 - 1/e
BLUR_SCALE = 1.0  # Gaussian width in pixels at severity 1 - 1/e
BLOCK_SCALE = 0.25  # step of the 8x8 DCT quantizer at severity 1 - 1/e
COLOR_SCALE = 0.25  # length of the RGB shift at severity 1 - 1/e
WARP_SCALE = 2.0  # displacement in pixels at severity 1 - 1/e
MAX_SEVERITY = 0.97
BLOCK = 8


def noise_sigma(severity: Tensor) -> Tensor:
    """Standard deviation of the noise that counts as ``severity``."""
    return -NOISE_SCALE * torch.log1p(-severity.clamp(max=MAX_SEVERITY))


def add_noise(frames: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    """Independent Gaussian noise in every value, of ``noise_sigma(severity)``."""
    noise = torch.randn(frames.shape, generator=generator, device=frames.device)
    return (frames + noise * _wide(noise_sigma(severity))).clamp(0.0, 1.0)


def blur(frames: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian blur of width ``BLUR_SCALE * sqrt(-log(1 - severity))`` pixels."""
    del generator
    sigma = BLUR_SCALE * (-torch.log1p(-severity.clamp(max=MAX_SEVERITY))).sqrt().clamp(min=1e-3)
    rows, columns = (_blur_matrix(sigma, size) for size in frames.shape[-2:])
    return rows[:, None] @ frames @ columns[:, None].transpose(-1, -2)


def _blur_matrix(sigma: Tensor, size: int) -> Tensor:
    place = torch.arange(size, device=sigma.device, dtype=torch.float32)
    weight = torch.exp(-0.5 * ((place[:, None] - place) / sigma[:, None, None]) ** 2)
    return weight / weight.sum(-1, keepdim=True)


def block(frames: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    """Quantize 8x8 DCT coefficients with step ``-BLOCK_SCALE * log(1 - severity)``."""
    del generator
    step = -BLOCK_SCALE * torch.log1p(-severity.clamp(max=MAX_SEVERITY))
    return quantize_blocks(frames, step).clamp(0.0, 1.0)


def quantize_blocks(frames: Tensor, step: Tensor) -> Tensor:
    """Round orthonormal 8x8 DCT coefficients to multiples of ``step`` [N]."""
    basis = _dct_basis(frames.device)
    count, channels, height, width = frames.shape
    cells = frames.reshape(
        count, channels, height // BLOCK, BLOCK, width // BLOCK, BLOCK
    )  # [N, 3, h, 8, w, 8]
    coefficients = torch.einsum("ki,nchiwj,lj->nchkwl", basis, cells, basis)
    step = step.clamp(min=1e-4).view(-1, *[1] * 5)
    coefficients = (coefficients / step).round() * step
    return torch.einsum("ki,nchkwl,lj->nchiwj", basis, coefficients, basis).flatten(4, 5).flatten(2, 3)


def _dct_basis(device: torch.device) -> Tensor:
    place = torch.arange(BLOCK, device=device, dtype=torch.float32)
    basis = torch.cos(math.pi / BLOCK * place[:, None] * (place + 0.5)) * math.sqrt(2.0 / BLOCK)
    basis[0] *= math.sqrt(0.5)
    return basis


def shift_color(frames: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    """Add one random RGB vector to the whole frame."""
    shift = torch.randn(len(frames), 3, 1, 1, generator=generator, device=frames.device)
    length = -COLOR_SCALE * torch.log1p(-severity.clamp(max=MAX_SEVERITY))
    return (frames + F.normalize(shift, dim=1) * _wide(length)).clamp(0.0, 1.0)


def warp(frames: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    """Displace by a smooth random field (a 6x6 grid of vectors, interpolated)."""
    height, width = frames.shape[-2:]
    field = torch.randn(len(frames), 2, 6, 6, generator=generator, device=frames.device)
    field = F.interpolate(field, size=(height, width), mode="bicubic", align_corners=False)
    pixels = -WARP_SCALE * torch.log1p(-severity.clamp(max=MAX_SEVERITY))
    still = torch.eye(2, 3, device=frames.device).expand(len(frames), 2, 3)
    grid = F.affine_grid(still, list(frames.shape), align_corners=False)
    offset = field.permute(0, 2, 3, 1) * _wide(pixels) * (2.0 / width)
    return F.grid_sample(frames, grid + offset, align_corners=False, padding_mode="border")


def codec(frames: Tensor, generator: torch.Generator, *, step: tuple[float, float] = (0.004, 0.04)) -> Tensor:
    """Light H.264-like loss: 4:2:0 chroma and DCT rounding with a uniformly drawn step."""
    low, high = step
    steps = low + (high - low) * torch.rand(len(frames), generator=generator, device=frames.device)
    to_yuv = frames.new_tensor(
        [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
    )
    yuv = torch.einsum("ij,njhw->nihw", to_yuv, frames)
    chroma = F.interpolate(F.avg_pool2d(yuv[:, 1:], 2), scale_factor=2, mode="bilinear", align_corners=False)
    yuv = quantize_blocks(torch.cat([yuv[:, :1], chroma], dim=1), steps)
    return torch.einsum("ij,njhw->nihw", torch.linalg.inv(to_yuv), yuv).clamp(0.0, 1.0)


Damage = Callable[[Tensor, Tensor, torch.Generator], Tensor]
QUALITY_DAMAGES: tuple[Damage, ...] = (blur, block, add_noise)
APPEARANCE_DAMAGES: tuple[Damage, ...] = (warp, shift_color, blur, add_noise)


def random_damage(
    frames: Tensor,
    generator: torch.Generator,
    damages: tuple[Damage, ...],
    *,
    chance: float,
    limit: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Apply each damage with probability ``chance``, severities uniform below ``limit``.

    Returns:
        The frames and their total severity [N], ``1 - prod(1 - severity)`` over the damages.
    """
    whole = torch.ones(len(frames), device=frames.device)
    for damage in damages:
        drawn = torch.rand(2, len(frames), generator=generator, device=frames.device)
        severity = MAX_SEVERITY * limit * drawn[0] * (drawn[1] < chance)
        hurt = (severity > 0).nonzero()[:, 0]
        if len(hurt):
            frames = frames.index_copy(0, hurt, damage(frames[hurt], severity[hurt], generator))
        whole = whole * (1.0 - severity)
    return frames, 1.0 - whole


def _wide(strength: Tensor) -> Tensor:
    return strength[:, None, None, None]
