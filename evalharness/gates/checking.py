"""A run held against a reference: which gates pass, and what keeps others from being judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evalharness.columns import Columns, mean_over, together
from evalharness.compare.recipes import Change, changes, declared, hardware, recipe_keys, run_recipe
from evalharness.compare.selection import Pair, Row, Side, rows_of
from evalharness.effects import Effect, effect, effect_of, holm, table
from evalharness.errors import unknown
from evalharness.gates.bounds import is_beyond, named, share_of
from evalharness.gates.costs import judge_cost
from evalharness.gates.spec import EACH_DIMENSION, MEAN, TIMINGS, Gate, Gates
from evalharness.gates.status import CheckReport, Status, Verdict
from evalharness.gates.timings import Timing, judge_timings
from evalharness.result_schema import CellResult
from evalharness.scoretable import ScoreTable

__all__ = ["check"]


@dataclass(frozen=True, slots=True)
class _Judged:
    """A quality gate's numbers, before the correction for their number."""

    gate: Gate
    row: str
    metric: str
    run: float
    reference: float
    drop: Effect

    @property
    def p(self) -> float | None:
        """One-sided: of a difference this low, were there none."""
        if self.drop.p is None or self.drop.value is None:
            return None
        return self.drop.p / 2 if self.drop.value < 0 else 1 - self.drop.p / 2


def check(
    run: Side, reference: Side, gates: Gates, timings: Mapping[str, Timing] | None = None
) -> CheckReport:
    """Judge every gate on every row of the reference, and gates on ``timings`` on those given.

    Raises:
        UserError: a gate on a metric or a row that the reference does not have, a key to ignore that no
            recipe has.
    """
    known = recipe_keys(run.results, reference.results)
    for key in gates.ignore_recipe:
        if key not in known:
            raise unknown("key in ignore_recipe", key, known)
    recipe = _recipe_changes(run, reference, gates)
    if recipe:
        why = f"made with another recipe: {', '.join(change.key for change in recipe)}"
        verdicts = [Verdict(row="(run)", metric="recipe", status=Status.RECIPE_MISMATCH, reason=why)]
    else:
        verdicts = _judge_rows(run, reference, gates)
        for gate in (gate for gate in gates.gates if gate.metric == TIMINGS):
            verdicts += judge_timings(gate, timings, gates.significance)
    return CheckReport(
        run=run.given,
        reference=reference.given,
        label=reference.results.label,
        verdicts=verdicts,
        recipe=recipe,
        notes=_notes(run, reference),
    )


def _recipe_changes(run: Side, reference: Side, gates: Gates) -> list[Change]:
    found = changes(run_recipe(reference.results), run_recipe(run.results))
    return [change for change in found if change.key not in gates.ignore_recipe]


def _notes(run: Side, reference: Side) -> list[str]:
    return [
        f"{change.key} differs: {change.a} in the reference, {change.b} in the run"
        for change in changes(hardware(reference.results), hardware(run.results))
    ]


def _judge_rows(run: Side, reference: Side, gates: Gates) -> list[Verdict]:
    wanted = rows_of(reference)
    _check_names(wanted, reference, gates)
    there = {(row.model, row.name): row for row in rows_of(Side(run.given, run.results))}
    found: list[Verdict | _Judged] = []
    for row in wanted:
        ours = there.get((row.model, row.name))
        lack = _lack(row, ours, gates)
        for gate in (gate for gate in gates.gates if gate.metric != TIMINGS):
            if gate.rows and row.name not in gate.rows:
                continue
            found += _judge(gate, row, ours, lack, run, reference, gates)
    scale = 100.0 if reference.results.percent else 1.0
    judged = [d for d in found if isinstance(d, _Judged)]
    corrected = _corrected(judged)
    qualities = [_quality(d, p, gates, scale) for d, p in zip(judged, corrected, strict=True)]
    place = {row.name: index for index, row in enumerate(wanted)}
    others = [draft for draft in found if isinstance(draft, Verdict)]
    return sorted([*qualities, *others], key=lambda verdict: place[verdict.row])


def _corrected(judged: Sequence[_Judged]) -> list[float | None]:
    """Holm's p-values, half of the error given to means and half to dimensions where both are gated.

    A mean is the most telling gate and would have to share with dozens of dimensions otherwise.
    """
    corrected: list[float | None] = [None] * len(judged)
    families = [
        [i for i, d in enumerate(judged) if (d.metric == MEAN) is is_mean] for is_mean in (True, False)
    ]
    used = [family for family in families if family]
    for family in used:
        for place, p in zip(family, holm([judged[i].p for i in family]), strict=True):
            corrected[place] = None if p is None else min(1.0, p * len(used))
    return corrected


def _check_names(rows: Sequence[Row], reference: Side, gates: Gates) -> None:
    """A misspelt gate must not pass for want of anything to judge."""
    names = {row.name for row in rows}
    for gate in gates.gates:
        if not gate.is_cost and gate.metric not in (MEAN, EACH_DIMENSION, *reference.results.dimensions):
            raise unknown(
                "metric of a gate", gate.metric, (MEAN, EACH_DIMENSION, *reference.results.dimensions)
            )
        for name in gate.rows if gate.metric != TIMINGS else ():
            if name not in names:
                raise unknown("row of a gate", name, names)


