"""What a method works with (``api.MethodContext``), inside a worker."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from evalharness.api import TrainBatch
from evalharness.session import Session

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["StageContext"]

_SECONDS_BETWEEN_EVENTS = 0.2


class StageContext:
    """One method's view of one cell. Satisfies ``MethodContext``."""

    def __init__(self, session: Session, seed: int, train_log: Path) -> None:
        import torch

        self.seed = seed
        self.device: torch.device = torch.device(session.spec.device)
        # A model may look for its linears, so it must hold the unquantized module.
        self.skip_layers = session.full_precision().skip_layers(session.spec.skip_layers)
        self._session = session
        self._train_log = train_log
        self._teacher: nn.Module | None = None

    def teacher(self) -> nn.Module:
        """A frozen full-precision copy, made once."""
        if self._teacher is None:
            self._teacher = copy.deepcopy(self._session.pristine).eval().requires_grad_(False)
        return self._teacher

    def batches(self, batch_size: int) -> Iterator[TrainBatch]:
        return self._session.loaded.batches(batch_size=batch_size, seed=self.seed)

    def predict(self, transformer: nn.Module, batch: TrainBatch) -> torch.Tensor:
        return self._session.loaded.predict(transformer, batch)

    def log(self, record: Mapping[str, float | int | str]) -> None:
        # Not fsynced: a training that is cut short starts over, with a new log.
        with self._train_log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(record)) + "\n")

    def track(self, steps: range, what: str) -> Iterator[int]:
        """Yield the steps; tells the parent how far it is, a few times a second."""
        last = 0.0
        for done, step in enumerate(steps, start=1):
            yield step
            now = time.monotonic()
            if now - last > _SECONDS_BETWEEN_EVENTS or done == len(steps):
                last = now
                self._session.emit({"what": what, "done": done, "total": len(steps)})
