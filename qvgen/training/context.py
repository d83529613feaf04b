"""What a training run asks of its surroundings. Structural: any object of this shape will do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn


class TrainBatch(Protocol):
    """Inputs of one model call and the clean target, shaped like the prediction."""

    @property
    def inputs(self) -> dict[str, Any]: ...

    @property
    def target(self) -> torch.Tensor: ...


class TrainContext(Protocol):
    """Teacher, data, prediction, log and progress bar of one run.

    Four more members are used where they exist, see ``Extras``.
    """

    @property
    def seed(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def skip_layers(self) -> tuple[str, ...]: ...

    def teacher(self) -> nn.Module:
        """The frozen full-precision model, on ``device``, in eval mode.

        With ``recipe.teacher`` it is moved or sharded in place, and answers as before: of several
        processes, once all of them call it.
        """
        ...

    def batches(self, batch_size: int) -> Iterator[Any]:
        """Endless ``TrainBatch``es on ``device``; from the start, and the same, at every call."""
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


@dataclass(frozen=True, slots=True)
class Extras:
    """What a context may offer on top of ``TrainContext``, by attributes of these names.

    Attributes:
        state_folder: where a training state is saved and looked for; None: no resuming. Its owner
            deletes it once the trained model is safe.
        rewind_log: called with n before resuming: keep the first n lines of the log.
        validation_batches: as ``batches``, of held-out data.
        sample_videos: called with the model in eval mode and the number of steps taken: make videos
            for people to look at.
    """

    state_folder: Path | None
    rewind_log: Callable[[int], None] | None
    validation_batches: Callable[[int], Iterator[Any]] | None
    sample_videos: Callable[[nn.Module, int], None] | None


def extras(ctx: TrainContext) -> Extras:
    """The optional members of ``ctx``, None for each that it lacks."""
    return Extras(*(getattr(ctx, name, None) for name in Extras.__slots__))
