"""What packed linears may read: a tensor, or what becomes one by work that quantizing can take along.

``plain`` is the definition: the tensor that the layers would read. Backends without kernels of their
own compute it; ``triton_int8`` quantizes straight from the operands, without rounding in between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from qvgen.packed.activations import Quantized
    from qvgen.packed.triton_linear import Tokens


class Part(NamedTuple):
    """Neighbouring tokens of each sample, with what modulates them.

    Attributes:
        x: [B, L, K].
        scale: the normed x is multiplied by 1 + scale: anything that broadcasts to [B, 1, K]; or None.
        shift: added after that; None where ``scale`` is.
    """

    x: Tensor
    scale: Tensor | None = None
    shift: Tensor | None = None


class Normed(NamedTuple):
    """LayerNorm and modulation of parts of a sequence, which then stand behind each other.

    Attributes:
        parts: at least one, of one B, K and dtype.
        weight: of the norm, [K], or None; ``bias`` likewise.
        bias: see ``weight``.
        eps: of the norm.
        wide: whether ``plain`` computes in float32 and rounds once (as Wan does), or in the dtype of x.
    """

    parts: tuple[Part, ...]
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    wide: bool


class Gelu(NamedTuple):
    """GELU, by its tanh formula, of x [..., K]."""

    x: Tensor


Source = Tensor | Normed | Gelu


def shape_of(source: Source) -> tuple[int, ...]:
    """Of the tensor that ``plain`` gives."""
    if isinstance(source, Normed):
        first = source.parts[0].x
        return (first.shape[0], sum(part.x.shape[1] for part in source.parts), first.shape[2])
    return tuple((source.x if isinstance(source, Gelu) else source).shape)


def first_tensor(source: Source) -> Tensor:
    """One that has the device and the dtype of the source."""
    if isinstance(source, Normed):
        return source.parts[0].x
    return source.x if isinstance(source, Gelu) else source


def plain(source: Source) -> Tensor:
    """The tensor that a source stands for, operation by operation as diffusers computes it."""
    if isinstance(source, Gelu):
        return functional.gelu(source.x, approximate="tanh")
    if not isinstance(source, Normed):
        return source
    parts = [_plain_part(source, part) for part in source.parts]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _plain_part(source: Normed, part: Part) -> Tensor:
    x, weight, bias = part.x, source.weight, source.bias
    if source.wide:
        x, weight, bias = x.float(), _float(weight), _float(bias)
    y = functional.layer_norm(x, x.shape[-1:], weight, bias, source.eps)
    if part.scale is not None and part.shift is not None:
        y = y * (1 + part.scale) + part.shift
    return y.type_as(part.x)


def _float(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float()


class Read(NamedTuple):
    """An input as a packed linear multiplies it; layers take it in place of the tensor.

    Attributes:
        shape: of the tensor that it stands for, [..., K].
        dtype: of that tensor, and of the results.
        quantized: its integers; ``Tokens`` for the backend ``triton_int8``.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    quantized: Quantized | Tokens
