"""Finished arms read back from their folders, and the numbers that one training gives."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from evalharness.config import parse_bits
from evalharness.errors import UserError
from evalharness.store import JsonLines, read_json

__all__ = [
    "LOG_NAME",
    "NEGLIGIBLE",
    "RECORD_NAME",
    "Run",
    "Setting",
    "by_setting",
    "finals",
    "from_published",
    "read_runs",
]

RECORD_NAME = "record.json"
LOG_NAME = "train.jsonl"
_SIGMA = "phi_sigma/"
NEGLIGIBLE = 14.0  # the paper's threshold, as the trainings' own ``phi_negligible`` has it


class Setting(NamedTuple):
    """What two arms must share to be compared."""

    w_bits: int
    a_bits: int
    skip_layers: str
    axes: tuple[tuple[str, str], ...] = ()

    @property
    def title(self) -> str:
        parts = [f"W{self.w_bits}A{self.a_bits}", *(f"{axis} {point}" for axis, point in self.axes)]
        return ", ".join(parts + ([] if self.skip_layers == "std" else [f"skip {self.skip_layers}"]))

    @property
    def order(self) -> tuple[Any, ...]:
        return (-self.w_bits, -self.a_bits, self.skip_layers != "std", self.axes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training.

    Attributes:
        distill: held-out mean squared error of the exported model to the teacher; None if it diverged.
        task: the same to the model's own target.
        log: the lines of ``train.jsonl``.
        record: ``record.json``.
    """

    arm: str
    setting: Setting
    seed: int
    distill: float | None
    task: float | None
    log: Sequence[Mapping[str, Any]]
    record: Mapping[str, Any] = field(default_factory=dict)

    def curve(self, name: str) -> dict[int, float]:
        """Step -> logged value, where there is one."""
        return {int(row["step"]): float(row[name]) for row in self.log if name in row}

    def mean(self, name: str, begin: float = 0.0, end: float = 1.0) -> float | None:
        """Mean of a logged quantity over the lines in ``(begin, end]`` of the training."""
        curve = self.curve(name)
        last = max(curve, default=0)
        values = [value for step, value in curve.items() if begin * last < step <= end * last]
        return statistics.fmean(values) if values else None

    @property
    def with_phi(self) -> float | None:
        """Held-out loss at the last step, before what was left of Phi was removed."""
        return self._last("val_loss")

    @property
    def without_phi(self) -> float | None:
        """Held-out loss after that."""
        return self._last("val_loss_end")

    def spectrum(self) -> dict[int, list[float]]:
        """Step -> singular values of Phi over the layer's largest, descending, mean over layers."""
        found = {}
        for row in self.log:
            layers = [_floats(text) for key, text in row.items() if key.startswith(_SIGMA)]
            if layers := [values for values in layers if values and values[0] > 0]:
                width = min(len(values) for values in layers)
                found[int(row["step"])] = [
                    statistics.fmean(values[place] / values[0] for values in layers) for place in range(width)
                ]
        return found

    def negligible(self) -> dict[int, float]:
        """Step -> share of Phi's values at least 14 times smaller than the largest, mean over layers."""
        found = {}
        for row in self.log:
            layers = [_floats(text) for key, text in row.items() if key.startswith(_SIGMA)]
            shares = [
                statistics.fmean(value * NEGLIGIBLE <= values[0] for value in values)
                for values in layers
                if values and values[0] > 0
            ]
            if shares:
                found[int(row["step"])] = statistics.fmean(shares)
        return found

    def _last(self, name: str) -> float | None:
        value = self.log[-1].get(name) if self.log else None
        return None if value is None else float(value)


def read_runs(folder: Path) -> list[Run]:
    """All finished arms under ``folder``/arms, by name.

    Raises:
        UserError: none are there, or a file is damaged.
    """
    runs = list(_runs(folder / "arms"))
    if not runs:
        raise UserError(f"--records {folder}: no arms/*/{RECORD_NAME}; train some first (claims.arms)")
    return runs


def _runs(folder: Path) -> Iterator[Run]:
    for path in sorted(folder.glob(f"*/{RECORD_NAME}")):
        record = read_json(path) or {}
        final = record.get("final") or {}
        try:
            axes = tuple(sorted(record["axes"].items()))
            run = Run(
                arm=record["arm"],
                setting=Setting(record["w_bits"], record["a_bits"], record["skip_layers"], axes),
                seed=record["seed"],
                distill=final.get("distill"),
                task=final.get("task"),
                log=JsonLines(path.parent / LOG_NAME).read(),
                record=record,
            )
        except KeyError as error:
            raise UserError(f"{path}: has no {error}; delete its folder to train it again") from error
        if run.distill is not None:
            _check_finite(path, final)
            for row in run.log:
                _check_finite(path.parent / LOG_NAME, row)
        yield run


def _check_finite(path: Path, row: Mapping[str, Any]) -> None:
    """Refuse to compare by numbers that are none.

    Raises:
        UserError: NaN or infinity in what is said to be a training that did not diverge.
    """
    for name, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(
                f"{path}: {name} is {value}, of a training without an error; delete its folder to train it "
                "again"
            )


def from_published(folder: Path, methods: Sequence[str]) -> list[Run]:
    """Logs named ``<method>-w3a3.train.jsonl`` of one seed; the last validation is the final loss.

    Raises:
        UserError: none of these methods there, or a log without a line.
    """
    runs = []
    for path in sorted(folder.glob("*.train.jsonl")):
        method, _, bits = path.name.removesuffix(".train.jsonl").rpartition("-")
        if method not in methods:
            continue
        log = JsonLines(path).read()
        if not log:
            raise UserError(f"{path}: no whole line; a log of a finished training is needed")
        [width] = parse_bits([bits])
        last = log[-1].get("val_loss_end", log[-1].get("val_loss"))
        setting = Setting(width.w, width.a, "std")
        runs.append(Run(arm=method, setting=setting, seed=0, distill=last, task=None, log=log))
    if not runs:
        raise UserError(
            f"--published {folder}: no {'- or '.join(methods)}-w3a3.train.jsonl or other bits there"
        )
    return runs


def by_setting(runs: Sequence[Run], names: Sequence[str]) -> dict[Setting, dict[str, dict[int, Run]]]:
    """Setting -> arm -> seed -> run; wide bits first, arms in the order of ``names``; others left out."""
    found: dict[Setting, dict[str, dict[int, Run]]] = {}
    known = [run for run in runs if run.arm in names]
    for run in sorted(known, key=lambda run: (names.index(run.arm), run.seed)):
        found.setdefault(run.setting, {}).setdefault(run.arm, {})[run.seed] = run
    return {setting: found[setting] for setting in sorted(found, key=lambda each: each.order)}


def finals(runs: Mapping[int, Run]) -> dict[int, float]:
    """Seed -> held-out loss of the exported model, of those that did not diverge."""
    return {seed: run.distill for seed, run in runs.items() if run.distill is not None}


def _floats(text: Any) -> list[float]:
    return [float(word) for word in str(text).split()]
