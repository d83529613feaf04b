"""What a method works with (``api.MethodContext``), inside a worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from evalharness import trainlog
from evalharness.api import CalibrationNeeds, LayerStatistics, TrainBatch
from evalharness.calibration import Statistics, calibrate, needs_key
from evalharness.calibration_files import held, read_statistics, write_statistics
from evalharness.hessians import budget_of
from evalharness.seeds import video_seed
from evalharness.session import Session
from evalharness.store import atomic_write_bytes
from evalharness.tracker import TensorBoard
from evalharness.video import encode_video

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["StageContext"]

_SECONDS_BETWEEN_EVENTS = 0.2
_VALIDATION_SEED = 1 << 20
_WATCHED_PROMPTS = 4


class StageContext:
    """One method's view of one cell. Satisfies ``MethodContext``, with its optional members.

    Attributes:
        state_folder: where a method may save what it needs to go on after a kill; kept until the
            cell is finished. None: the cell cannot be resumed.
    """

    def __init__(
        self,
        session: Session,
        seed: int,
        train_log: Path,
        state_folder: Path | None = None,
        calibration_folder: Path | None = None,
    ) -> None:
        import torch

        self.seed = seed
        self.device: torch.device = torch.device(session.spec.device)
        # A model may look for its linears, so it must hold the unquantized module.
        self.skip_layers = session.full_precision().skip_layers(session.spec.skip_layers)
        self.state_folder = state_folder
        self._session = session
        self._train_log = train_log
        self._calibration_folder = calibration_folder
        self._teacher: nn.Module | None = None
        self._tracker: TensorBoard | None = None

    def teacher(self) -> nn.Module:
        """The frozen full-precision model, made once; no other module shares its tensors."""
        if self._teacher is None:
            self._teacher = self._session.fresh_transformer().eval().requires_grad_(False)
            lend = getattr(self._session.loaded, "lend_teacher", None)
            if lend is not None:
                lend(self._teacher)
        return self._teacher

    def batches(self, batch_size: int) -> Iterator[TrainBatch]:
        return self._session.loaded.batches(batch_size=batch_size, seed=self.seed)

    def validation_batches(self, batch_size: int) -> Iterator[TrainBatch]:
        """Batches of data and noise that ``batches`` does not draw: those of a far-off seed.

        A model that prepares many clips for ``batches`` may offer ``few_batches``, which does not.
        """
        loaded = self._session.loaded
        draw = getattr(loaded, "few_batches", loaded.batches)
        drawn: Iterator[TrainBatch] = draw(batch_size=batch_size, seed=self.seed + _VALIDATION_SEED)
        return drawn

    @property
    def trajectories(self) -> Callable[[int], Iterator[TrainBatch]] | None:
        """Batches along the full-precision model's own sampling; None where the model has none.

        They come from the loaded model's optional ``trajectories(transformer, batch_size=, seed=)``.
        """
        draw = getattr(self._session.loaded, "trajectories", None)
        if draw is None:
            return None
        return lambda batch_size: draw(self.teacher(), batch_size=batch_size, seed=self.seed)

    def calibration(self, needs: CalibrationNeeds) -> Mapping[str, LayerStatistics]:
        """Statistics of the layers' inputs while the full-precision model samples calibration prompts.

        The worker keeps the last answer, so that the next cell with the same needs has it at once, and
        the run folder keeps all of them. An answer may hold Hessians that were not asked for.

        Raises:
            ValueError: a model without ``calibration_runs``; see ``evalharness.calibration.calibrate``.
        """
        key = needs_key(needs, self.seed)
        known, with_hessian, found = self._session.calibration
        if known != key or (needs.hessian and not with_hessian):
            self._session.calibration = ("", False, {})
            found = self._stored_calibration(needs, key)
            self._session.calibration = (key, _with_hessians(found), found)
        return found

    def _stored_calibration(self, needs: CalibrationNeeds, key: str) -> Mapping[str, Statistics]:
        """From the run folder; what is not there is made and left there, by one worker at a time."""
        if self._calibration_folder is None:
            return self._calibrate(needs)
        path = self._calibration_folder / f"{key[:32]}.safetensors"
        with held(path):
            stored = read_statistics(path, self.device, budget_of(self.device))
            if stored is not None and (_with_hessians(stored) or not needs.hessian):
                return stored
            found = self._calibrate(needs)
            write_statistics(path, found)
        return found

    def _calibrate(self, needs: CalibrationNeeds) -> Mapping[str, Statistics]:
        loaded = self._session.full_precision()
        runs = getattr(loaded, "calibration_runs", None)
        if runs is None:
            raise ValueError(
                f"model {self._session.spec.model} cannot calibrate: its plugin lacks "
                "calibration_runs(seed=...); choose methods that need none or training"
            )
        room = budget_of(self.device) if needs.hessian else None
        return calibrate(loaded.transformer, runs(seed=self.seed), needs, self.seed, self.track, room)

    def predict(self, transformer: nn.Module, batch: TrainBatch) -> torch.Tensor:
        return self._session.loaded.predict(transformer, batch)

    def log(self, record: Mapping[str, float | int | str]) -> None:
        trainlog.add_line(self._train_log, record, sums=self.state_folder is not None)
        if self._session.spec.track == "tensorboard":
            if self._tracker is None:
                self._tracker = TensorBoard(self._train_log.parent / "tensorboard")
            self._tracker.log(record)

    def close(self) -> None:
        """No line will follow."""
        if self._tracker is not None:
            self._tracker.close()

    def sample_videos(self, transformer: nn.Module, step: int) -> None:
        """Videos of a model in training, to look at: ``watch/step-000200/<prompt id>.mp4``.

        The protocol's first prompts, seeds as in generation. They are never scored.
        """
        loaded = self._session.loaded
        folder = self._train_log.parent / "watch" / f"step-{step:06d}"
        with self._session.using(transformer):
            for prompt in list(self._session.prompts.values())[:_WATCHED_PROMPTS]:
                [frames] = loaded.generate([prompt.text], [video_seed(self.seed, prompt.id, 0)])
                data = encode_video(frames, self._session.model.settings.fps)
                atomic_write_bytes(folder / f"{prompt.id}.mp4", data)

    def rewind_log(self, lines: int) -> None:
        """Keep the first ``lines`` lines of the log: a resumed training writes the others again."""
        trainlog.rewind(self._train_log, lines)

    def track(self, steps: range, what: str) -> Iterator[int]:
        """Yield the steps; tells the parent how far it is, a few times a second."""
        last = 0.0
        for done, step in enumerate(steps, start=1):
            yield step
            now = time.monotonic()
            if now - last > _SECONDS_BETWEEN_EVENTS or done == len(steps):
                last = now
                self._session.emit({"what": what, "done": done, "total": len(steps)})


def _with_hessians(found: Mapping[str, Statistics]) -> bool:
    return all(layer.stored_hessian is not None for layer in found.values())
