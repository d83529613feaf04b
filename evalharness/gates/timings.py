"""Gates on times that were taken in turns, new code and reference, in one job on one machine.

Two runs at different times on a shared machine differ by ten per cent and more, so a stored time is no
reference for
a bound of five. Turns are: each pair sees the same machine, and what is judged is the median of the
pairs' ratios.
``python -m benchmarks.against BASE`` writes such a file.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from evalharness.errors import UserError, unknown
from evalharness.gates.spec import Gate
from evalharness.gates.status import Status, Verdict
from evalharness.store import read_json

__all__ = ["LEAST_TURNS", "Timing", "judge_timings", "lower_bound", "read_timings"]

LEAST_TURNS = 10
_DEFAULT_SIGNIFICANCE = 0.01


class Timing(NamedTuple):
    """Times of one thing, pair by pair, in any one unit."""

    reference: tuple[float, ...]
    run: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        return [new / old for old, new in zip(self.reference, self.run, strict=True)]


def read_timings(path: Path) -> dict[str, Timing]:
    """Read ``{"name": {"reference": [...], "run": [...]}, ...}``.

    Raises:
        UserError: no such file, another shape, times that are no positive numbers, or fewer than ten turns.
    """
    data = read_json(path)
    if data is None:
        raise UserError(f"{path}: no such file")
    return {name: _timing(entry, f"{path}: {name}") for name, entry in data.items()}


def judge_timings(
    gate: Gate, timings: Mapping[str, Timing] | None, significance: float | None
) -> list[Verdict]:
    """One each: REGRESSION where the median ratio is beyond the bound and significantly above 1."""
    assert gate.max_rise_relative is not None
    if timings is None:
        reason = "no times were given; see --timings"
        return [Verdict(row="(timings)", metric="time", status=Status.INCOMPLETE, reason=reason)]
    for name in gate.rows:
        if name not in timings:
            raise unknown("row of a gate on timings", name, timings)
    names = gate.rows or tuple(timings)
    level = (_DEFAULT_SIGNIFICANCE if significance is None else significance) / max(1, len(names))
    return [_verdict(name, timings[name], gate.max_rise_relative, level) for name in names]


def lower_bound(values: Sequence[float], significance: float) -> float:
    """Below the median of what the values are drawn from with that error at most; no assumption on its shape.

    The order statistic of the sign test; minus infinity where there are too few values.
    """
    place, tail = -1, 0.0
    for k in range(len(values)):
        tail += math.comb(len(values), k) / 2 ** len(values)
        if tail > significance:
            break
        place = k
    return sorted(values)[place] if place >= 0 else -math.inf


def _verdict(name: str, timing: Timing, bound: float, significance: float) -> Verdict:
    middle, least = statistics.median(timing.ratios), lower_bound(timing.ratios, significance)
    rise = f"{100 * (middle - 1):+.1f} % over {len(timing.run)} turns"
    status, reason = Status.PASS, rise
    if middle > 1 + bound and least > 1.0:
        status, reason = Status.REGRESSION, f"{rise}, beyond {100 * bound:g} %"
    elif middle > 1 + bound:
        reason = f"{rise}, beyond {100 * bound:g} %, but not significant"
    return Verdict(
        row=name,
        metric="time",
        status=status,
        reason=reason,
        run=statistics.median(timing.run),
        reference=statistics.median(timing.reference),
    )


def _timing(entry: object, where: str) -> Timing:
    if not isinstance(entry, Mapping) or set(entry) != {"reference", "run"}:
        raise UserError(f"{where}: expected reference and run, two lists of times")
    lists = []
    for side in ("reference", "run"):
        values = entry[side]
        if not isinstance(values, list) or len(values) < LEAST_TURNS:
            raise UserError(f"{where}: {side}: expected a list of at least {LEAST_TURNS} times")
        if not all(isinstance(v, int | float) and math.isfinite(v) and v > 0 for v in values):
            raise UserError(f"{where}: {side}: expected positive numbers")
        lists.append(tuple(float(value) for value in values))
    if len(lists[0]) != len(lists[1]):
        raise UserError(
            f"{where}: {len(lists[0])} times of the reference, {len(lists[1])} of the run; not in turns"
        )
    return Timing(*lists)
