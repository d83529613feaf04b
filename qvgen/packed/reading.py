"""Linear layers that read the same input read and quantize it once.

Nothing is remembered between calls: whoever calls the layers says which of them read the same
input, so a read cannot be stale. The attention processors and blocks of
``qvgen.integrations`` do that for diffusers' models.

Layers whose tensors somebody brings to the device for their calls alone, as accelerate's and diffusers'
offloading by leaves does, are not there yet when a read is made: such a layer reads by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from qvgen.packed.activations import Quantized, quantize_activations, range_ends
from qvgen.packed.backends import Backend
from qvgen.packed.linear import PackedLinear
from qvgen.packed.sources import Read, Source, first_tensor, plain, shape_of
from qvgen.transformed import Prepared, TransformedQuantLinear


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


def linear_gelu(source: Source, layer: nn.Module) -> Tensor:
    """GELU, by its tanh formula, of what ``layer`` gives for ``source``: [..., N].

    ``triton_int8`` computes it where it multiplies, before the one rounding. Where a ``PackedLinear`` of that
    backend reads the result, ``sources.Gelu`` costs less, unless the product does its epilogue while another
    tile is multiplied (``PackedLinear.hides_epilogue``).
    """
    (x,) = reads(source, [layer])
    inner = layer.inner if isinstance(layer, TransformedQuantLinear) else layer
    device = first_tensor(source).device
    if is_here(layer, device) and has_kernels(inner, device) and getattr(layer, "down", None) is None:
        if isinstance(layer, TransformedQuantLinear):
            assert isinstance(x, Tensor), "a layer alone shares no read"
            x, _ = layer.fused_read(x) or layer.prepared(x)
        y: Tensor = inner(x, gelu=True)
        return y
    return functional.gelu(layer(x), approximate="tanh")


def reads(source: Source, layers: Sequence[nn.Module]) -> list[Tensor | Read | Prepared]:
    """What to call each of ``layers`` with.

    Layers that transform the input in the same way (``transformed.mark_twins_``) share the transform, the
    lower factor of the branch, and the read of what it gives.
    """
    twins: dict[int, dict[int, TransformedQuantLinear]] = {}
    device = first_tensor(source).device
    for i, layer in enumerate(layers):
        if isinstance(layer, TransformedQuantLinear) and layer.twins and is_here(layer, device):
            twins.setdefault(layer.twins, {})[i] = layer
    joined = [members for members in twins.values() if len(members) > 1]
    alone = [i for i in range(len(layers)) if not any(i in members for members in joined)]
    found: dict[int, Tensor | Read | Prepared] = {}
    found |= zip(alone, _reads(source, [layers[i] for i in alone]), strict=True)
    x = plain(source) if joined else first_tensor(source)
    for members in joined:
        first, shape = next(iter(members.values())), tuple(x.shape)
        one = first.fused_read(x) if _quantize_alike(members.values(), device) else None
        if one is not None:
            found |= {i: Prepared(shape, *one) for i in members}
            continue
        inner, hidden = first.prepared(x)
        shared = _reads(inner, [layer.inner for layer in members.values()])
        found |= {i: Prepared(shape, read, hidden) for i, read in zip(members, shared, strict=True)}
    return [found[i] for i in range(len(layers))]


def _reads(source: Source, layers: Sequence[nn.Module]) -> list[Tensor | Read]:
    """For layers as they are, without transforms."""
    first = first_tensor(source)
    on_kernels = [has_kernels(layer, first.device) and first.numel() > 0 for layer in layers]
    found: dict[int, Tensor | Read] = {}
    ours = [i for i, has in enumerate(on_kernels) if has]
    others = [i for i, has in enumerate(on_kernels) if not has]
    if ours:
        tokens = _kernel_reads(source, [layers[i] for i in ours])
        found |= dict(zip(ours, tokens, strict=True))
    if others:
        x = plain(source)
        alone = x.numel() == 0 or len(others) == 1
        given = [x] * len(others) if alone else _plain_reads(x, [layers[i] for i in others])
        found |= dict(zip(others, given, strict=True))
    return [found[i] for i in range(len(layers))]


def _quantize_alike(layers: Iterable[TransformedQuantLinear], device: torch.device) -> bool:
    """Whether one set of integers serves all."""
    kinds = {(one.inner.config.a_bits, one.inner.config.a_symmetric) for one in layers}
    return len(kinds) == 1 and all(has_kernels(one.inner, device) for one in layers)


def is_here(layer: nn.Module, device: torch.device) -> bool:
    """Whether a packed layer, or one within a transform, lies on ``device``; others are not looked at."""
    if isinstance(layer, TransformedQuantLinear):
        own = [layer.input_scale, layer.down]
        if layer.rotation is not None:
            own.append(layer.rotation.get_buffer("factor_0"))
        return is_here(layer.inner, device) and all(t is None or t.device == device for t in own)
    return not isinstance(layer, PackedLinear) or layer.lies_on(device)


def has_kernels(layer: nn.Module, device: torch.device) -> bool:
    """Whether ``triton_int8`` executes it, and it lies on ``device``."""
    if not isinstance(layer, PackedLinear) or not layer.lies_on(device):
        return False
    layer.settle_()
    return layer.executed is Backend.TRITON_INT8


def _kernel_reads(source: Source, layers: Sequence[nn.Module]) -> list[Tensor | Read]:
    packed = [layer for layer in layers if isinstance(layer, PackedLinear)]
    x, functions = first_tensor(source), packed[0].kernels
    assert functions is not None, "prepare_ was not called"
    specs = [layer.activation_spec(x) for layer in packed]
    own = [layer.has_own_numbers for layer in packed]
    tokens = functions.read_tokens(source, specs, own)
    return [Read(shape_of(source), x.dtype, each) for each in tokens]


def _plain_reads(x: Tensor, layers: Sequence[nn.Module]) -> list[Tensor | Read]:
    """One search for ranges for each granularity, one set of codes where all numbers are the same."""
    ends: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
    known: dict[tuple[int, str, int, bool], Quantized] = {}
    found: list[Tensor | Read] = []
    for layer in layers:
        if not isinstance(layer, PackedLinear) or not layer.lies_on(x.device):
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
