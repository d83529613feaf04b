"""Two transformers that share the steps, as one module: what methods quantize and samplers call."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from evalharness.models.video.moves import HOST, move_

if TYPE_CHECKING:
    from evalharness.api import TrainBatch

__all__ = ["IN_A_ROW", "TwoExperts", "same_side"]

IN_A_ROW = 16  # batches of one side, which wait on the host until they are that many


class TwoExperts(nn.Module):
    """Wan2.2-A14B's pair. A call goes to ``high`` from ``boundary`` on, below it to ``low``.

    It has what pipelines and training loops ask of a diffusers transformer. All samples of a call must
    be on the same side.

    Attributes:
        boundary: a timestep, in [0, 1000].
        device: where the expert at work is brought while the other rests on the host; None: both stay
            where they are.
    """

    def __init__(self, high: nn.Module, low: nn.Module, boundary: float) -> None:
        super().__init__()
        self.high, self.low = high, low
        self.boundary = boundary
        self.device: torch.device | None = None

    @property
    def config(self) -> Any:
        return self.high.config

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.high.dtype  # type: ignore[assignment]
        return dtype

    def cache_context(self, *args: Any, **kwargs: Any) -> Any:
        """Of the pipelines; the experts keep no caches."""
        return self.high.cache_context(*args, **kwargs)  # type: ignore[operator]

    def enable_gradient_checkpointing(self) -> None:
        for expert in (self.high, self.low):
            expert.enable_gradient_checkpointing()  # type: ignore[operator]

    def disable_gradient_checkpointing(self) -> None:
        for expert in (self.high, self.low):
            expert.disable_gradient_checkpointing()  # type: ignore[operator]

    def forward(self, hidden_states: Tensor, timestep: Tensor, **rest: Any) -> Any:
        """As the experts' own.

        Raises:
            ValueError: samples on both sides of the boundary.
        """
        above = timestep.detach().reshape(-1) >= self.boundary
        if bool(above.any()) != bool(above.all()):
            raise ValueError(
                f"timesteps on both sides of {self.boundary:g} in one batch; one expert runs a batch"
            )
        used, other = (self.high, self.low) if bool(above.all()) else (self.low, self.high)
        if self.device is not None and next(used.parameters()).device != self.device:
            move_(other, HOST)
            move_(used, self.device)
        return used(hidden_states=hidden_states, timestep=timestep, **rest)


def same_side(batches: Iterator[TrainBatch], model: nn.Module, processes: int) -> Iterator[TrainBatch]:
    """The same batches, those of a pair in such an order that processes never need different experts.

    Processes that share a training take turns: of each ``processes`` batches everyone has one, and all must
    gather the same weights for it. So ``IN_A_ROW`` batches of one side follow each other, on one process as
    well: the order is the same for every number of processes that divides it, and another one for others.
    """
    if not isinstance(model, TwoExperts):
        yield from batches
        return
    in_a_row = math.lcm(IN_A_ROW, processes)
    waiting: dict[bool, list[TrainBatch]] = {True: [], False: []}
    for batch in batches:
        side = waiting[bool(batch.inputs["timestep"].reshape(-1)[0] >= model.boundary)]
        side.append(batch)
        if len(side) == in_a_row:
            yield from side
            side.clear()
