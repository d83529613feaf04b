"""A small attention block whose inputs move with the timestep, its batches, and a recording context."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.contexts import Batch, PlainContext


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(self.to_q(x), self.to_k(x), self.to_v(x))


class Block(nn.Module):
    """tokens [B, N, 16] -> [B, N, 8]; the activations' size and mean follow the timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.attn1 = Attention()
        self.norm = nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        level = (timestep / 1000).to(x.dtype)[:, None, None]
        x = x * (0.5 + 2 * level) + level
        out: Tensor = self.down(functional.relu(self.up(self.norm(x + self.attn1(x)))))
        return out


class Context(PlainContext):
    """Structurally the harness's MethodContext; ``trajectories`` only if asked for."""

    drawn = 0

    def batches(self, batch_size: int) -> Iterator[Batch]:
        g = torch.Generator().manual_seed(self.seed)
        while True:
            self.drawn += 1
            x = torch.randn(batch_size, 5, 16, generator=g)
            timestep = torch.randint(0, 1000, (batch_size,), generator=g)
            yield Batch({"x": x, "timestep": timestep}, x[..., :8] * 0.5)

    def predict(self, transformer: nn.Module, batch: Batch) -> Tensor:
        dtype = next(transformer.parameters()).dtype
        x = batch.inputs["x"].to(dtype)
        out: Tensor = transformer(x=x, timestep=batch.inputs["timestep"])
        return out


@pytest.fixture
def make_block() -> Callable[[], Block]:
    """The same weights at every call."""

    def make() -> Block:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return Block().eval()

    return make


@pytest.fixture
def make_context() -> Callable[[nn.Module], Context]:
    return Context
