"""A small world to train in: a two-layer network, its batches, and a context that records."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from qvgen.fused import switch
from tests.contexts import Batch, PlainContext
from tests.qvgen.triton_cases import DEVICES


class Mlp(nn.Module):
    """tokens [B, N, 16] -> [B, N, 8]; one unquantized norm and embedding between."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 48)
        self.norm = nn.LayerNorm(48)
        self.table = nn.Parameter(torch.randn(1, 5, 48) * 0.1)
        self.second = nn.Linear(48, 8, bias=False)

    def forward(self, x: Tensor, timestep: Tensor | None = None) -> Tensor:
        out: Tensor = self.second(torch.nn.functional.gelu(self.norm(self.first(x)) + self.table))
        return out


class Context(PlainContext):
    def batches(self, batch_size: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            x = torch.randn(batch_size, 5, 16, generator=generator)
            timestep = torch.randint(0, 1000, (batch_size,), generator=generator)
            yield Batch({"x": x, "timestep": timestep}, x[..., :8] * 0.5)


@pytest.fixture
def make_model() -> Callable[[], Mlp]:
    """The same weights at every call."""

    def make() -> Mlp:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            return Mlp().eval()

    return make


@pytest.fixture
def make_context() -> Callable[..., Context]:
    return Context


@pytest.fixture
def batch(make_model: Callable[[], Mlp]) -> Batch:
    return next(Context(make_model()).batches(6))


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """For tests of Triton's kernels."""
    if request.param == "cuda" and not switch.AVAILABLE:
        pytest.skip("needs Triton and a C compiler")
    return str(request.param)
