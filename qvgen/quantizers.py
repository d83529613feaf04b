"""The quantizers as modules: learnable weight scales, dynamic activation ranges, timestep clips."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from qvgen.config import QuantConfig
from qvgen.fake_quant import token_fake_quant, weight_codes, weight_fake_quant
from qvgen.levels import SCALE_FLOOR, positive_levels
from qvgen.ranges import minmax_range, scale_and_zero_point, search_range

TIMESTEPS = 1000


class WeightQuantizer(nn.Module):
    """LSQ or LSQ+ for a weight matrix; scale and zero point per channel, group or matrix.

    Codes are ``clamp(round(w/s + z), 0, 2^b - 1)`` with s, z in float32, of ``scale_shape``.

    Parametrisation of the scale. LSQ multiplies the gradient of s by 1/sqrt(N * Q) (N weights share
    s, Q is its largest positive code: 2^b - 1, or 2^(b-1) - 1 where symmetric) so that a step of
    SGD changes s and w in proportion. AdamW divides by the gradient's own size and so undoes any
    constant factor: a learning rate eta moves s by about eta each step however small s is. Scales
    are about 0.01 to 0.1, so what is gentle for weights is up to one per cent of s a step, and
    training s directly at 1e-4 was seen to diverge. The logarithm makes eta a *relative* step (s
    changes by the factor e^eta), the same for every layer, and keeps s positive. So ``log`` is the
    default, with its own learning rate (5e-4 was stable); ``linear`` with 3e-5 is the authors'
    setting, a relative step of 3e-5 / s. The LSQ factor is kept in both: Adam ignores it, but
    clipping by the global gradient norm does not.
    """

    log_scale: Tensor | None
    linear_scale: Tensor | None
    zero_point: Tensor

    def __init__(self, weight: Tensor, config: QuantConfig) -> None:
        super().__init__()
        self.q_max = 2**config.w_bits - 1
        self.clip_first = config.clip_first
        blocks = math.prod(scale_shape((weight.shape[0], weight.shape[1]), config))
        levels = positive_levels(self.q_max, config.w_symmetric)
        self.grad_scale = 1 / math.sqrt(weight.numel() // blocks * levels)
        scale, zero_point = initial_scale(weight.detach(), config)
        is_log = config.scale_param == "log"
        self.log_scale = nn.Parameter(scale.log()) if is_log else None
        self.linear_scale = None if is_log else nn.Parameter(scale)
        if config.learns_zero_point:
            self.zero_point = nn.Parameter(zero_point)
        else:
            self.register_buffer("zero_point", zero_point)

    def scale(self) -> Tensor:
        """Float32, of ``scale_shape``."""
        if self.log_scale is not None:
            return self.log_scale.exp()
        assert self.linear_scale is not None
        return self.linear_scale

    def forward(
        self,
        weight: Tensor,
        phi: tuple[Tensor, Tensor, Tensor] | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        return weight_fake_quant(
            weight,
            self.scale(),
            self.zero_point,
            self.q_max,
            self.grad_scale,
            phi=phi,
            dtype=dtype,
            clip_first=self.clip_first,
        )

    @torch.no_grad()
    def codes(self, weight: Tensor) -> Tensor:
        """uint8 codes of ``weight``, [out, in]."""
        return weight_codes(weight, self.scale(), self.zero_point, self.q_max).to(torch.uint8)


def scale_shape(shape: tuple[int, int], config: QuantConfig) -> tuple[int, int]:
    """Shape of scale and zero point of a weight [out, in]: [out, 1], [out, in / group] or [1, 1].

    Raises:
        ValueError: groups that do not fill a row.
    """
    if config.w_granularity == "tensor":
        return 1, 1
    if config.w_granularity == "channel":
        return shape[0], 1
    return shape[0], group_count("w_group_size", config.w_group_size, shape[1])


def group_count(name: str, size: int, channels: int) -> int:
    """How many groups of ``size`` fill ``channels``; ValueError, with the option's name, if none do."""
    if channels % size:
        raise ValueError(f"{name} is {size}, which does not divide {channels} inputs; choose a divisor")
    return channels // size


@torch.no_grad()
def initial_scale(weight: Tensor, config: QuantConfig) -> tuple[Tensor, Tensor]:
    """Scale and zero point, of ``scale_shape``, that ``config`` asks for as a start.

    Raises:
        ValueError: the weight holds NaN or infinity, or groups do not fill its rows.
    """
    if not torch.isfinite(weight).all():
        raise ValueError("a weight to quantize holds NaN or infinity; the model itself is broken")
    shape = scale_shape((weight.shape[0], weight.shape[1]), config)
    rows = weight.reshape(math.prod(shape), -1)
    q_max, integer, symmetric = 2**config.w_bits - 1, config.zero_point == "fixed", config.w_symmetric
    if config.range_init == "lsq":
        levels = positive_levels(q_max, symmetric)
        scale = 2 * rows.float().abs().mean(-1, keepdim=True) / math.sqrt(levels)
        scale = scale.clamp(min=SCALE_FLOOR)
        return scale.view(shape), torch.full_like(scale, levels + 1).view(shape)
    if config.range_init == "search":
        low, high = search_range(rows, q_max, integer_zero=integer, symmetric=symmetric)
    else:
        low, high = minmax_range(rows)
    scale, zero_point = scale_and_zero_point(low, high, q_max, integer_zero=integer, symmetric=symmetric)
    return scale.view(shape), zero_point.view(shape)


