"""Static quantization of activations: a trained step and offset instead of the token's own range."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from qvgen.config import QuantConfig
from qvgen.fake_quant import block_fake_quant
from qvgen.levels import SCALE_FLOOR
from qvgen.quantizers import ClipContext


def static_fake_quant(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    q_max: int,
    grad_scale: float = 1.0,
    *,
    clip_first: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``s (clamp(round(x/s + z), 0, q_max) - z)`` with a given step: LSQ's quantizer, offset by z.

    Args:
        x: [B, ..., C], any float dtype.
        scale: float32, positive; [1], or [B, 1, ..., 1] as ``ClipContext.pick`` gives it.
        zero_point: shape of ``scale``; need not be whole.
        q_max: largest code.
        grad_scale: factor on the gradients of scale and zero point.
        clip_first: see ``weight_fake_quant``.
        dtype: of the result; that of ``x`` if left out.

    Returns:
        Shape of ``x``. With v = x/s + z the gradient to s is ``round(v) - v`` where the
        code was not clamped and ``c - z`` elsewhere (LSQ, equation 3; z makes its codes unsigned).
    """
    scale, zero_point = scale.reshape(-1, 1), zero_point.reshape(-1, 1)
    rows = x.reshape(len(scale), -1)
    # The fused operator works a row of a weight, thousands of columns at most; here a row is a sample.
    out = block_fake_quant(rows, scale, zero_point, q_max, grad_scale, clip_first=clip_first)
    return out.to(x.dtype if dtype is None else dtype).view(x.shape)


class StaticActivationQuantizer(nn.Module):
    """One trained step and offset for all that enters a layer, or one pair for each timestep bucket.

    The step of bucket g is ``exp(log_scale) * norm_scale[g]`` and its zero point
    ``offset - norm_shift[g] / step``. ``norm_scale`` and ``norm_shift`` are constants: 1 and 0, or
    what ``normalise_`` sets, and then quantizing x is quantizing ``(x - shift_g) / scale_g`` with a
    step that all buckets share. Without them each bucket has a step of its own. Nothing is right
    before ``start_`` has given the first step.

    Attributes:
        learns_offset: whether the offset is trained.
        levels: Q of LSQ's gradient scale 1/sqrt(N Q), N features of one sample: codes above zero.
    """

    norm_scale: Tensor
    norm_shift: Tensor
    offset: Tensor

    def __init__(self, config: QuantConfig, context: ClipContext, device: torch.device) -> None:
        super().__init__()
        self.context = context
        self.q_max = 2**config.a_bits - 1
        self.clip_first = config.clip_first
        self.learns_offset = not config.a_symmetric
        self.levels = self.q_max
        self.log_scale = nn.Parameter(torch.zeros(config.buckets, device=device))
        middle = torch.full((config.buckets,), float(2 ** (config.a_bits - 1)), device=device)
        if self.learns_offset:
            self.offset = nn.Parameter(middle)
        else:
            self.register_buffer("offset", middle)
        self.register_buffer("norm_scale", torch.ones(config.buckets, device=device))
        self.register_buffer("norm_shift", torch.zeros(config.buckets, device=device))

    @torch.no_grad()
    def start_(self, scale: float, zero_point: float) -> None:
        """Give every bucket this step, positive, and this zero point."""
        self.log_scale.fill_(math.log(max(scale, SCALE_FLOOR)))
        self.offset.fill_(zero_point)
        self.levels = self.q_max if self.learns_offset else self.q_max - round(zero_point)

    @torch.no_grad()
    def normalise_(self, shift: Tensor, scale: Tensor) -> None:
        """From now on all buckets share one step and offset, of ``(x - shift) / scale``; constants [G]."""
        self.norm_shift.copy_(shift)
        self.norm_scale.copy_(scale.clamp(min=SCALE_FLOOR))
        for name in ("log_scale", "offset"):
            old = getattr(self, name)
            kept = old[:1].detach().clone()
            setattr(self, name, nn.Parameter(kept) if isinstance(old, nn.Parameter) else kept)

    def scale(self) -> Tensor:
        """Steps [G], float32."""
        return self.log_scale.exp() * self.norm_scale

    def factors(self) -> tuple[Tensor, Tensor]:
        """What ``scale`` multiplies. One may be spread over processes while the other is not."""
        return self.log_scale.exp(), self.norm_scale

    def zero_point(self) -> Tensor:
        """Zero points [G], float32, not necessarily whole."""
        return self.offset - self.norm_shift / self.scale()

    def ratios(self) -> None:
        """Nothing is clipped by a share of a range."""
        return None

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        grad_scale = 1 / math.sqrt(max(1, x[0].numel()) * self.levels)
        scale, zero_point = (self.context.pick(r, x) for r in (self.scale(), self.zero_point()))
        return static_fake_quant(
            x, scale, zero_point, self.q_max, grad_scale, clip_first=self.clip_first, dtype=dtype
        )
