"""A small training for several processes: ``torchrun ... parallel_training.py FOLDER [STOP_AT_BATCH [all]]``.

``all``: with every option that says where things lie and when they are written.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from qvgen.checkpoint import save_quantized
from qvgen.method import QVGen
from tests.qvgen.killed_training import Context

RECIPE: dict[str, Any] = {
    "steps": 22, "batch_size": 3, "accumulate": 4, "lr_weights": 2e-3, "log_every": 2, "log_layers_every": 4,
    "save_every": 6, "validate_every": 6,
}  # fmt: skip


ALL: dict[str, Any] = {"teacher": "sharded", "offload": "moments", "save_async": True}


class Block(nn.Module):
    """Holds its layers in a list of its own, as diffusers' attention and feed-forward do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.ModuleList([nn.Linear(12, 21), nn.GELU(), nn.Linear(21, 12)])

    def forward(self, input: Tensor) -> Tensor:
        for layer in self.net:
            input = layer(input)
        return input


class Blocks(nn.Module):
    """Residual blocks as transformers have them; odd sizes, so that shards are uneven."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.out = nn.Linear(12, 12)

    def forward(self, input: Tensor) -> Tensor:
        for block in self.blocks:
            input = input + block(input)
        out: Tensor = self.out(input)
        return out


class Stopped(Exception):
    pass


class ParallelContext(Context):
    def teacher(self) -> nn.Module:
        return model().eval().requires_grad_(False)

    def validation_batches(self, batch_size: int) -> Any:
        return Context.batches(self, 2 * batch_size)

    def interrupt(self) -> None:
        raise Stopped


def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(12)
        return Blocks()


def train(folder: Path, stop_at: int | None = None, **changes: Any) -> None:
    recipe: Any = {**RECIPE, **changes}
    method = QVGen(w_bits=3, a_bits=4, rank=8, direction="large", recipe=recipe)
    trained = method.apply(model(), ParallelContext(folder, stop_at))
    if not distributed.is_initialized() or distributed.get_rank() == 0:
        save_quantized(trained, folder, {})


if __name__ == "__main__":
    distributed.init_process_group("gloo")
    try:
        stop_at = int(sys.argv[2]) if len(sys.argv) > 2 else None
        train(Path(sys.argv[1]), stop_at, **(ALL if "all" in sys.argv else {}))
    finally:
        distributed.destroy_process_group()