class ClipContext:
    """The timestep of the pass that is running, shared by all layers of one model.

    A pre-hook of the model sets it from the ``timestep`` argument, so training, sampling and both
    halves of classifier-free guidance agree without their doing anything.
    """

    def __init__(self, buckets: int) -> None:
        self.buckets = buckets
        self.bucket: Tensor | None = None

    def set_timestep(self, timestep: Tensor) -> None:
        """Take the diffusion timesteps, [B] or a scalar, in [0, 1000); those outside count as the ends.

        Raises:
            ValueError: NaN or infinity; looked for where that costs no wait, on a CPU and not compiled.
        """
        checked = timestep.device.type == "cpu" and not torch.compiler.is_compiling()
        if checked and not bool(timestep.isfinite().all()):
            raise ValueError("a timestep is NaN or infinite; clips are chosen by it")
        index = torch.floor(timestep.float().reshape(-1) * self.buckets / TIMESTEPS).long()
        self.bucket = index.clamp(0, self.buckets - 1)

    def pick(self, ratios: Tensor, x: Tensor) -> Tensor:
        """From one ratio a bucket [G], the ones for ``x`` [B, ..., C]: [B, 1, ..., 1] or [1].

        Raises:
            ValueError: several buckets but no timestep, or one of another batch size.
        """
        if self.buckets == 1:
            return ratios
        if self.bucket is None:
            raise ValueError("clips depend on the timestep: call the model with timestep=..., or set it")
        if len(self.bucket) not in (1, x.shape[0]):
            raise ValueError(f"{len(self.bucket)} timesteps for a batch of {x.shape[0]}")
        return ratios[self.bucket].view(-1, *(1,) * (x.dim() - 1))


def activation_fake_quant(
    x: Tensor, lower: Tensor, upper: Tensor, config: QuantConfig, dtype: torch.dtype | None = None
) -> Tensor:
    """Fake quantization of activations with the granularity, bits and symmetry of ``config``.

    ``tensor`` means one range for all tokens and channels of a *sample* (first dimension): a range
    over the whole batch would make a video depend on what it is batched with.

    Args:
        x: [B, ..., C].
        lower: share of the negative range kept, [1] or [B, 1, ..., 1] as ``ClipContext.pick`` gives it.
        upper: share of the positive range kept, likewise.
        config: the quantizers.
        dtype: of the result; that of ``x`` if left out.

    Returns:
        Shape of ``x``.

    Raises:
        ValueError: groups that do not fill a token.
    """
    q_max, symmetric = 2**config.a_bits - 1, config.a_symmetric
    if config.a_granularity == "token":
        return token_fake_quant(x, lower, upper, q_max, symmetric=symmetric, dtype=dtype)
    if config.a_granularity == "tensor":
        rows = x.flatten(1)
        lower, upper = (r.reshape(-1, 1) for r in (lower, upper))
    else:
        rows = x.unflatten(-1, (group_count("a_group_size", config.a_group_size, x.shape[-1]), -1))
        lower, upper = (r.unsqueeze(-1) for r in (lower, upper))
    return token_fake_quant(rows, lower, upper, q_max, symmetric=symmetric, dtype=dtype).reshape(x.shape)


class ActivationQuantizer(nn.Module):
    """Dynamic quantizer; with ``learn_clip`` it trains the share of the range kept.

    ``upper`` and ``lower`` are logits [G]; the ratios are their sigmoids, applied once.
    """

    upper: Tensor | None
    lower: Tensor | None

    def __init__(self, config: QuantConfig, context: ClipContext, device: torch.device) -> None:
        super().__init__()
        self.config = config
        self.context = context
        self.upper = self.lower = None
        if config.learn_clip:
            logit = math.log(config.clip_init / (1 - config.clip_init))
            start = torch.full((config.clip_buckets,), logit, device=device)
            self.upper = nn.Parameter(start)
            self.lower = nn.Parameter(start.clone())
        self.register_buffer("_whole", torch.ones(1, device=device), persistent=False)

    def ratios(self) -> tuple[Tensor, Tensor] | None:
        """Lower and upper clip ratios [G] in (0, 1), or None where nothing is clipped."""
        if self.lower is None or self.upper is None:
            return None
        return torch.sigmoid(self.lower), torch.sigmoid(self.upper)

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        ratios = self.ratios()
        if ratios is None:
            whole = self.get_buffer("_whole")
            return activation_fake_quant(x, whole, whole, self.config, dtype)
        lower, upper = (self.context.pick(r, x) for r in ratios)
        return activation_fake_quant(x, lower, upper, self.config, dtype)
