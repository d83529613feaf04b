"""Means with bootstrap intervals clustered by prompt, and paired differences. NumPy only.

Videos of one prompt resemble each other, so the bootstrap draws whole prompts, never single videos
(a cluster bootstrap; Field and Welsh 2007, "Bootstrapping clustered data"). The statistic is the
mean over videos, so a prompt with more videos weighs more. Draws depend on the number of prompts
and the seed alone: equal inputs give equal intervals, in any order, on any machine.

Shape legend: R resamples, P prompts, D dimensions.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Interval",
    "Key",
    "Keyed",
    "Resampler",
    "bootstrap_ci",
    "joint_mean",
    "paired_difference",
    "paired_joint_difference",
]

Floats = NDArray[np.float64]


class Key(NamedTuple):
    """What identifies a video: its prompt (the cluster) and anything else that tells it apart."""

    prompt: str
    rest: Hashable


Keyed = Mapping[Key, float]


class Interval(NamedTuple):
    """A mean, the ends of its interval, the videos and the prompts behind it.

    ``value`` is None without data, ``lo`` and ``hi`` are None from fewer than two prompts.
    """

    value: float | None
    lo: float | None
    hi: float | None
    n: int
    prompts: int


@dataclass(frozen=True)
class Resampler:
    """Draws prompts with replacement; the same draws for the same number of prompts."""

    resamples: int = 2000
    confidence: float = 0.95
    seed: int = 0
    _drawn: dict[int, Floats] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.resamples < 1 or not 0.0 < self.confidence < 1.0:
            raise ValueError(
                f"resamples={self.resamples}, confidence={self.confidence}: "
                "expected at least 1 resample and a confidence between 0 and 1"
            )

    def counts(self, prompts: int) -> Floats:
        """How often each resample drew each prompt, [R, P]; rows sum to P."""
        if prompts not in self._drawn:
            rng = np.random.default_rng([self.seed, prompts])
            draws = rng.integers(0, prompts, size=(self.resamples, prompts))
            flat = draws + prompts * np.arange(self.resamples)[:, None]
            counted = np.bincount(flat.ravel(), minlength=self.resamples * prompts)
            self._drawn[prompts] = counted.reshape(self.resamples, prompts).astype(np.float64)
        return self._drawn[prompts]

    def ends(self, replicates: Floats) -> tuple[float, float] | tuple[None, None]:
        """Percentile interval of [R] replicates; undefined (nan) ones are left out."""
        defined = replicates[~np.isnan(replicates)]
        if not defined.size:
            return None, None
        tail = (1.0 - self.confidence) / 2.0
        lo, hi = np.quantile(defined, [tail, 1.0 - tail])
        return float(lo), float(hi)


def bootstrap_ci(scores: Keyed, resampler: Resampler) -> Interval:
    """Mean over all videos with its interval."""
    return _interval(_tabulate([scores]), resampler)


def paired_difference(a: Keyed, b: Keyed, resampler: Resampler) -> Interval:
    """Mean of ``a - b`` over the videos that both have."""
    return bootstrap_ci(_differences(a, b), resampler)


def joint_mean(dimensions: Sequence[Keyed], resampler: Resampler) -> Interval:
    """Unweighted mean of the dimensions' means.

    Each resample draws prompts once for all dimensions, so that dimensions judged on the same
    prompts stay correlated. A resample that happens to miss a dimension entirely is left out.
    ``n`` counts distinct videos.
    """
    return _interval(_tabulate(dimensions), resampler)


def paired_joint_difference(a: Sequence[Keyed], b: Sequence[Keyed], resampler: Resampler) -> Interval:
    """``joint_mean`` of the video-by-video differences, dimension by dimension."""
    return joint_mean([_differences(x, y) for x, y in zip(a, b, strict=True)], resampler)


def _differences(a: Keyed, b: Keyed) -> dict[Key, float]:
    return {key: value - b[key] for key, value in a.items() if key in b}


class _Table(NamedTuple):
    """Per prompt and dimension: sum of (score - shift) and number of videos.

    ``sums`` and ``counts`` are [P, D], ``shift`` is [D], ``videos`` counts distinct ones.
    """

    sums: Floats
    counts: Floats
    shift: Floats
    videos: int


def _tabulate(dimensions: Sequence[Keyed]) -> _Table:
    prompts = sorted({key.prompt for scores in dimensions for key in scores})
    row = {prompt: index for index, prompt in enumerate(prompts)}
    shape = (len(prompts), len(dimensions))
    sums, counts, shift = np.zeros(shape), np.zeros(shape), np.zeros(len(dimensions))
    for column, scores in enumerate(dimensions):
        ordered = sorted(scores.items(), key=lambda item: (item[0].prompt, repr(item[0].rest)))
        if not ordered:
            continue
        rows = np.array([row[key.prompt] for key, _ in ordered])
        values = np.array([value for _, value in ordered], dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError("scores must be finite numbers; a missing score is left out, never nan")
        # Sums are taken around one of the values, so that constant scores give exactly zero width.
        shift[column] = values[0]
        sums[:, column] = np.bincount(rows, weights=values - values[0], minlength=len(prompts))
        counts[:, column] = np.bincount(rows, minlength=len(prompts))
    videos = len({key for scores in dimensions for key in scores})
    return _Table(sums, counts, shift, videos)


def _interval(table: _Table, resampler: Resampler) -> Interval:
    prompts = len(table.sums)
    totals = table.counts.sum(axis=0)
    if not totals.size or not totals.all():
        return Interval(None, None, None, table.videos, prompts)
    value = float((table.sums.sum(axis=0) / totals + table.shift).mean())
    prompts_each = (table.counts > 0).sum(axis=0)
    if prompts_each.min() < 2:
        return Interval(value, None, None, table.videos, prompts)
    drawn = resampler.counts(prompts)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (drawn @ table.sums) / (drawn @ table.counts)
    lo, hi = resampler.ends((means + table.shift).mean(axis=1))
    return Interval(value, lo, hi, table.videos, prompts)
