"""The linears of one CogVideoX-2B block."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.measuring import Deadline, compare, held_mb, peak_mb, ratio, recorded, unfused
from qvgen.api import make_clip_context
from qvgen.config import QuantConfig
from qvgen.linear import QuantLinear
from qvgen.official.config import OfficialConfig
from qvgen.official.linear import OfficialQuantLinear, OfficialTimestep
from qvgen.phi_init import attach_phis_

RANK = 32
BLOCK = [(1920, 1920)] * 4 + [(1920, 7680), (7680, 1920)]
TOKENS = 17776
TINY_BLOCK = [(32, 32)] * 4 + [(32, 64), (64, 32)]
TINY_TOKENS = 40
QUANT = QuantConfig(w_bits=4, a_bits=4, learn_clip=True, range_init="minmax")


class Checkpointed(nn.Module):
    """Computes ``inner`` again in the backward pass."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(self.inner, x, use_reentrant=False)
        return out


def official(linear: nn.Linear) -> nn.Module:
    """The released quantizers with Phi, a checkpoint around each of them and around the layer."""
    config, timestep = OfficialConfig(), OfficialTimestep()
    start = OfficialQuantLinear.from_linear(linear, config, timestep)
    layer = OfficialQuantLinear(linear, config, timestep, rank=RANK).to(linear.weight.device)
    with torch.no_grad():
        layer.wquantizer.scale.copy_(start.wquantizer.scale)
        layer.wquantizer.zero_point.copy_(start.wquantizer.zero_point)
        for factor in (layer.wquantizer.L, layer.wquantizer.R):
            factor.normal_(std=0.01)
    for name in ("wquantizer", "aquantizer"):
        setattr(layer, name, Checkpointed(getattr(layer, name)))
    return Checkpointed(layer)


def ours(linear: nn.Linear) -> QuantLinear:
    """Layer of this library with learnt clips and Phi."""
    layer = QuantLinear.from_linear(linear, QUANT, make_clip_context(nn.Module(), QUANT))
    attach_phis_([layer], RANK, "random")
    return layer


def measure_linears(device: torch.device, tiny: bool, repeats: int, limit_s: float) -> dict[str, Any]:
    """Forward and backward of six separate linears, bfloat16, gradients to inputs and all parameters."""
    deadline = Deadline(limit_s)
    torch.manual_seed(0)
    shapes, tokens = (TINY_BLOCK, TINY_TOKENS) if tiny else (BLOCK, TOKENS)
    plain = [nn.Linear(i, o, device=device, dtype=torch.bfloat16) for i, o in shapes]
    inputs = [
        torch.randn(1, tokens, i, device=device, dtype=torch.bfloat16).requires_grad_() for i, _ in shapes
    ]
    grads = [torch.randn(1, tokens, o, device=device, dtype=torch.bfloat16) for _, o in shapes]
    made = [ours(copy.deepcopy(layer)) for layer in plain]
    released = [official(copy.deepcopy(layer)) for layer in plain]
    variants = {
        "plain": _step(plain, inputs, grads),
        "fused": _step(made, inputs, grads),
        "unfused": _step(made, inputs, grads, reference=True),
        "official": _step(released, inputs, grads),
    }
    times: dict[str, Any] = compare(variants, device, repeats, deadline)
    device_times = compare(
        {name: recorded([variants[name]], device) for name in ("plain", "fused")}, device, repeats, deadline
    )
    for name, action in variants.items():
        for module in (*plain, *made, *released):
            module.zero_grad(set_to_none=True)
        before, peak = held_mb(device), peak_mb(action, device)
        times[name]["peak_mb_on_top"] = None if peak is None or before is None else peak - before
    median = {name: times[name]["median_ms"] for name in variants}
    return {
        "ratios": {
            "fused_to_plain": ratio(median["fused"], median["plain"]),
            "official_to_fused": ratio(median["official"], median["fused"]),
            "unfused_to_plain": ratio(median["unfused"], median["plain"]),
            "official_to_plain": ratio(median["official"], median["plain"]),
            "fused_to_plain_as_graphs": ratio(
                device_times["fused"]["median_ms"], device_times["plain"]["median_ms"]
            ),
        },
        "as_graphs": device_times,
        "tokens": tokens,
        "shapes_in_out": shapes,
        "rank": RANK,
        "variants": times,
        "fused_against_unfused": _agreement(made, inputs, grads),
    }


def _step(
    layers: Sequence[nn.Module], inputs: Sequence[Tensor], grads: Sequence[Tensor], reference: bool = False
) -> Callable[[], None]:
    # A flat list, as an optimizer has it: walking modules would cost more than it measures.
    leaves = [*inputs, *(p for layer in layers for p in layer.parameters())]

    def step() -> None:
        with unfused(reference):
            for leaf in leaves:
                leaf.grad = None
            outs = [layer(x) for layer, x in zip(layers, inputs, strict=True)]
            torch.autograd.backward(outs, list(grads))

    return step


def _agreement(
    layers: Sequence[QuantLinear], inputs: Sequence[Tensor], grads: Sequence[Tensor]
) -> dict[str, float]:
    """Largest relative difference, ``|a - b| / |b|``, over layers, of outputs and of each gradient."""
    worst: dict[str, float] = {}
    for layer, x, grad in zip(layers, inputs, grads, strict=True):
        found: list[dict[str, Tensor]] = []
        for reference in (False, True):
            layer.zero_grad(set_to_none=True)
            x.grad = None
            with unfused(reference):
                out = layer(x)
                out.backward(grad)
            named = {n: p.grad for n, p in layer.named_parameters() if p.grad is not None}
            found.append({"output": out.detach(), "input": _gradient(x), **named})
        for name, a in found[0].items():
            b = found[1][name].double()
            worst[name] = max(worst.get(name, 0.0), float((a.double() - b).norm() / b.norm()))
    return worst


def _gradient(x: Tensor) -> Tensor:
    assert x.grad is not None
    return x.grad
