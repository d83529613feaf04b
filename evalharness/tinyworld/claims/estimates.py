"""Means over training seeds with Student's t intervals, and paired differences. SciPy.

A seed fixes data order, noise and random starts of all arms alike, so arms are compared seed by seed.
The interval speaks of other seeds, on the same held-out batch and the same full-precision model.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["CONFIDENCE", "Estimate", "Verdict", "mean_estimate", "paired", "relative", "verdict_below"]

CONFIDENCE = 0.95

Verdict = Literal["reproduced", "not reproduced", "undecided"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over ``n`` seeds and its 95 % interval; no mean without values, no interval from one."""

    value: float | None
    lo: float | None
    hi: float | None
    n: int

    @property
    def negated(self) -> Estimate:
        """Of the same values with the other sign."""
        value, lo, hi = (None if end is None else -end for end in (self.value, self.hi, self.lo))
        return Estimate(value, lo, hi, self.n)

    @property
    def excludes_zero(self) -> bool:
        return self.lo is not None and self.hi is not None and (self.lo > 0 or self.hi < 0)


def mean_estimate(values: Iterable[float]) -> Estimate:
    """Mean and t interval, ``mean -+ t(n - 1) s / sqrt(n)``.

    Raises:
        ValueError: a value that is not finite.
    """
    from scipy import stats

    found = list(values)
    if not all(math.isfinite(value) for value in found):
        raise ValueError(f"values must be finite numbers, got {found}; leave a diverged training out")
    if len(found) < 2:
        return Estimate(found[0] if found else None, None, None, len(found))
    mean = statistics.fmean(found)
    spread = statistics.stdev(found) / math.sqrt(len(found))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(found) - 1)) * spread
    return Estimate(mean, mean - half, mean + half, len(found))


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Estimate:
    """``a - b`` over the seeds that both have."""
    return mean_estimate(a[seed] - b[seed] for seed in sorted(a.keys() & b.keys()))


def relative(a: Mapping[int, float], b: Mapping[int, float]) -> Estimate:
    """``(a - b) / b`` over the seeds that both have; 0.01 is one per cent."""
    return mean_estimate((a[seed] - b[seed]) / b[seed] for seed in sorted(a.keys() & b.keys()))


def verdict_below(difference: Estimate, bound: float = 0.0) -> Verdict:
    """On the claim that ``difference`` is below ``bound``; decided if the whole interval is on one side."""
    if difference.lo is None or difference.hi is None:
        return "undecided"
    if difference.hi < bound:
        return "reproduced"
    return "not reproduced" if difference.lo > bound else "undecided"
