"""What a training run asks of its surroundings. Structural: any object of this shape will do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn


class TrainBatch(Protocol):
    """Inputs of one model call and the clean target, shaped like the prediction."""

    @property
    def inputs(self) -> dict[str, Any]: ...

    @property
    def target(self) -> torch.Tensor: ...


class TrainContext(Protocol):
    """Teacher, data, prediction, log and progress bar of one run."""

    @property
    def seed(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def skip_layers(self) -> tuple[str, ...]: ...

    def teacher(self) -> nn.Module:
        """The frozen full-precision model, on ``device``, in eval mode."""
        ...

    def batches(self, batch_size: int) -> Iterator[Any]:
        """Endless ``TrainBatch``es on ``device``."""
        ...

    def predict(self, transformer: nn.Module, batch: Any) -> torch.Tensor:
        """Run a model on a batch."""
        ...

    def log(self, record: Mapping[str, float | int | str]) -> None:
        """Append one line to the training log."""
        ...

    def track(self, steps: range, what: str) -> Iterator[int]:
        """Iterate with a progress bar."""
        ...
