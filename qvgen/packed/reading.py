"""Linear layers that read the same input read and quantize it once.

Nothing is remembered between calls: whoever calls the layers says which of them read the same
input, so a read cannot be stale. The attention processors and blocks of
``qvgen.integrations`` do that for diffusers' models.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from qvgen.packed.activations import Quantized, quantize_activations, range_ends
from qvgen.packed.backends import Backend
from qvgen.packed.linear import PackedLinear
from qvgen.packed.sources import Read, Source, first_tensor, plain, shape_of


def linears(source: Source, layers: Sequence[nn.Module]) -> list[Tensor]:
    """Outputs [..., N] of several layers that read the same input [..., K].

    Args:
        source: the input, or what it is computed from.
        layers: any that take a tensor. ``PackedLinear`` ones share the read: their outputs are those
            that each gives alone on ``sources.plain(source)``, bit for bit, unless ``triton_int8``
            executes them and the source is no tensor; then rounding in between is left out.
    """
    inputs = reads(source, layers)
    return [layer(x) for layer, x in zip(layers, inputs, strict=True)]


def reads(source: Source, layers: Sequence[nn.Module]) -> list[Tensor | Read]:
    """What to call each of ``layers`` with."""
    if _on_kernels(source, layers):
        return _kernel_reads(source, [layer for layer in layers if isinstance(layer, PackedLinear)])
    x = plain(source)
    if x.numel() == 0 or len(layers) == 1:
        return [x for _ in layers]
    return _plain_reads(x, layers)


def _on_kernels(source: Source, layers: Sequence[nn.Module]) -> bool:
    return (
        bool(layers)
        and first_tensor(source).numel() > 0
        and all(isinstance(layer, PackedLinear) and layer.executed is Backend.TRITON_INT8 for layer in layers)
    )


def _kernel_reads(source: Source, layers: Sequence[PackedLinear]) -> list[Tensor | Read]:
    x, functions = first_tensor(source), layers[0].kernels
    assert functions is not None, "prepare_ was not called"
    specs = [layer.activation_spec(x) for layer in layers]
    own = [layer.has_own_numbers for layer in layers]
    tokens = functions.read_tokens(source, specs, own)
    return [Read(shape_of(source), x.dtype, each) for each in tokens]


def _plain_reads(x: Tensor, layers: Sequence[nn.Module]) -> list[Tensor | Read]:
    """One search for ranges for each granularity, one set of codes where all numbers are the same."""
    ends: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
    known: dict[tuple[int, str, int, bool], Quantized] = {}
    found: list[Tensor | Read] = []
    for layer in layers:
        if not isinstance(layer, PackedLinear) or layer.executed is Backend.TRITON_INT8:
            found.append(x)
            continue
        spec = layer.activation_spec(x)
        grain = (spec.granularity, spec.group_size)
        kind = (spec.bits, *grain, spec.symmetric)
        quantized = None if layer.has_own_numbers else known.get(kind)
        if quantized is None:
            if not spec.static and grain not in ends:
                ends[grain] = range_ends(x, spec)
            quantized = quantize_activations(x, spec, ends.get(grain))
            if not layer.has_own_numbers:
                known[kind] = quantized
        found.append(Read(tuple(x.shape), x.dtype, quantized))
    return found
