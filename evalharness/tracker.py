"""Watching a training beside ``train.jsonl``: TensorBoard, by accelerate's tracker."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from evalharness.errors import UserError

__all__ = ["TRACKERS", "TensorBoard", "check_tracker"]

TRACKERS = ("none", "tensorboard")
_WRITERS = ("tensorboard", "tensorboardX")


def check_tracker(name: str) -> None:
    """Before any work starts.

    Raises:
        UserError: no such tracker, or nothing is installed that writes its files.
    """
    if name not in TRACKERS:
        raise UserError(f"--track {name}: expected one of {', '.join(TRACKERS)}")
    if name == "tensorboard" and not any(importlib.util.find_spec(writer) for writer in _WRITERS):
        raise UserError(
            "--track tensorboard: nothing here writes its files; install it with: "
            "pip install 'evalharness[tracking]'"
        )


class TensorBoard:
    """Event files of one training in ``folder``, made at the first record.

    ``train.jsonl`` is what counts: a resumed training writes its repeated lines here a second time,
    and TensorBoard shows the later ones.
    """

    def __init__(self, folder: Path) -> None:
        from accelerate import PartialState
        from accelerate.tracking import TensorBoardTracker

        PartialState()  # the tracker asks it whether this is the main process
        self._tracker = TensorBoardTracker(folder.name, folder.parent)
        self._tracker.start()

    def log(self, record: Mapping[str, float | int | str]) -> None:
        """Every number of a line of the training log, at its step."""
        numbers = {
            name: value for name, value in record.items() if name != "step" and not isinstance(value, str)
        }
        self._tracker.log(numbers, step=int(record["step"]))

    def close(self) -> None:
        """Write what a thread still holds."""
        self._tracker.finish()
