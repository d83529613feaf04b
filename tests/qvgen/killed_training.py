"""A small training for a process of its own: ``python killed_training.py FOLDER [KILL_AT_STEP]``.

Logs to FOLDER/log.jsonl and saves its state in FOLDER/state. With a second argument it kills
itself with SIGKILL while that step's batch is being drawn. The model has dropout, so that torch's
random state matters.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from qvgen.checkpoint import save_quantized
from qvgen.method import QVGen


class Batch(NamedTuple):
    inputs: dict[str, Any]
    target: Tensor


class Context:
    seed = 3
    device = torch.device("cpu")
    skip_layers = ()

    def __init__(self, folder: Path, kill_at: int | None = None) -> None:
        self.state_folder = folder / "state"
        self._log, self._kill_at = folder / "log.jsonl", kill_at

    def teacher(self) -> nn.Module:
        return model().eval().requires_grad_(False)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(self.seed)
        number = 0
        while True:
            x = torch.randn(batch_size, 6, 12, generator=generator)
            yield Batch({"input": x}, x)
            number += 1
            if number == self._kill_at:
                self.interrupt()

    def interrupt(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def predict(self, transformer: nn.Module, batch: Batch) -> Tensor:
        out: Tensor = transformer(**batch.inputs)
        return out

    def log(self, record: Mapping[str, float | int | str]) -> None:
        with self._log.open("a") as file:
            file.write(json.dumps(dict(record)) + "\n")

    def rewind_log(self, lines: int) -> None:
        if self._log.exists():
            kept = self._log.read_text().splitlines(keepends=True)[:lines]
            self._log.write_text("".join(kept))

    def track(self, steps: range, what: str) -> Iterator[int]:
        return iter(steps)


def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Dropout(0.2), nn.Linear(24, 12))


RECIPE: dict[str, Any] = {
    "steps": 37, "batch_size": 4, "accumulate": 2, "lr_weights": 2e-3, "loss": "distill+task", "log_every": 4,
    "log_layers_every": 2, "save_every": 5, "save_every_s": 0.0,
}  # fmt: skip


def method(**changes: Any) -> QVGen:
    recipe: Any = {**RECIPE, **changes}
    return QVGen(w_bits=3, a_bits=4, rank=8, direction="random", phi_init="random", hold=0.2, recipe=recipe)


def train(ctx: Context, folder: Path, **changes: Any) -> None:
    """Train, then write the quantized model into ``folder``."""
    torch.manual_seed(0)
    save_quantized(method(**changes).apply(model(), ctx), folder, {})


if __name__ == "__main__":
    out = Path(sys.argv[1])
    train(Context(out, int(sys.argv[2]) if len(sys.argv) > 2 else None), out)
