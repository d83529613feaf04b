"""A few milliseconds of the model's own products on this machine. Imports torch."""

from __future__ import annotations

import time
from collections.abc import Callable

from evalharness.machine.costs import Rates
from evalharness.models.video.spec import ModelSpec

__all__ = ["measure"]

_ROWS = {"cuda": 8192, "cpu": 256}
_TOKENS = {"cuda": 8192, "cpu": 512}
_NUMBERS = {"cuda": 1 << 28, "cpu": 1 << 22}
_REPEATS = 3


def measure(spec: ModelSpec, device: str) -> Rates:
    """Rates of ``device`` at the model's width, the best of three each; on cpu with one thread."""
    import torch

    assert spec.shape is not None
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measure(spec.shape.width, device)
    finally:
        torch.set_num_threads(before)


def _measure(width: int, device: str) -> Rates:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    x = torch.randn(_ROWS[device], width, device=device, dtype=dtype)
    weight = torch.randn(width, width, device=device, dtype=dtype)
    heads = torch.randn(1, max(1, width // 128), _TOKENS[device], 128, device=device, dtype=dtype)
    numbers = torch.zeros(_NUMBERS[device], device=device)
    exact, exact_weight = x.float(), weight.float()
    gemm = 2.0 * x.shape[0] * width * width
    attention = 4.0 * heads.shape[1] * heads.shape[2] ** 2 * 128
    with torch.inference_mode():
        return Rates(
            gemm=gemm / _best(lambda: x @ weight, device),
            attention=attention / _best(lambda: scaled_dot_product_attention(heads, heads, heads), device),
            float32=gemm / _best(lambda: exact @ exact_weight, device),
            bandwidth=8.0 * numbers.numel() / _best(numbers.clone, device),
        )


def _best(call: Callable[[], object], device: str) -> float:
    from evalharness.device import synchronize

    call()  # loads kernels
    times = []
    for _ in range(_REPEATS):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return max(min(times), 1e-9)
