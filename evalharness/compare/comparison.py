"""Two runs or two cells against each other: differences, intervals, p-values, winners and losers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from evalharness.compare.recipes import Change, cell_recipe, changes, environment, run_recipe
from evalharness.compare.selection import Pair, Side, pairs
from evalharness.effects import Effect, Paired, effect, holm
from evalharness.result_schema import CellResult

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
    by_prompt = _by_prompt(differences, prompts)
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
        wins=sum(prompt.difference > 0 for prompt in by_prompt),
        losses=sum(prompt.difference < 0 for prompt in by_prompt),
        ties=sum(prompt.difference == 0 for prompt in by_prompt),
        winners=[prompt for prompt in by_prompt[:shown] if prompt.difference > 0],
        losers=[prompt for prompt in by_prompt[::-1][:shown] if prompt.difference < 0],
        costs=_costs(pair),
        recipe=changes(cell_recipe(pair.cells[0][0]), cell_recipe(pair.cells[0][1])),
    )


def _means(pair: Pair, dimension: str) -> tuple[float | None, float | None]:
    """Of A and of B, over the videos that both have."""
    ours: list[float] = []
    theirs: list[float] = []
    for a, b in pair.cells:
        left, right = ({(r.prompt_id, r.sample): r.value for r in c.scores[dimension]} for c in (a, b))
        common = sorted(left.keys() & right.keys())
        ours += [left[key] for key in common]
        theirs += [right[key] for key in common]
    return (sum(ours) / len(ours), sum(theirs) / len(theirs)) if ours else (None, None)


def _by_prompt(differences: Sequence[Paired], prompts: dict[str, str]) -> list[PromptDifference]:
    """Best for A first. A dimension counts once a prompt, however many videos it has."""
    values: dict[str, dict[str, list[float]]] = {}
    for one in differences:
        for name, videos in one.items():
            for key, value in videos.items():
                values.setdefault(key.prompt, {}).setdefault(name, []).append(value)
    found = []
    for prompt, dimensions in values.items():
        means = {name: sum(v) / len(v) for name, v in dimensions.items()}
        most = max(means, key=lambda name: abs(means[name]))
        mean = sum(means.values()) / len(means)
        found.append(PromptDifference(prompt, prompts.get(prompt, ""), mean, most, means[most]))
    return sorted(found, key=lambda prompt: (-prompt.difference, prompt.prompt_id))


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
