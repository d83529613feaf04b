"""Means with intervals clustered by prompt, and paired differences.

Videos of one prompt resemble each other, so prompts are the units, never single videos. The statistic is the
mean over videos, so a prompt with more videos weighs more. Two kinds of interval:

``skew-t`` (the default of results): Student's t around the mean, with the standard error of whole prompts
(each prompt's pull on the mean, to first order), corrected for skewness by a monotone cubic (P. Hall 1992,
"On the removal of skewness by transformation", J. R. Statist. Soc. B 54). It draws nothing: one pass over the
scores, and at 50 prompts it holds the truth about as often as it says (``benchmarks/interval_coverage.py``).

``percentile``: the percentile bootstrap over prompts (Field and Welsh 2007, "Bootstrapping clustered data"),
which older results have. Draws depend on the number of prompts and the seed alone, so equal inputs give equal
intervals, in any order, on any machine.

Shape legend: R resamples, P prompts, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalharness.columns import Columns, together

__all__ = [
    "Interval",
    "Key",
    "Keyed",
    "Resampler",
    "Scores",
    "bootstrap_ci",
    "joint_mean",
    "paired_difference",
    "paired_joint_difference",
]

Floats = NDArray[np.float64]
Kind = Literal["percentile", "skew-t"]


class Key(NamedTuple):
    """What identifies a video: its prompt (the cluster) and anything else that tells it apart."""

    prompt: str
    rest: Hashable


Keyed = Mapping[Key, float]
Scores = Keyed | Columns
"""Of one dimension; every function takes either, and says the same of both."""


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
    """How intervals are made; of the bootstrap, the same draws for the same number of prompts.

    Attributes:
        resamples: of the bootstrap; the other kind draws nothing.
        bounds: smallest and largest value that a mean of scores can have; ends beyond them are cut.
            Differences have none.
        ranges: the bounds of those dimensions that have others, by name; see ``of`` and ``over``.
    """

    resamples: int = 2000
    confidence: float = 0.95
    seed: int = 0
    kind: Kind = "percentile"
    bounds: tuple[float, float] | None = None
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
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

    def unbounded(self) -> Resampler:
        """The same for differences and stretched totals, which may leave the bounds of a score."""
        return self if self.bounds is None else replace(self, bounds=None)

    def of(self, dimension: str) -> Resampler:
        """The same for the mean of that dimension's scores."""
        return self.over([dimension])

    def over(self, dimensions: Collection[str]) -> Resampler:
        """The same for the mean of these dimensions' means, whose bounds are the mean of theirs."""
        if self.bounds is None or not any(name in self.ranges for name in dimensions):
            return self
        ends = [self.ranges.get(name, self.bounds) for name in dimensions]
        low, high = (math.fsum(each) / len(ends) for each in zip(*ends, strict=True))
        return replace(self, bounds=(low, high))

    def ends(self, replicates: Floats) -> tuple[float, float] | tuple[None, None]:
        """Percentile interval of [R] replicates; undefined (nan) ones are left out."""
        defined = replicates[~np.isnan(replicates)]
        if not defined.size:
            return None, None
        tail = (1.0 - self.confidence) / 2.0
        lo, hi = np.quantile(defined, [tail, 1.0 - tail])
        return float(lo), float(hi)


def bootstrap_ci(scores: Scores, resampler: Resampler) -> Interval:
    """Mean over all videos with its interval."""
    return _interval(_tabulate([scores]), resampler)


def paired_difference(a: Scores, b: Scores, resampler: Resampler) -> Interval:
    """Mean of ``a - b`` over the videos that both have."""
    return bootstrap_ci(_differences(a, b), resampler.unbounded())


def joint_mean(dimensions: Sequence[Scores], resampler: Resampler) -> Interval:
    """Unweighted mean of the dimensions' means.

    Each resample draws prompts once for all dimensions, so that dimensions judged on the same
    prompts stay correlated. A resample that happens to miss a dimension entirely is left out.
    ``n`` counts distinct videos.
    """
    return _interval(_tabulate(dimensions), resampler)


def paired_joint_difference(a: Sequence[Scores], b: Sequence[Scores], resampler: Resampler) -> Interval:
    """``joint_mean`` of the video-by-video differences, dimension by dimension."""
    return joint_mean([_differences(x, y) for x, y in zip(a, b, strict=True)], resampler.unbounded())


def _differences(a: Scores, b: Scores) -> Scores:
    if isinstance(a, Columns) or isinstance(b, Columns):
        assert isinstance(a, Columns) and isinstance(b, Columns), "one of each cannot be paired"
        return a.minus(b)
    return {key: value - b[key] for key, value in a.items() if key in b}


