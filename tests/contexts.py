"""What the training contexts of several rooms have in common: a teacher, records, and the plain call."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Batch(NamedTuple):
    inputs: dict[str, Any]
    target: Tensor


class PlainContext:
    """Structurally the harness's MethodContext, but for the batches.

    Attributes:
        records: what was logged.
        teacher_asked: how often the teacher was.
    """

    seed = 0
    device = torch.device("cpu")

    def __init__(self, model: nn.Module, skip_layers: tuple[str, ...] = ()) -> None:
        self.skip_layers = skip_layers
        self.records: list[dict[str, Any]] = []
        self.teacher_asked = 0
        self._teacher = copy.deepcopy(model).eval().requires_grad_(False)

    def teacher(self) -> nn.Module:
        self.teacher_asked += 1
        return self._teacher

    def predict(self, transformer: nn.Module, batch: Batch) -> Tensor:
        out: Tensor = transformer(**batch.inputs)
        return out

    def log(self, record: Mapping[str, Any]) -> None:
        self.records.append(dict(record))

    def track(self, steps: range, what: str) -> Iterator[int]:
        return iter(steps)
