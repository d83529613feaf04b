"""Differences between cells with an interval and a p-value; prompts, and seeds if several, drawn at random.

A difference of two cells varies with the prompt. With several seeds it also varies with the seed, and as
every seed has every prompt the two are crossed. The difference is a mean over a table Z of seeds by prompts,
a two-way random-effects layout (Searle, Casella and McCulloch 1992, "Variance Components", 4.3); its
standard error and degrees of freedom are those of ``evalharness.crossed``. With one seed they are those of
prompts and speak of this seed only.

``results/statistics/coverage.md`` holds the simulated coverage.

Shape legend: S seeds, P prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from evalharness.columns import Columns, Common, common
from evalharness.crossed import crossed
from evalharness.stats import Keyed, Scores

__all__ = [
    "CONFIDENCE",
    "Components",
    "Effect",
    "Paired",
    "components",
    "effect",
    "effect_of",
    "holm",
    "table",
]

CONFIDENCE = 0.95
Floats = NDArray[np.float64]
Paired = Mapping[str, Scores]
"""Of one seed: dimension -> differences, video by video. What tells videos apart must not hold the seed."""

_TINY = 1e-24  # a variance below the square of rounding in scores of 0 to 1


class Components(NamedTuple):
    """Estimated variances of one entry of the table: between seeds, between prompts, and the rest."""

    seed: float
    prompt: float
    rest: float


@dataclass(frozen=True, slots=True)
class Effect:
    """A mean difference, raw scores.

    Attributes:
        value: None without data.
        lo, hi: ends of the 95 % interval; None from fewer than two prompts.
        p: two-sided, of no difference; None where there is no interval.
        df: degrees of freedom of the interval.
        se: standard error.
        n: pairs of videos; ``prompts`` and ``seeds`` behind them.
    """

    value: float | None = None
    lo: float | None = None
    hi: float | None = None
    p: float | None = None
    df: float | None = None
    se: float | None = None
    n: int = 0
    prompts: int = 0
    seeds: int = 0

    @property
    def excludes_zero(self) -> bool:
        return self.lo is not None and self.hi is not None and (self.lo > 0 or self.hi < 0)


def effect(differences: Sequence[Paired]) -> Effect:
    """Unweighted mean over the dimensions of the mean over videos and seeds.

    A prompt with more videos weighs more within a dimension. Videos that one seed lacks are left out of
    all, so that the table has no holes.

    Args:
        differences: one entry a seed, all with the same dimensions.

    Returns:
        An empty effect when a dimension has no common video.
    """
    return effect_of(*table(differences))


def effect_of(z: Floats, videos: int) -> Effect:
    """As ``effect``, of a table Z [S, P] and the number of videos behind it."""
    seeds, prompts = z.shape
    if not z.size:
        return Effect(n=videos, prompts=prompts, seeds=seeds)
    value = float(z.mean())
    if prompts < 2:
        return Effect(value, n=videos, prompts=prompts, seeds=seeds)
    if seeds == 1:
        spread = [(_mean_squares(z)[1] / z.size, prompts - 1.0)]
    else:
        by_seed, by_prompt, rest = (square / z.size for square in _mean_squares(z))
        found = crossed(by_seed, by_prompt, rest, seeds, prompts)
        spread = [(float(found.variance), float(found.df)), (float(found.least), found.least_df)]
    margins = [math.sqrt(v if v > _TINY else 0.0) * _quantile((1 + CONFIDENCE) / 2, df) for v, df in spread]
    half = max(margins)
    variance, df = spread[margins.index(half)]
    se = math.sqrt(variance) if variance > _TINY else 0.0
    p = max(_p(value, math.sqrt(v) if v > _TINY else 0.0, freedom) for v, freedom in spread)
    return Effect(value, value - half, value + half, p, df, se, videos, prompts, seeds)


def table(differences: Sequence[Paired]) -> tuple[Floats, int]:
    """Z [S, P], whose mean is the effect, and the number of distinct videos behind it.

    An entry is a prompt's part in one seed: the effect plus the prompt's sum of deviations from each
    dimension's mean, scaled so that rows and columns have the right means. Empty without common videos.
    """
    if not differences or not differences[0]:
        return np.zeros((len(differences), 0)), 0
    found = _common(differences)
    if not all(values.size for _, values in found.parts):
        return np.zeros((len(differences), 0)), found.videos
    z = np.zeros((len(differences), found.prompts))
    total = 0.0
    for name, (columns, values) in zip(sorted(differences[0]), found.parts, strict=True):
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: scores must be finite numbers; leave a missing score out")
        mean = values.mean()
        total += float(mean)
        np.add.at(z.T, columns, (values - mean).T * (found.prompts / len(columns)))
    return (z + total) / len(found.parts), found.videos


def _common(differences: Sequence[Paired]) -> Common:
    """By the videos that all seeds have."""
    if all(isinstance(scores, Columns) for each in differences for scores in each.values()):
        return common(differences)  # type: ignore[arg-type]  # looked at just now
    dimensions, keyed = sorted(differences[0]), cast("Sequence[Mapping[str, Keyed]]", differences)
    shared = [sorted(set.intersection(*(set(d[name]) for d in keyed))) for name in dimensions]
    prompts = sorted({key.prompt for keys in shared for key in keys})
    place = {prompt: index for index, prompt in enumerate(prompts)}
    parts = []
    for name, keys in zip(dimensions, shared, strict=True):
        values = np.array([[d[name][key] for key in keys] for d in keyed], dtype=np.float64)
        parts.append((np.array([place[key.prompt] for key in keys], dtype=np.int64), values))
    return Common(parts, len(prompts), len({key for keys in shared for key in keys}))


def components(z: Floats) -> Components:
    """Variance components of Z [S, P] by the method of moments, none below zero; seed is 0 for S = 1."""
    seeds, prompts = z.shape
    ms_seed, ms_prompt, ms_rest = _mean_squares(z)
    if seeds == 1:
        return Components(0.0, ms_prompt, 0.0)
    return Components(
        max(0.0, (ms_seed - ms_rest) / prompts), max(0.0, (ms_prompt - ms_rest) / seeds), ms_rest
    )


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values that hold the chance of any false finding (Holm 1979), in the given order.

    Holm rather than Benjamini-Hochberg: a table says of each pair "ahead", and each such sentence has to
    stand on its own; pairs share methods and prompts, and Holm's bound holds however they depend on each
    other. Comparisons without a p-value are not counted.
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    worst = 0.0
    for rank, (p, place) in enumerate(known):
        worst = max(worst, min(1.0, p * (len(known) - rank)))
        adjusted[place] = worst
    return adjusted


def _mean_squares(z: Floats) -> tuple[float, float, float]:
    """Of seeds, prompts and the rest; what has no degrees of freedom is zero."""
    seeds, prompts = z.shape
    mean, rows, columns = z.mean(), z.mean(axis=1), z.mean(axis=0)
    ms_prompt = seeds * float(columns.var(ddof=1))
    if seeds == 1:
        return 0.0, ms_prompt, 0.0
    rest = z - rows[:, None] - columns[None, :] + mean
    ms_rest = float((rest**2).sum()) / ((seeds - 1) * (prompts - 1))
    return prompts * float(rows.var(ddof=1)), ms_prompt, ms_rest


def _quantile(probability: float, df: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(df, probability))


def _p(value: float, se: float, df: float) -> float:
    from scipy.special import stdtr

    if se == 0.0:
        return 1.0 if value * value <= _TINY else 0.0
    return float(2.0 * stdtr(df, -abs(value) / se))