class _Table(NamedTuple):
    """Per prompt and dimension: sum of (score - shift) and number of videos.

    ``sums`` and ``counts`` are [P, D], ``shift`` is [D], ``videos`` counts distinct ones.
    """

    sums: Floats
    counts: Floats
    shift: Floats
    videos: int


def _tabulate(dimensions: Sequence[Scores]) -> _Table:
    if columns := [scores for scores in dimensions if isinstance(scores, Columns)]:
        assert len(columns) == len(dimensions), "all dimensions are columns, or none is"
        return _tabulate_columns(columns)
    mappings = [scores for scores in dimensions if not isinstance(scores, Columns)]
    prompts = sorted({key.prompt for scores in mappings for key in scores})
    place = {prompt: index for index, prompt in enumerate(prompts)}
    listed = []
    for scores in mappings:
        ordered = sorted(scores.items(), key=lambda item: (item[0].prompt, repr(item[0].rest)))
        rows = np.array([place[key.prompt] for key, _ in ordered], dtype=np.int64)
        listed.append((rows, np.array([value for _, value in ordered], dtype=np.float64)))
    return _summed(listed, len(prompts), len({key for scores in mappings for key in scores}))


def _tabulate_columns(dimensions: Sequence[Columns]) -> _Table:
    """The same of columns; prompts that no dimension has are left out."""
    aligned = together(dimensions)
    is_there = np.zeros(len(aligned[0].names), dtype=bool)
    for scores in aligned:
        is_there[scores.prompt] = True
    place = np.cumsum(is_there) - 1
    ordered = [scores.in_order() for scores in aligned]
    videos = len(np.unique(np.concatenate([scores.keys() for scores in aligned])))
    return _summed([(place[s.prompt], s.value) for s in ordered], int(is_there.sum()), videos)


def _summed(dimensions: Sequence[tuple[NDArray[np.int64], Floats]], prompts: int, videos: int) -> _Table:
    """From each dimension's rows in order: places of their prompts, and values."""
    shape = (prompts, len(dimensions))
    sums, counts, shift = np.zeros(shape), np.zeros(shape), np.zeros(len(dimensions))
    for column, (rows, values) in enumerate(dimensions):
        if not values.size:
            continue
        if not np.isfinite(values).all():
            raise ValueError("scores must be finite numbers; a missing score is left out, never nan")
        # Sums are taken around one of the values, so that constant scores give exactly zero width.
        shift[column] = values[0]
        sums[:, column] = np.bincount(rows, weights=values - values[0], minlength=prompts)
        counts[:, column] = np.bincount(rows, minlength=prompts)
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
    if resampler.kind == "skew-t":
        low, high = _skew_t(table, totals, prompts_each, resampler.confidence)
        least, most = resampler.bounds or (-math.inf, math.inf)
        # A score outside its declared bounds is shown as it is: the interval always holds the mean.
        ends = max(value + low, min(least, value)), min(value + high, max(most, value))
        return Interval(value, *ends, table.videos, prompts)
    drawn = resampler.counts(prompts)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (drawn @ table.sums) / (drawn @ table.counts)
    lo, hi = resampler.ends((means + table.shift).mean(axis=1))
    return Interval(value, lo, hi, table.videos, prompts)


def _skew_t(table: _Table, totals: Floats, prompts_each: Floats, confidence: float) -> tuple[float, float]:
    """Ends of the interval, relative to the mean."""
    from scipy.special import stdtrit

    # [P, D]: what each prompt pulls the mean by; a dimension's few prompts count for n/(n-1).
    centred = (table.sums - table.counts * (table.sums.sum(axis=0) / totals)) / totals
    parts = centred * np.sqrt(prompts_each / (prompts_each - 1)) / len(totals)
    pulls = parts.sum(axis=1)
    error = math.sqrt(float((pulls**2).sum()))
    if error == 0.0:
        return 0.0, 0.0
    cube = error**3
    # Of the mean, so that of a prompt over sqrt(P). The second form where a cube is no number any more.
    third = (pulls**3).sum() / cube if cube > 1e-250 else ((pulls / error) ** 3).sum()
    skewness = float(third)
    shares = (parts**2).sum(axis=0)
    freedom = float(shares @ (prompts_each - 1) / shares.sum())  # a dimension counts as it adds to the error
    quantile = float(stdtrit(freedom, (1.0 + confidence) / 2.0))
    return -error * _unskewed(quantile, skewness), -error * _unskewed(-quantile, skewness)


def _unskewed(quantile: float, skewness: float) -> float:
    """The quantile of the studentised mean: the inverse of ``t + g t^2 / 3 + g^2 t^3 / 27 + g / 6``."""
    if abs(skewness) < 1e-9:
        return quantile
    return 3.0 / skewness * (math.cbrt(1.0 + skewness * (quantile - skewness / 6.0)) - 1.0)
