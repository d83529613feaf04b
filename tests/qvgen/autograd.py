"""A quantizer's own backward pass beside autograd in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Call = Callable[[Sequence[Tensor]], Tensor]


def assert_like_autograd(
    leaves: Sequence[Tensor], upstream: Tensor, ours: Call, plain: Call, tolerance: float = 1e-4
) -> None:
    """Outputs and gradients of all leaves; ``plain`` gets them in float64."""
    mine = [leaf.clone().requires_grad_() for leaf in leaves]
    other = [leaf.double().requires_grad_() for leaf in leaves]
    out, expected = ours(mine), plain(other)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-6)
    out.backward(upstream)
    expected.backward(upstream.double())
    for a, b in zip(mine, other, strict=True):
        assert a.grad is not None and b.grad is not None
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=tolerance, atol=tolerance)
