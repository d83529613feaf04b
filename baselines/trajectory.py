"""Training without data: batches along the teacher's own sampling, where the surroundings have them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from qvgen.training.context import TrainContext, extras

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn

Draw = Callable[[int], Iterator[Any]]


def along_trajectory(ctx: TrainContext) -> TrainContext:
    """``ctx`` with its ``trajectories`` for batches; ``ctx`` itself if it has none.

    ``trajectories(batch_size)``, an optional member of a context, gives endless ``TrainBatch``es whose
    inputs are states of the full-precision model's sampler, in its order; their target is that model's
    prediction. From the start, and the same, at every call.
    """
    draw = cast("Draw | None", getattr(ctx, "trajectories", None))
    return ctx if draw is None else _OtherBatches(ctx, draw)


class _OtherBatches:
    """A context like another, but for its batches."""

    def __init__(self, ctx: TrainContext, draw: Draw) -> None:
        self._ctx, self._draw = ctx, draw
        self.seed: int = ctx.seed
        self.device: torch.device = ctx.device
        self.skip_layers: tuple[str, ...] = ctx.skip_layers
        self.state_folder: Path | None = extras(ctx).state_folder
        self.rewind_log = extras(ctx).rewind_log
        self.validation_batches = extras(ctx).validation_batches
        self.sample_videos = extras(ctx).sample_videos

    def batches(self, batch_size: int) -> Iterator[Any]:
        return self._draw(batch_size)

    def teacher(self) -> nn.Module:
        return self._ctx.teacher()

    def predict(self, transformer: nn.Module, batch: Any) -> torch.Tensor:
        return self._ctx.predict(transformer, batch)

    def log(self, record: Mapping[str, float | int | str]) -> None:
        self._ctx.log(record)

    def track(self, steps: range, what: str) -> Iterator[int]:
        return self._ctx.track(steps, what)
