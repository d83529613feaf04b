"""Which method keeps the quality best at each bit width, and by how much, with intervals and p-values."""

from __future__ import annotations

from dataclasses import dataclass, replace

from evalharness.compare.selection import Pair, Row
from evalharness.comparison import columns_of, joint_difference, resampler_of
from evalharness.effects import CONFIDENCE, effect_of, holm, table
from evalharness.result_schema import Estimate, PooledResult, Results
from evalharness.stats import Resampler

__all__ = ["BitsRanking", "Lead", "Ranked", "ranking"]


@dataclass(frozen=True, slots=True)
class Lead:
    """How far a method is ahead of a lower-ranked one: difference of their means, raw scores.

    Attributes:
        by: its interval is over prompts.
        p: two-sided, over prompts and, where there are several, over seeds (``evalharness.effects``),
            corrected by Holm for the number of pairs of this bit width; None from one prompt.
        p_here: the same over prompts alone, with the seeds that were run.
    """

    over: str
    by: Estimate
    p: float | None = None
    p_here: float | None = None

    @property
    def is_clear(self) -> bool:
        """Whether the interval lies above zero, and would with chance, seeds and all pairs counted in."""
        return self._is_above and self.p is not None and self.p < 1.0 - CONFIDENCE

    @property
    def is_clear_here(self) -> bool:
        """As ``is_clear``, of the seeds that were run: others might tell otherwise."""
        return self._is_above and self.p_here is not None and self.p_here < 1.0 - CONFIDENCE

    @property
    def _is_above(self) -> bool:
        return self.by.lo is not None and self.by.lo > 0.0


@dataclass(frozen=True, slots=True)
class Ranked:
    """One method with its leads over all methods below it, the next one first."""

    result: PooledResult
    leads: tuple[Lead, ...]


@dataclass(frozen=True, slots=True)
class BitsRanking:
    """Methods at one bit width of one model, best mean first.

    Attributes:
        unranked: names of the methods that have no mean, for want of full coverage.
    """

    model: str
    w_bits: int
    a_bits: int
    rows: tuple[Ranked, ...]
    unranked: tuple[str, ...]


def ranking(results: Results) -> list[BitsRanking]:
    """Order the methods of each bit width by mean, seeds taken together; the reference is left out.

    A lead is the mean over dimensions of the paired differences between two methods: the same
    prompt, sample and seed against each other. Its interval takes prompts once for all
    dimensions (``stats.paired_joint_difference``). Many bit widths first.
    """
    resampler = resampler_of(results)
    groups: dict[tuple[str, int, int], list[PooledResult]] = {}
    for row in results.pooled:
        if not row.is_reference:
            groups.setdefault((row.model, row.w_bits, row.a_bits), []).append(row)
    keys = sorted(groups, key=lambda key: (key[0], -key[1], -key[2]))
    return [_rank(results, groups[key], resampler) for key in keys]


def _rank(results: Results, group: list[PooledResult], resampler: Resampler) -> BitsRanking:
    with_mean = [(row.mean.value, row) for row in group if row.mean and row.mean.value is not None]
    ordered = [row for _, row in sorted(with_mean, key=lambda pair: (-pair[0], pair[1].method))]
    scores = [columns_of([results.cell(name) for name in row.cells]) for row in ordered]
    ranked = []
    for place, row in enumerate(ordered):
        below = range(place + 1, len(ordered))
        leads = [
            Lead(
                ordered[other].method,
                joint_difference(scores[place], scores[other], resampler),
                *_p_values(results, row, ordered[other]),
            )
            for other in below
        ]
        ranked.append(Ranked(row, tuple(leads)))
    unranked = tuple(sorted({row.method for row in group} - {row.method for row in ordered}))
    return BitsRanking(group[0].model, group[0].w_bits, group[0].a_bits, _corrected(tuple(ranked)), unranked)


def _p_values(results: Results, row: PooledResult, other: PooledResult) -> tuple[float | None, float | None]:
    """Of the seeds that both have: drawn at random, and as they are."""
    ours, theirs = (
        {cell.seed: cell for cell in (results.cell(i) for i in each.cells)} for each in (row, other)
    )
    common = tuple((ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys()))
    first, second = (Row(each.model, each.method, ()) for each in (row, other))
    if not common:
        return None, None
    z, videos = table(Pair(first, second, common).differences(results.dimensions))
    return effect_of(z, videos).p, effect_of(z.mean(0, keepdims=True), videos).p


def _corrected(ranked: tuple[Ranked, ...]) -> tuple[Ranked, ...]:
    """The same with Holm's p-values, all pairs taken together."""
    leads = [lead for row in ranked for lead in row.leads]
    adjusted = zip(holm([lead.p for lead in leads]), holm([lead.p_here for lead in leads]), strict=True)

    def again(lead: Lead) -> Lead:
        p, p_here = next(adjusted)
        return replace(lead, p=p, p_here=p_here)

    return tuple(replace(row, leads=tuple(again(lead) for lead in row.leads)) for row in ranked)
