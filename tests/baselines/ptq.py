"""What the tests of the post-training methods share: a context with real calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from evalharness.calibration import calibrate

Sampler = Callable[[nn.Module, int], None]


class Context:
    """A ``TrainContext`` whose calibration runs ``sampler(model, number)`` for each prompt."""

    seed = 0
    device = torch.device("cpu")

    def __init__(self, model: nn.Module, sampler: Sampler, skip_layers: tuple[str, ...] = ()) -> None:
        self.skip_layers = skip_layers
        self.records: list[dict[str, Any]] = []
        self.needs: list[Any] = []
        self._model, self._sampler = model, sampler

    def calibration(self, needs: Any) -> Mapping[str, Any]:
        self.needs.append(needs)

        def runs() -> Iterator[int]:
            for number in range(needs.prompts):
                self._sampler(self._model, number)
                yield number

        return calibrate(self._model, runs(), needs, self.seed, self.track)

    def teacher(self) -> nn.Module:
        raise AssertionError("post-training methods have no teacher")

    def batches(self, batch_size: int) -> Iterator[Any]:
        raise AssertionError("post-training methods do not train")

    def predict(self, transformer: nn.Module, batch: Any) -> Tensor:
        raise AssertionError("post-training methods do not train")

    def log(self, record: Mapping[str, Any]) -> None:
        self.records.append(dict(record))

    def track(self, steps: range, what: str) -> Iterator[int]:
        return iter(steps)


class Block(nn.Module):
    """q, k and v of one input, an output, and a feed-forward of GELU: 24 channels wide."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(24, 24) for _ in range(3))
        self.to_out = nn.Linear(24, 24)
        self.up, self.down = nn.Linear(24, 48), nn.Linear(48, 24)

    def forward(self, x: Tensor, timestep: Tensor | None = None) -> Tensor:
        scores = self.to_q(x) @ self.to_k(x).transpose(-1, -2) / 5
        mixed = self.to_out(scores.softmax(-1) @ self.to_v(x))
        out: Tensor = mixed + self.down(nn.functional.gelu(self.up(mixed)))
        return out


LAYERS = ("to_q", "to_k", "to_v", "to_out", "up", "down")


def make_block(seed: int = 1) -> Block:
    """Weights with a few large input channels, as transformers have them."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        block = Block().eval()
        with torch.no_grad():
            block.up.weight.mul_(4)
            block.to_out.weight[:, :3].mul_(3)
    return block


def inputs(number: int, rows: int = 40) -> Tensor:
    """Correlated inputs with two outlier channels, [2, rows, 24]."""
    fixed = torch.Generator().manual_seed(99)
    mix = torch.randn(24, 24, generator=fixed) / 5 + torch.eye(24)
    scale = torch.ones(24)
    scale[[4, 17]] = 15.0
    g = torch.Generator().manual_seed(1000 + number)
    return (torch.randn(2, rows, 24, generator=g) @ mix) * scale


def sample(model: nn.Module, number: int) -> None:
    """Two denoising steps."""
    dtype = next(model.parameters()).dtype
    for step in (900, 100):
        x = inputs(2 * number + (step > 500)).to(dtype)
        model(x, timestep=torch.full((2,), step))


def distance(model: nn.Module, reference: nn.Module) -> float:
    """Relative squared error of the output on inputs that calibration did not see."""
    x = inputs(500, rows=200).to(next(reference.parameters()).dtype)
    with torch.no_grad():
        wanted = reference(x).float()
        return float((model(x).float() - wanted).square().sum() / wanted.square().sum())
