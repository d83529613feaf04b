"""The fused operators alone, by their device time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import Deadline, compare, recorded
from benchmarks.qat_linears import RANK, TINY_TOKENS, TOKENS
from qvgen.fused import switch

SETS = 8
BF16 = torch.bfloat16


def measure_kernels(device: torch.device, tiny: bool, repeats: int, limit_s: float) -> dict[str, Any]:
    """Time of each operator and the bandwidth that its least traffic would mean.

    ``SETS`` sets of operands take turns, so that a matrix is not found in the cache.
    """
    if not switch.AVAILABLE or (device.type == "cpu" and not switch.INTERPRETED):
        return {"ratios": {}, "skipped": "the fused operators need CUDA and Triton"}
    deadline = Deadline(limit_s)
    torch.manual_seed(0)
    results: dict[str, Any] = {}
    for columns in (32, 64) if tiny else (1920, 7680):
        shape = (TINY_TOKENS if tiny else TOKENS, columns)
        sets = [_token_calls(shape, device) for _ in range(1 if tiny else SETS)]
        results[f"tokens {shape}"] = _measure(sets, shape, (4, 6), device, repeats, deadline)
    for shape in ((32, 64),) if tiny else ((1920, 1920), (7680, 1920), (1920, 7680)):
        sets = [_weight_calls(shape, device) for _ in range(1 if tiny else SETS)]
        results[f"weight {shape}"] = _measure(sets, shape, (6, 10, 4), device, repeats, deadline)
    return {"ratios": {}, "operators": results}


Calls = dict[str, Callable[[], object]]


def _token_calls(shape: tuple[int, int], device: torch.device) -> Calls:
    x, grad = (torch.randn(shape, device=device, dtype=BF16) for _ in range(2))
    clip = torch.full((1,), 0.95, device=device)
    ops = torch.ops.qvgen
    _, low, high = ops.token_fake_quant(x, clip, clip, 15, False, BF16)
    return {
        "forward": partial(ops.token_fake_quant, x, clip, clip, 15, False, BF16),
        "backward": partial(ops.token_fake_quant_backward, grad, x, clip, clip, low, high, 15, False),
    }


def _weight_calls(shape: tuple[int, int], device: torch.device) -> Calls:
    def draw(*size: int) -> Tensor:
        return torch.randn(*size, device=device)

    rows, columns = shape
    weight, grad = draw(*shape), draw(*shape).to(BF16)
    scale, zero = (torch.full((rows, 1), value, device=device) for value in (0.3, 7.5))
    phi = (draw(rows, RANK) * 0.01, torch.ones(RANK, device=device), draw(RANK, columns) * 0.01)
    ops = torch.ops.qvgen
    return {
        "forward": partial(ops.weight_fake_quant, weight, scale, zero, *phi, 15, 0.01, BF16),
        "backward": partial(ops.weight_fake_quant_backward, grad, weight, scale, zero, 15, 0.01),
        "backward of L and R": partial(ops.phi_backward, grad, *phi),
    }


def _measure(
    sets: list[Calls], shape: tuple[int, int], bytes_each: tuple[int, ...], device: torch.device,
    repeats: int, deadline: Deadline,
) -> dict[str, Any]:  # fmt: skip
    variants = {name: recorded([calls[name] for calls in sets], device) for name in sets[0]}
    times: dict[str, Any] = compare(variants, device, repeats, deadline)
    for found, count in zip(times.values(), bytes_each, strict=True):
        for key in ("median_ms", "min_ms", "max_ms"):
            found[key] /= len(sets)
        found["gb_per_s"] = shape[0] * shape[1] * count / found["median_ms"] / 1e6
    return times
