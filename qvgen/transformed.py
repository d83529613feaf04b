"""A finished linear whose input is changed before it is quantized: scaled, rotated, shifted.

Post-training methods quantize a weight W' for which ``T(x) W'^T = x W^T`` with T an invertible map of
the input that makes both sides easier to round. SVDQuant adds a low-rank branch in 16 bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from qvgen.config import QuantConfig, check_choice, check_float, check_int
from qvgen.fused import rotate as fused_rotate
from qvgen.hadamard import Hadamard
from qvgen.linear import FrozenQuantLinear
from qvgen.quantizers import ClipContext

INNER = "inner"


@dataclass(frozen=True, slots=True, kw_only=True)
class Transform:
    """What a ``TransformedQuantLinear`` does around its quantized product; stored in checkpoints.

    Attributes:
        scaled: multiply each input channel by a factor of its own.
        rotated: apply the fast Hadamard transform after that.
        rank: columns of the low-rank branch, which reads the scaled, unrotated, unquantized input;
            0: none.
        shift: added to the input before all else (SVDQuant's unsigned activations after GELU).
        paired: the rotation is that of ``hadamard.paired_factors``, which one kernel can apply.
    """

    scaled: bool = False
    rotated: bool = False
    rank: int = 0
    shift: float = 0.0
    paired: bool = False

    def __post_init__(self) -> None:
        for name in ("scaled", "rotated", "paired"):
            check_choice(name, getattr(self, name), (True, False))
        check_int("rank", self.rank, 0, 1 << 16)
        check_float("shift", self.shift, -1e6, 1e6)


class Prepared(NamedTuple):
    """What a transformed layer makes of its input before its own weight comes in; see ``prepared``.

    Attributes:
        shape: of the input, [..., in].
        inner: what ``inner`` is called with.
        hidden: the transformed input times D^T, [..., r]; None without a branch.
    """

    shape: tuple[int, ...]
    inner: Any
    hidden: Tensor | None


class TransformedQuantLinear(nn.Module):
    """``y = Qa(H(m (x + c))) W'^T + (m (x + c)) D^T U^T + b'``; parts that are not asked for are left out.

    State: that of ``inner`` (codes of W', scales, bias b'), ``input_scale`` m float32 [in],
    ``down`` D [r, in] and ``up`` U [out, r] in the dtype the model computes in. New ones hold zeros,
    to be filled by a method or from a checkpoint.

    Attributes:
        twins: number of the layers that transform the same input in the same way (``mark_twins_``); 0: none.
    """

    input_scale: Tensor | None
    down: Tensor | None
    up: Tensor | None

    def __init__(self, inner: FrozenQuantLinear, transform: Transform) -> None:
        super().__init__()
        self.out_features, self.in_features = inner.out_features, inner.in_features
        self.inner = inner
        self.transform = transform
        self.twins = 0
        weight, rank = inner.weight, transform.rank
        device = weight.device
        self.rotation = None
        if transform.rotated:
            self.rotation = Hadamard(self.in_features, device, paired=transform.paired)
        only = Transform(scaled=True, rotated=True, paired=transform.paired)
        per_token = inner.config.a_granularity == "token" and inner.config.a_range == "dynamic"
        self._whole_tokens = per_token and not inner.config.learn_clip
        self._one_pass = transform == only and self._whole_tokens
        scale = torch.zeros(self.in_features, device=device) if transform.scaled else None
        self.register_buffer("input_scale", scale)
        self.register_buffer("down", weight.new_zeros(rank, self.in_features) if rank else None)
        self.register_buffer("up", weight.new_zeros(self.out_features, rank) if rank else None)

    def transformed(self, x: Tensor) -> Tensor:
        """The input of the low-rank branch, [..., in]: shifted and scaled."""
        if self.transform.shift:
            x = x + self.transform.shift
        return x if self.input_scale is None else (x * self.input_scale).to(x.dtype)

    def prepared(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the quantizer reads, [..., in], and the hidden numbers of the branch, [..., r] or None."""
        x = self.transformed(x)
        hidden = None if self.down is None else functional.linear(x, self.down)
        return (x if self.rotation is None else self.rotation(x)), hidden

    def forward(self, x: Tensor | Prepared) -> Tensor:
        """[..., out] from x [..., in], or from what ``prepared`` made of it for layers of one ``twins``."""
        if isinstance(x, Prepared):
            inner, hidden = x.inner, x.hidden
        else:
            fused = self._fused_input(x)
            if fused is not None:
                return functional.linear(fused, self.inner.weight, self.inner.bias)
            inner, hidden = self.fused_read(x) or self.prepared(x)
        y: Tensor = self.inner(inner)
        return y if hidden is None or self.up is None else y + functional.linear(hidden, self.up)

    def fused_read(self, x: Tensor) -> tuple[Any, Tensor | None] | None:
        """What ``prepared`` gives, integers of one kernel for a packed ``inner``; None if it takes more.

        The lower factor of the branch reads the scaled input, which that kernel writes beside its integers.
        """
        packed: Any = self.inner
        if self.input_scale is None or not self._whole_tokens or not hasattr(packed, "scaled_read"):
            return None
        if self.rotation is not None:
            read = packed.rotated_read(x, self.input_scale, self.rotation) if self._one_pass else None
            return None if read is None else (read, None)
        keep = self.down is not None
        made = packed.scaled_read(x, self.input_scale, self.transform.shift, keep=keep)
        if made is None or self.down is None:
            return cast("tuple[Any, Tensor | None] | None", made)
        return made[0], functional.linear(made[1], self.down)

    def _fused_input(self, x: Tensor) -> Tensor | None:
        """The quantized input by one kernel, where there is nothing but scale, rotation and range."""
        config = self.inner.config
        if self.rotation is None or self.input_scale is None or not self._one_pass:
            return None
        if "weight" not in self.inner._buffers:  # packed: it quantizes to integers itself
            return None
        if not fused_rotate.rotation_fits(x, self.input_scale, self.rotation):
            return None
        q_max, symmetric = 2**config.a_bits - 1, config.a_symmetric
        return fused_rotate.rotate_fake_quant(x, self.input_scale, self.rotation, q_max, symmetric)

    def stored_bits(self) -> int:
        """Bits that a checkpoint keeps of the weight: codes, scales, branch, input scale; no bias."""
        matrix = 16 if self.inner.config.store_dtype == "bfloat16" else 32
        own = [(self.input_scale, 32), (self.down, matrix), (self.up, matrix)]
        return self.inner.stored_bits() + sum(t.numel() * bits for t, bits in own if t is not None)

    def macs(self, tokens: int) -> Mapping[tuple[int, int], int]:
        """Multiply-accumulates for ``tokens`` rows of input, by bits of weights and activations.

        The branch and the transform, as executed here (one small product for each factor), at 16/16.
        """
        config = self.inner.config
        counts = Counter({(config.w_bits, config.a_bits): tokens * self.in_features * self.out_features})
        extra = self.transform.rank * (self.in_features + self.out_features)
        if self.rotation is not None:
            extra += self.in_features * sum(self.rotation.factors)
        if extra:
            counts[16, 16] += tokens * extra
        return counts

    @property
    def bias(self) -> nn.Parameter | None:
        """That of ``inner``."""
        return self.inner.bias

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        exact = self.input_scale
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        moved = self.input_scale
        if exact is not None and moved is not None and moved.dtype != exact.dtype:
            self.input_scale = exact.to(moved.device)  # a rounded scale would not cancel the weight's
        return self


def mark_twins_(layers: Sequence[nn.Module], first: int = 1) -> int:
    """Number those of ``layers``, which read one input, that transform it in the same way.

    Their shifts, scales, rotations and lower factors are the same numbers, as SVDQuant's of q, k and v are.

    Args:
        layers: of any kind.
        first: the smallest number to give.

    Returns:
        The next number that is free.
    """
    own = [layer for layer in layers if isinstance(layer, TransformedQuantLinear)]
    for layer in own:
        layer.twins = 0
    for i, layer in enumerate(own):
        others = [other for other in own[i + 1 :] if not other.twins and _alike(layer, other)]
        if not layer.twins and others:
            for one in (layer, *others):
                one.twins = first
            first += 1
    return first


def _alike(a: TransformedQuantLinear, b: TransformedQuantLinear) -> bool:
    pairs = ((a.input_scale, b.input_scale), (a.down, b.down))
    return (
        a.transform == b.transform
        and a.in_features == b.in_features
        and all(
            (x is None and y is None)
            or (x is not None and y is not None and x.dtype == y.dtype and torch.equal(x, y))
            for x, y in pairs
        )
    )


@torch.no_grad()
def frozen_from_codes(
    linear: nn.Linear, config: QuantConfig, codes: Tensor, scale: Tensor, zero_point: Tensor
) -> FrozenQuantLinear:
    """A finished layer from integer codes, in place of ``linear``.

    It takes a copy of the bias, and the device and dtype of the weight.

    Args:
        linear: the full-precision layer.
        config: the quantizers; no learnt clips.
        codes: [out, in], whole numbers from 0 to 2^w_bits - 1.
        scale: float32, of ``quantizers.scale_shape``.
        zero_point: likewise.
    """
    assert not config.learn_clip
    shape = (linear.out_features, linear.in_features)
    weight = linear.weight
    assert isinstance(weight, Tensor)
    bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone())
    layer = FrozenQuantLinear(shape, bias, config, ClipContext(1), device=weight.device, dtype=weight.dtype)
    for name, value in (("codes", codes), ("scale", scale), ("zero_point", zero_point)):
        getattr(layer, name).copy_(value)
    layer.refresh_()
    return layer
