"""What stands between cells: differences from the reference, seeds taken together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from evalharness.api import Total
from evalharness.columns import Columns
from evalharness.result_schema import (
    CellResult,
    Difference,
    DimensionEstimate,
    Estimate,
    PooledResult,
    Results,
)
from evalharness.scoretable import ScoreTable
from evalharness.stats import (
    Key,
    Keyed,
    Resampler,
    Scores,
    bootstrap_ci,
    joint_mean,
    paired_difference,
    paired_joint_difference,
)
from evalharness.totals import total_estimates

__all__ = [
    "CellScores",
    "KeyedScores",
    "columns_of",
    "differences",
    "dimension_estimate",
    "joint_difference",
    "joint_estimate",
    "pool",
    "resampler_of",
    "scores_of",
]

CellScores = Mapping[str, Scores]
"""Dimension -> video -> score. A video's key holds its seed, so that seeds can be put together."""
KeyedScores = Mapping[str, Keyed]


def resampler_of(results: Results) -> Resampler:
    """What makes intervals as those in ``results`` were made."""
    info = results.bootstrap
    bounds = (0.0, 1.0) if results.percent and info.kind == "skew-t" else None
    return Resampler(
        resamples=info.resamples,
        confidence=info.confidence,
        seed=info.seed,
        kind=info.kind,
        bounds=bounds,
        ranges=results.ranges,
    )


def scores_of(cells: Iterable[CellResult]) -> dict[str, dict[Key, float]]:
    """The scores of one cell, or of several seeds of one method, as one table."""
    table: dict[str, dict[Key, float]] = {}
    for cell in cells:
        for dimension, rows in cell.scores.items():
            scores = table.setdefault(dimension, {})
            scores.update({Key(row.prompt_id, (cell.seed, row.sample)): row.value for row in rows})
    return table


def columns_of(cells: Sequence[CellResult]) -> dict[str, Columns]:
    """As ``scores_of``, without an object for each score."""
    names = dict.fromkeys(name for cell in cells for name in cell.scores)
    tables = {
        name: [(cell.seed, ScoreTable.of(cell.scores[name])) for cell in cells if name in cell.scores]
        for name in names
    }
    return {name: Columns.of(parts) for name, parts in tables.items()}


def dimension_estimate(scores: Scores, expected: int, resampler: Resampler) -> DimensionEstimate:
    """Mean of one dimension with its interval, and how many videos should be behind it."""
    return DimensionEstimate(**bootstrap_ci(scores, resampler)._asdict(), expected=expected)


def joint_estimate(scores: CellScores, resampler: Resampler) -> Estimate:
    """Mean over all dimensions with its interval."""
    return Estimate(**joint_mean(list(scores.values()), resampler.over(scores))._asdict())


def joint_difference(ours: CellScores, theirs: CellScores, resampler: Resampler) -> Estimate:
    """Difference of the means over all dimensions, from the videos that both have."""
    pairs = [theirs[dimension] for dimension in ours]
    return Estimate(**paired_joint_difference(list(ours.values()), pairs, resampler)._asdict())


def differences(cells: Sequence[CellResult], resampler: Resampler) -> list[Difference]:
    """Each quantized cell minus the reference of its model and seed; none without a reference."""
    references = _references(cells)
    found = []
    for cell in cells:
        reference = references.get((cell.model, cell.seed))
        if cell.is_reference or reference is None:
            continue
        ours, theirs = columns_of([cell]), columns_of([reference])
        each = {d: paired_difference(ours[d], theirs[d], resampler) for d in ours}
        complete = cell.is_complete and reference.is_complete
        found.append(
            Difference(
                cell=cell.id,
                reference=reference.id,
                dimensions={d: Estimate(**interval._asdict()) for d, interval in each.items()},
                mean=joint_difference(ours, theirs, resampler) if complete else None,
            )
        )
    return found


def pool(
    cells: Sequence[CellResult], resampler: Resampler, totals: Sequence[Total] = ()
) -> list[PooledResult]:
    """One row for each model, method and bit width, in the order in which ``cells`` names them."""
    groups: dict[tuple[str, str, int, int], list[CellResult]] = {}
    for cell in cells:
        groups.setdefault((cell.model, cell.method, cell.w_bits, cell.a_bits), []).append(cell)
    references = _references(cells)
    return [_pool_one(group, references, resampler, totals) for group in groups.values()]


def _references(cells: Sequence[CellResult]) -> dict[tuple[str, int], CellResult]:
    return {(cell.model, cell.seed): cell for cell in cells if cell.is_reference}


def _pool_one(
    group: Sequence[CellResult],
    references: Mapping[tuple[str, int], CellResult],
    resampler: Resampler,
    totals: Sequence[Total],
) -> PooledResult:
    first = group[0]
    scores = columns_of(group)
    expected = {d: sum(cell.dimensions[d].expected for cell in group) for d in scores}
    estimates = {d: dimension_estimate(s, expected[d], resampler.of(d)) for d, s in scores.items()}
    complete = all(cell.is_complete for cell in group)
    partners = [references[cell.model, cell.seed] for cell in group if (cell.model, cell.seed) in references]
    comparable = len(partners) == len(group) and all(partner.is_complete for partner in partners)
    minus_reference = None
    if complete and comparable and not first.is_reference:
        minus_reference = joint_difference(scores, columns_of(partners), resampler)
    return PooledResult(
        model=first.model,
        method=first.method,
        w_bits=first.w_bits,
        a_bits=first.a_bits,
        sources=sorted({cell.source for cell in group}),
        executions=sorted({cell.execution for cell in group}),
        seeds=[cell.seed for cell in group],
        cells=[cell.id for cell in group],
        dimensions=estimates,
        mean=joint_estimate(scores, resampler) if complete else None,
        totals=total_estimates(totals, scores, estimates, resampler),
        seed_means=[None if cell.mean is None else cell.mean.value for cell in group],
        minus_reference=minus_reference,
    )
