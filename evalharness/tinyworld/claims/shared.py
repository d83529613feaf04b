"""What all arms of one process share: pipeline, teacher, training clips, the held-out batch."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from evalharness.api import TrainBatch
from evalharness.device import synchronize
from evalharness.executor import WorkerSpec
from evalharness.models.tinyworld import PIPELINE, LoadedTinyWorld, TinyWorld
from evalharness.session import Session
from evalharness.stages.context import StageContext
from evalharness.tinyworld.claims.grid import VALIDATION_SEED, Arm, Grid

if TYPE_CHECKING:
    from torch import nn

    from evalharness.tinyworld.training.text2video import Clips

__all__ = ["ArmContext", "Shared"]


class _LoadedForMany(LoadedTinyWorld):
    """Keeps the encoded clips of every seed: 17 kB a clip, 0.3 GB for 16384."""

    def __init__(self, device: str, folder: Path, training_clips: int) -> None:
        super().__init__(device, folder, training_clips)
        self._kept: dict[int, Clips] = {}
        self._rendering = threading.Lock()

    def _training_clips(self, seed: int) -> Clips:
        with self._rendering:
            if seed not in self._kept:
                self._kept[seed] = super()._training_clips(seed)
                synchronize(self.device.type)  # another lane reads them on another stream
        return self._kept[seed]


class _TinyWorldForMany(TinyWorld):
    def __init__(self, clips: int, folder: Path) -> None:
        super().__init__(folder)
        self.clips = clips

    def load(self, device: str) -> LoadedTinyWorld:
        return _LoadedForMany(device, self.folder, self.clips)


class Shared:
    """Loads each thing when first asked for, once.

    Args:
        grid: its arms are trained.
        device: ``cpu`` or ``cuda``.
        pipeline: folder of a full-precision model of tinyworld's make; the records hold its fingerprint.

    Attributes:
        session: the harness's own, so that arithmetic and plugins are those of ``evalharness run``.
    """

    def __init__(self, grid: Grid, device: str, pipeline: Path = PIPELINE) -> None:
        self.grid = grid
        self.session = Session(
            WorkerSpec(model="tinyworld", protocol="tinyworld", device=device, skip_layers="std")
        )
        self.session.model = _TinyWorldForMany(grid.training_clips, pipeline)

    @cached_property
    def loaded(self) -> LoadedTinyWorld:
        loaded = self.session.loaded
        assert isinstance(loaded, LoadedTinyWorld)
        return loaded

    @cached_property
    def fingerprint(self) -> str:
        """Of the pipeline's files."""
        return self.session.model.fingerprint()

    @cached_property
    def teacher(self) -> nn.Module:
        """A frozen copy of the full-precision transformer; arms read it and change nothing."""
        return copy.deepcopy(self.session.pristine).eval().requires_grad_(False)

    @cached_property
    def held_out(self) -> TrainBatch:
        """The batch on which every arm of every seed is measured: clips and noise of a far-off seed."""
        loaded = self.loaded
        loaded.training_clips = self.grid.validation_clips
        try:
            return next(loaded.batches(batch_size=self.grid.validation_batch, seed=VALIDATION_SEED))
        finally:
            loaded.training_clips = self.grid.training_clips

    def losses(self, module: nn.Module) -> dict[str, float]:
        """Of a finished model on ``held_out``, float32 with the arms' products: exact, or TF32 (``--tf32``).

        ``distill`` is the mean squared error to the teacher's output, ``task`` the one to the model's
        own target: the same two measures whatever loss an arm was trained on.
        """
        import torch
        from torch.nn.functional import mse_loss

        with torch.no_grad():
            output = self.loaded.predict(module, self.held_out).float()
            taught = self.loaded.predict(self.teacher, self.held_out).float()
        distill, task = mse_loss(output, taught), mse_loss(output, self.held_out.target.float())
        return {"distill": float(distill), "task": float(task)}


class ArmContext(StageContext):
    """The harness's context with the shared teacher and the shared held-out batch."""

    def __init__(self, shared: Shared, arm: Arm, train_log: Path) -> None:
        super().__init__(shared.session, arm.cell.seed, train_log)
        self.skip_layers = shared.session.full_precision().skip_layers(arm.skip_layers)
        self._shared = shared

    def teacher(self) -> nn.Module:
        return self._shared.teacher

    def validation_batches(self, batch_size: int) -> Iterator[TrainBatch]:
        """The one held-out batch, for ever; of the grid's size, whatever is asked for."""
        while True:
            yield self._shared.held_out
