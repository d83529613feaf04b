"""Gates on times that were taken in turns, new code and reference, in one job on one machine.

Two runs at different times on a shared machine differ by ten per cent and more, so a stored time is no
reference for a bound of five. Turns are: each pair sees the same machine, and what is judged is the ratio of
each pair. Where a coin decides which side goes first in a pair, a ratio and its inverse are equally likely
for the same code, whatever the noise looks like and however one pair's is like the next one's; so Wilcoxon's
signed-rank test of the logarithms is exact, and its interval and the estimate between (Hodges and Lehmann
1963: the median of all pairs' averages) need no other assumption.

A bound asks for a resolution: where the pairs scatter so much that twice the bound cannot be ruled out,
nothing passes, and the verdict says what could be told. ``python -m benchmarks.against BASE`` measures, and
measures on where that is so.

Who looks several times has several chances to err, both ways: to see a rise where there is none, and to pass
one. Each look has an equal share of both errors (Bonferroni), which holds whatever the looks have in common,
and needs no record of which of them was the last; ``benchmarks/looks.py`` tries it.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from evalharness.errors import UserError, unknown
from evalharness.gates.spec import Gate
from evalharness.gates.status import Status, Verdict
from evalharness.store import read_json

__all__ = ["LEAST_TURNS", "Rise", "Timing", "judge_timings", "read_timings", "rise_of"]

LEAST_TURNS = 10
_DEFAULT_SIGNIFICANCE = 0.01
_MISSED = 0.05
"""How often a slow-down of twice the bound may pass, at any of the looks."""
_MOST_LOOKS = 20


class Timing(NamedTuple):
    """Times of one thing, pair by pair, in any one unit.

    ``looks``: how often the measurer may have looked whether to go on; each has its share of both errors.
    """

    reference: tuple[float, ...]
    run: tuple[float, ...]
    looks: int = 1

    @property
    def ratios(self) -> list[float]:
        return [new / old for old, new in zip(self.reference, self.run, strict=True)]


class Rise(NamedTuple):
    """New over old, of the typical pair: the estimate, and one-sided bounds below and above it."""

    least: float
    middle: float
    most: float


def read_timings(path: Path) -> dict[str, Timing]:
    """Read ``{"name": {"reference": [...], "run": [...], "looks": 1}, ...}``; ``looks`` may be left out.

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
    """One each.

    REGRESSION where the ratio is beyond the bound and significantly above 1; PASS where it is within the
    bound and twice the bound can be ruled out (5 % error, of all looks together); else INCOMPLETE.
    """
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


def rise_of(ratios: Sequence[float], significance: float, missed: float = _MISSED) -> Rise:
    """Estimate and bounds of the ratio; a bound is 0 or infinite where there are too few pairs for it.

    Args:
        ratios: positive; of pairs that are independent of each other.
        significance: one-sided error of ``least``.
        missed: one-sided error of ``most``.
    """
    logs = np.log(np.asarray(ratios, dtype=np.float64))
    averages = np.sort(((logs[:, None] + logs[None, :]) / 2)[np.triu_indices(len(logs))])
    below, above = (_rank(len(logs), error) for error in (significance, missed))
    return Rise(
        math.exp(averages[below]) if below >= 0 else 0.0,
        math.exp(float(np.median(averages))),
        math.exp(averages[-1 - above]) if above >= 0 else math.inf,
    )


@functools.lru_cache(maxsize=256)
def _rank(pairs: int, error: float) -> int:
    """The largest r that the signed-rank sum of so many pairs does not pass with that chance at most."""
    ways = np.ones(1)
    for rank in range(1, pairs + 1):  # ranks 1 to n are each positive or negative, like fair coins
        ways = np.pad(ways, (0, rank)) / 2 + np.pad(ways, (rank, 0)) / 2
    return int(np.searchsorted(np.cumsum(ways), error, side="right")) - 1


def _verdict(name: str, timing: Timing, bound: float, significance: float) -> Verdict:
    rise = rise_of(timing.ratios, significance / timing.looks, _MISSED / timing.looks)
    status, reason = Status.PASS, f"{100 * (rise.middle - 1):+.1f} % over {len(timing.run)} turns"
    if rise.middle > 1 + bound and rise.least > 1.0:
        status, reason = Status.REGRESSION, f"{reason}, beyond {100 * bound:g} %"
    elif rise.middle > 1 + bound or rise.most > 1 + 2 * bound:
        seen = "nothing can" if math.isinf(rise.most) else f"{100 * (rise.most - 1):.1f} % cannot"
        reason += f"; {seen} be ruled out: too few turns or too noisy for a bound of {100 * bound:g} %"
        status = Status.INCOMPLETE
    return Verdict(
        row=name,
        metric="time",
        status=status,
        reason=reason,
        run=statistics.median(timing.run),
        reference=statistics.median(timing.reference),
    )


def _timing(entry: object, where: str) -> Timing:
    if not isinstance(entry, Mapping) or set(entry) - {"looks"} != {"reference", "run"}:
        raise UserError(f"{where}: expected reference and run, two lists of times")
    looks = entry.get("looks", 1)
    if type(looks) is not int or not 1 <= looks <= _MOST_LOOKS:
        raise UserError(f"{where}: looks: expected a whole number from 1 to {_MOST_LOOKS}, not {looks!r}")
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
    return Timing(lists[0], lists[1], looks)
