"""A small world to train in: a two-layer network, its batches, and a context that records."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from qvgen.fused import switch
from tests.qvgen.triton_cases import DEVICES


class Batch(NamedTuple):
    inputs: dict[str, Any]
    target: Tensor


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


class Context:
    """Structurally the harness's MethodContext."""

    def __init__(self, model: nn.Module, skip_layers: tuple[str, ...] = ()) -> None:
        self.seed = 0
        self.device = torch.device("cpu")
        self.skip_layers = skip_layers
        self.records: list[dict[str, float | int | str]] = []
        self.teacher_asked = 0
        self._teacher = copy.deepcopy(model).eval().requires_grad_(False)

    def teacher(self) -> nn.Module:
        self.teacher_asked += 1
        return self._teacher

    def batches(self, batch_size: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            x = torch.randn(batch_size, 5, 16, generator=generator)
            timestep = torch.randint(0, 1000, (batch_size,), generator=generator)
            yield Batch({"x": x, "timestep": timestep}, x[..., :8] * 0.5)

    def predict(self, transformer: nn.Module, batch: Batch) -> Tensor:
        out: Tensor = transformer(**batch.inputs)
        return out

    def log(self, record: Mapping[str, float | int | str]) -> None:
        self.records.append(dict(record))

    def track(self, steps: range, what: str) -> Iterator[int]:
        return iter(steps)


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
