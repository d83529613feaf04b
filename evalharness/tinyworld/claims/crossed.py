"""Differences of scores whose intervals take training seeds and prompts as drawn at random. SciPy.

Every training seed has a video of every prompt, so seeds and prompts are crossed: a difference varies
with the seed (another training), with the prompt (another question) and with both together. Three
intervals, each Student's t:

- seeds: over the mean of each seed. Speaks of other trainings on these very prompts.
- prompts: over the mean of each prompt. Speaks of other prompts for these very trainings.
- both: the half-widths of the two put together in squares. Speaks of other trainings on other prompts.

The third is a little too wide where seed and prompt act together, as that part is in both halves (the
mean squares of a two-way analysis of variance, added, without the interaction taken off again); taking
it off could leave less than nothing, and would rest on few seeds. A bootstrap of seeds and prompts
is no alternative: three seeds drawn from three spread only two thirds of the variance, and its
quantiles are those of a normal distribution where t has a factor of 4.3.

A dimension is a mean over videos, so that a prompt with more of them weighs more, and the mean over
dimensions is unweighted. A prompt's part in either is its sum of deviations from the dimensions' means,
which makes the interval over prompts the linear form of ``evalharness.stats``' cluster bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from evalharness.comparison import KeyedScores
from evalharness.stats import Key
from evalharness.tinyworld.claims.estimates import Estimate, mean_estimate

__all__ = ["Crossed", "contrast", "crossed"]

_NOTHING = Estimate(None, None, None, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossed:
    """A difference of means, raw scores.

    Attributes:
        by_seed: training seed -> its own difference.
        seeds, prompts, both: the same difference with the three intervals; ``n`` counts seeds, prompts,
            and seeds again.
        videos: dimension -> videos of each seed behind it.
    """

    by_seed: Mapping[str, float] = field(default_factory=dict)
    seeds: Estimate = _NOTHING
    prompts: Estimate = _NOTHING
    both: Estimate = _NOTHING
    videos: Mapping[str, int] = field(default_factory=dict)

    @property
    def value(self) -> float | None:
        return self.both.value


def contrast(terms: Sequence[tuple[float, KeyedScores]]) -> dict[str, dict[Key, float]]:
    """Sum of factor times score, video by video, from the videos that all terms have."""
    dimensions = sorted(set.intersection(*(set(scores) for _, scores in terms)))
    return {name: _sum([(factor, scores[name]) for factor, scores in terms]) for name in dimensions}


def _sum(terms: Sequence[tuple[float, Mapping[Key, float]]]) -> dict[Key, float]:
    keys = set.intersection(*(set(scores) for _, scores in terms))
    return {key: math.fsum(factor * scores[key] for factor, scores in terms) for key in sorted(keys)}


def crossed(differences: Mapping[str, KeyedScores], dimensions: Sequence[str]) -> Crossed:
    """Unweighted mean over ``dimensions`` of the differences' means, with its intervals.

    ``differences`` is training seed -> dimension -> video -> difference. A video that one seed lacks
    is left out of all of them; a dimension without any leaves nothing to be said.
    """
    tables = {seed: _common(differences, seed, dimensions) for seed in sorted(differences)}
    if not tables or not all(rows for table in tables.values() for rows in table.values()):
        return Crossed()
    by_seed = {seed: fmean(fmean(rows.values()) for rows in table.values()) for seed, table in tables.items()}
    seeds = mean_estimate(by_seed.values())
    prompts = _over_prompts(list(tables.values()), fmean(by_seed.values()))
    counts = {dimension: len(rows) for dimension, rows in next(iter(tables.values())).items()}
    return Crossed(by_seed=by_seed, seeds=seeds, prompts=prompts, both=_both(seeds, prompts), videos=counts)


def _common(
    differences: Mapping[str, KeyedScores], seed: str, dimensions: Sequence[str]
) -> dict[str, dict[Key, float]]:
    """One seed's differences of the videos that all seeds have."""
    found = {}
    for dimension in dimensions:
        keys = set.intersection(*(set(scores.get(dimension, ())) for scores in differences.values()))
        found[dimension] = {key: differences[seed][dimension][key] for key in sorted(keys)}
    return found


def _over_prompts(tables: Sequence[KeyedScores], value: float) -> Estimate:
    """``value`` as a mean over prompts, each with its part in every seed and dimension."""
    prompts = sorted({key.prompt for rows in tables[0].values() for key in rows})
    parts: dict[str, list[float]] = {prompt: [] for prompt in prompts}
    for table in tables:
        for rows in table.values():
            mean, weight = fmean(rows.values()), len(prompts) / (len(rows) * len(table) * len(tables))
            for key, score in rows.items():
                parts[key.prompt].append(weight * (score - mean))
    return mean_estimate(value + math.fsum(part) for part in parts.values())


def _both(seeds: Estimate, prompts: Estimate) -> Estimate:
    assert seeds.value is not None and prompts.value is not None
    if seeds.hi is None or prompts.hi is None:
        return Estimate(seeds.value, None, None, seeds.n)
    half = math.hypot(seeds.hi - seeds.value, prompts.hi - prompts.value)
    return Estimate(seeds.value, seeds.value - half, seeds.value + half, seeds.n)
