"""Two runs or two cells against each other: differences, intervals, p-values, winners and losers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evalharness.columns import Columns, running_sum, together
from evalharness.compare.recipes import Change, cell_recipe, changes, environment, run_recipe
from evalharness.compare.selection import Pair, Side, pairs
from evalharness.effects import Effect, effect, holm
from evalharness.result_schema import CellResult
from evalharness.scoretable import Codes, Floats, Names, ScoreTable

__all__ = [
    "COSTS",
    "Comparison",
    "Cost",
    "DimensionDifference",
    "PromptDifference",
    "RowDifference",
    "compare",
]

COSTS = ("step_ms", "peak_mem_mb", "weights_mb", "checkpoint_mb", "stored_mb")


@dataclass(frozen=True, slots=True)
class DimensionDifference:
    """A minus B in one dimension.

    Attributes:
        a, b: means of each side over the videos that both have; None without any.
        p_holm: p-value corrected for the number of dimensions.
    """

    name: str
    a: float | None
    b: float | None
    difference: Effect
    p_holm: float | None


@dataclass(frozen=True, slots=True)
class PromptDifference:
    """A minus B on one prompt: mean over seeds and its dimensions, and the dimension that moved most."""

    prompt_id: str
    text: str
    difference: float
    most: str
    by: float


@dataclass(frozen=True, slots=True)
class Cost:
    """A measured or counted cost, mean over the seeds; ``relative`` is A / B - 1."""

    name: str
    a: float
    b: float
    relative: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowDifference:
    """One row of A against one of B.

    Attributes:
        seeds: of A and of B, in the order in which they were paired.
        mean: over all dimensions, A minus B; an empty effect where a dimension lacks common videos.
        p_holm: of the mean, corrected for the number of rows.
        is_partial: whether a cell lacks scores; the difference is of common videos all the same.
        wins, losses, ties: prompts on which A is better, worse, equal.
        winners, losers: the prompts with the largest differences each way.
    """

    a: str
    b: str
    model: str
    seeds: list[tuple[int, int]]
    mean: Effect
    p_holm: float | None
    dimensions: list[DimensionDifference]
    is_partial: bool
    wins: int
    losses: int
    ties: int
    winners: list[PromptDifference]
    losers: list[PromptDifference]
    costs: list[Cost]
    recipe: list[Change]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All that ``evalharness compare A B`` says. Scores are raw; ``percent`` is how to show them."""

    a: str
    b: str
    label: str
    protocol: str
    percent: bool
    rows: list[RowDifference]
    only_a: list[str]
    only_b: list[str]
    recipe: list[Change]
    environment: list[Change]


def compare(a: Side, b: Side, *, shown: int = 5) -> Comparison:
    """Compare what two sides have in common.

    Args:
        a: what is looked at.
        b: what it is compared with.
        shown: winners and losers to name for each row.

    Raises:
        UserError: other protocols, dimensions or prompts; nothing in common.
    """
    found, only_a, only_b = pairs(a, b)
    prompts = {**b.results.prompts, **a.results.prompts}
    drafts = [_row(pair, a.results.dimensions, prompts, shown) for pair in found]
    corrected = holm([draft.mean.p for draft in drafts])
    rows = [_with_p(draft, p) for draft, p in zip(drafts, corrected, strict=True)]
    return Comparison(
        a=a.given,
        b=b.given,
        label=a.results.label,
        protocol=a.results.protocol,
        percent=a.results.percent,
        rows=rows,
        only_a=only_a,
        only_b=only_b,
        recipe=changes(run_recipe(a.results), run_recipe(b.results)),
        environment=changes(environment(a.results), environment(b.results)),
    )


def _with_p(row: RowDifference, p: float | None) -> RowDifference:
    return dataclasses.replace(row, p_holm=p)


