"""Where the tests of Triton's kernels run: in its interpreter on the CPU, and on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qvgen.fused import switch

interpreted = pytest.mark.skipif(
    not (switch.INTERPRETED and switch.AVAILABLE), reason="needs Triton and TRITON_INTERPRET=1"
)
DEVICES = [pytest.param("cpu", marks=interpreted), pytest.param("cuda", marks=pytest.mark.cuda)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers, drawn on the CPU, the same for every device."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