def _judge(
    gate: Gate, row: Row, ours: Row | None, lack: str, run: Side, reference: Side, gates: Gates
) -> Iterator[Verdict | _Judged]:
    metrics = reference.results.dimensions if gate.metric == EACH_DIMENSION else [gate.metric]
    for metric in metrics:
        if ours is None or lack:
            status = Status.RECIPE_MISMATCH if lack.startswith("asked for") else Status.INCOMPLETE
            yield Verdict(row=row.name, metric=metric, status=status, reason=lack)
        elif gate.is_cost:
            yield judge_cost(gate, row, ours, run, reference, gates)
        else:
            yield _draft(gate, metric, row, ours, reference, gates)


def _lack(row: Row, ours: Row | None, gates: Gates) -> str:
    """Why a row of the run cannot be held against the reference's; empty if it can."""
    if ours is None:
        return "the run has no such row"
    theirs = {cell.seed: cell for cell in ours.cells}
    if gates.seeds == "same" and (missing := [seed for seed in row.seeds if seed not in theirs]):
        return f"the run lacks seeds {missing}"
    asked = changes(declared(row.cells[0]), declared(ours.cells[0]))
    if asked := [change for change in asked if change.key not in gates.ignore_recipe]:
        return f"asked for other options: {', '.join(change.key for change in asked)}"
    if gates.seeds == "same":
        return _missing_scores([(cell, theirs[cell.seed]) for cell in row.cells])
    return _missing_scores([(row.cells[0], cell) for cell in ours.cells])


def _missing_scores(cells: Sequence[tuple[CellResult, CellResult]]) -> str:
    """How many of the reference's scores the run lacks; a limited reference asks for what it has."""
    lacking: dict[str, int] = {}
    for reference, ours in cells:
        for name, rows in reference.scores.items():
            wanted, there = together(
                [Columns.of([(None, ScoreTable.of(each))]) for each in (rows, ours.scores[name])]
            )
            missing = int(np.isin(wanted.keys(), there.keys(), invert=True).sum())
            lacking[name] = lacking.get(name, 0) + missing
    shown = [f"{name} {count}" for name, count in lacking.items() if count]
    return f"scores that the reference has are missing: {', '.join(shown)}" if shown else ""


def _draft(gate: Gate, metric: str, row: Row, ours: Row, reference: Side, gates: Gates) -> Verdict | _Judged:
    names = reference.results.dimensions if metric == MEAN else [metric]
    differences = _differences(ours, row, names, gates)
    drop, level = _over_prompts(differences), effect([_scores(row.cells, names)])
    if drop.value is None or level.value is None:
        return Verdict(
            row=row.name, metric=metric, status=Status.INCOMPLETE, reason="the reference has no scores of it"
        )
    if drop.p is None and gates.significance is not None:
        reason = "one prompt only: no test can be had; give more prompts, or significance: null"
        return Verdict(row=row.name, metric=metric, status=Status.INCOMPLETE, reason=reason)
    return _Judged(gate, row.name, metric, level.value + drop.value, level.value, drop)


def _over_prompts(differences: Sequence[dict[str, Columns]]) -> Effect:
    """With the seeds as they are: both sides have the same, and what is asked is whether these got worse."""
    z, videos = table(differences)
    return effect_of(z.mean(0, keepdims=True), videos) if z.size else Effect(n=videos)


def _differences(ours: Row, row: Row, names: Sequence[str], gates: Gates) -> list[dict[str, Columns]]:
    """Run minus reference: an entry a seed, or one entry of means over the seeds of each side."""
    if gates.seeds == "same":
        theirs = {cell.seed: cell for cell in ours.cells}
        return Pair(ours, row, tuple((theirs[cell.seed], cell) for cell in row.cells)).differences(names)
    left, right = _scores(ours.cells, names), _scores(row.cells, names)
    return [{name: left[name].minus(right[name]) for name in names}]


def _scores(cells: Sequence[CellResult], names: Sequence[str]) -> dict[str, Columns]:
    """Means over seeds, video by video."""
    return {name: mean_over([ScoreTable.of(cell.scores[name]) for cell in cells]) for name in names}


def _quality(draft: _Judged, p: float | None, gates: Gates, scale: float) -> Verdict:
    gate, level = draft.gate, draft.reference * scale
    value, drop = draft.run * scale, (draft.reference - draft.run) * scale
    bounds = {"max_drop": gate.max_drop, "max_drop_relative": share_of(gate.max_drop_relative, level)}
    has_dropped = is_beyond(drop, bounds)
    is_significant = gates.significance is None or (p is not None and p < gates.significance)
    status, reason = Status.PASS, f"{'down' if drop > 0 else 'up'} by {abs(drop):.3g}"
    if has_dropped and is_significant:
        status, reason = Status.REGRESSION, f"{reason}, beyond {named(bounds)}"
    elif has_dropped:
        reason += f", beyond {named(bounds)}, but not significant (p {p:.3f})"
    if gate.min is not None and value < gate.min:
        status, reason = Status.REGRESSION, f"{value:.4g} is below the floor of {gate.min:g}"
    shown_p = None if gates.significance is None else p
    return Verdict(
        row=draft.row,
        metric=draft.metric,
        status=status,
        reason=reason,
        run=value,
        reference=level,
        p=shown_p,
    )