def _row(pair: Pair, names: Sequence[str], prompts: dict[str, str], shown: int) -> RowDifference:
    differences = pair.differences(names)
    effects = {name: effect([{name: d[name]} for d in differences]) for name in names}
    corrected = holm([effects[name].p for name in names])
    by_prompt = _by_prompt(differences, names)
    best = by_prompt.ranked()
    return RowDifference(
        a=pair.a.name,
        b=pair.b.name,
        model=pair.a.model if pair.a.model == pair.b.model else f"{pair.a.model} / {pair.b.model}",
        seeds=pair.seeds,
        mean=effect(differences),
        p_holm=None,
        dimensions=[
            DimensionDifference(name, *_means(pair, name), effects[name], p)
            for name, p in zip(names, corrected, strict=True)
        ],
        is_partial=not all(cell.is_complete for both in pair.cells for cell in both),
        wins=int((by_prompt.difference > 0).sum()),
        losses=int((by_prompt.difference < 0).sum()),
        ties=int((by_prompt.difference == 0).sum()),
        winners=[by_prompt.named(p, prompts) for p in best[:shown] if by_prompt.difference[p] > 0],
        losers=[by_prompt.named(p, prompts) for p in best[::-1][:shown] if by_prompt.difference[p] < 0],
        costs=_costs(pair),
        recipe=changes(cell_recipe(pair.cells[0][0]), cell_recipe(pair.cells[0][1])),
    )


def _means(pair: Pair, dimension: str) -> tuple[float | None, float | None]:
    """Of A and of B, over the videos that both have."""
    ours, theirs = [], []
    for both in pair.cells:
        left, right = together([Columns.of([(None, ScoreTable.of(c.scores[dimension]))]) for c in both])
        _, at, where = np.intersect1d(left.keys(), right.keys(), assume_unique=True, return_indices=True)
        ours.append(left.value[at])
        theirs.append(right.value[where])
    count = sum(map(len, ours))
    if not count:
        return None, None
    return running_sum(np.concatenate(ours)) / count, running_sum(np.concatenate(theirs)) / count


@dataclass(frozen=True, slots=True)
class _ByPrompt:
    """Mean differences of prompts; shapes with P prompts and D dimensions.

    Attributes:
        names: ids in order; ``prompts`` are the places of those that have a difference [P].
        means: of each dimension [P, D], nan where there is none; ``dimensions`` are their names.
        order: for each prompt its dimensions as they came [P, D].
        difference: mean over the dimensions that are there [P].
    """

    names: Names
    prompts: Codes
    dimensions: Sequence[str]
    means: Floats
    order: Codes
    difference: Floats

    def ranked(self) -> list[int]:
        """Rows of the arrays, best for A first."""
        found: list[int] = np.lexsort((self.prompts, -self.difference)).tolist()
        return found

    def named(self, row: int, texts: dict[str, str]) -> PromptDifference:
        prompt = self.names[self.prompts[row]]
        came = self.order[row]
        sizes = np.abs(self.means[row, came])
        most = int(came[int(np.nanargmax(sizes))])
        by = float(self.means[row, most])
        difference = float(self.difference[row])
        return PromptDifference(prompt, texts.get(prompt, ""), difference, self.dimensions[most], by)


def _by_prompt(differences: Sequence[Mapping[str, Columns]], names: Sequence[str]) -> _ByPrompt:
    """A dimension counts once a prompt, however many videos it has."""
    flat = together([each[name] for name in names for each in differences])
    prompts, seeds = len(flat[0].names) if flat else 0, len(differences)
    means = np.full((prompts, len(names)), np.nan)
    first = np.full((prompts, len(names)), seeds)  # seed in which a dimension comes first
    for place in range(len(names)):
        parts = flat[place * seeds : (place + 1) * seeds]
        for seed in reversed(range(seeds)):
            first[parts[seed].prompt, place] = seed
        rows = np.concatenate([part.prompt for part in parts])
        sums = np.bincount(rows, weights=np.concatenate([p.value for p in parts]), minlength=prompts)
        counts = np.bincount(rows, minlength=prompts)
        means[:, place] = np.divide(sums, counts, out=means[:, place], where=counts > 0)
    order = np.argsort(first, axis=1, kind="stable").astype(np.int32)
    ordered = np.take_along_axis(means, order, axis=1)
    total = np.zeros(prompts)
    for column in ordered.T:
        total += np.where(np.isnan(column), 0.0, column)
    counted = (~np.isnan(means)).sum(axis=1)
    there = np.flatnonzero(counted).astype(np.int32)
    difference = total[there] / counted[there]
    return _ByPrompt(flat[0].names if flat else (), there, names, means[there], order[there], difference)


def _costs(pair: Pair) -> list[Cost]:
    found = []
    for name in COSTS:
        a, b = (_mean_cost([both[side] for both in pair.cells], name) for side in (0, 1))
        if a is not None and b is not None:
            found.append(Cost(name, a, b, a / b - 1 if b else None))
    return found


def _mean_cost(cells: Sequence[CellResult], name: str) -> float | None:
    values = [getattr(cell.profile, name, None) for cell in cells]
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
