"""A comparison as text for a terminal, and the words that its page shares."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from evalharness.compare.comparison import Comparison, RowDifference
from evalharness.compare.recipes import Change
from evalharness.effects import CONFIDENCE, Effect
from evalharness.hashing import jsonable

__all__ = ["change_text", "difference_text", "notes", "p_text", "seeds_text", "text", "to_json", "value_text"]


def to_json(comparison: Comparison) -> str:
    """Everything, scores raw."""
    return json.dumps(jsonable(dataclasses.asdict(comparison)), indent=1, allow_nan=False)


def text(comparison: Comparison) -> str:
    """For a terminal: recipe first, then each row with its dimensions, costs, winners and losers."""
    lines = [f"A: {comparison.a}", f"B: {comparison.b}", f"{comparison.label}", ""]
    lines += _changes("RECIPE DIFFERS (A -> B):", comparison.recipe)
    lines += _changes("environment differs (A -> B):", comparison.environment)
    for row in comparison.rows:
        lines += _row(row, comparison)
    for name, rows in (("A", comparison.only_a), ("B", comparison.only_b)):
        if rows:
            lines += [f"only in {name}: {', '.join(rows)}"]
    return "\n".join([*lines, *notes(comparison)]) + "\n"


def notes(comparison: Comparison) -> list[str]:
    """How to read the numbers."""
    unit = "points of 100" if comparison.percent else "raw scores"
    lines = [
        f"Differences are A minus B on the videos that both have, in {unit}, with {CONFIDENCE:.0%} intervals "
        "over prompts, and over seeds too where there are several. p: two-sided t test of no difference; "
        "Holm: corrected for the number of dimensions of a row, and of a mean for the number of rows.",
    ]
    if any(len(row.seeds) == 2 for row in comparison.rows):
        lines.append("Two seeds say little about other seeds: such an interval may hold as little as 86 %.")
    if any(row.is_partial for row in comparison.rows):
        lines.append("PARTIAL: a cell lacks scores; means are over what is common, not over the protocol.")
    return lines


def difference_text(effect: Effect, percent: bool) -> str:
    """``-0.8 [-1.7, 0.2]``; a dash without data."""
    if effect.value is None:
        return "-"
    value = value_text(effect.value, percent, signed=True)
    if effect.lo is None or effect.hi is None:
        return value
    return f"{value} [{value_text(effect.lo, percent)}, {value_text(effect.hi, percent)}]"


def value_text(value: float | None, percent: bool, *, signed: bool = False) -> str:
    """In percent with two decimals, else raw with four; never ``-0.00``."""
    if value is None:
        return "-"
    shown = f"{100 * value:.2f}" if percent else f"{value:.4f}"
    shown = shown.lstrip("-") if float(shown) == 0 else shown
    return f"+{shown}" if signed and not shown.startswith("-") else shown


def p_text(p: float | None) -> str:
    """Three decimals, ``<0.001`` below, a dash for none."""
    if p is None:
        return "-"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def seeds_text(row: RowDifference) -> str:
    """``seeds 0, 1, 2``, or ``seeds 0/1`` where A's seed 0 stands against B's seed 1."""
    return "seeds " + ", ".join(str(a) if a == b else f"{a}/{b}" for a, b in row.seeds)


def change_text(change: Change) -> str:
    """``rank: 32 -> 16``; long values (hashes) cut."""
    return f"{change.key}: {_short(change.a)} -> {_short(change.b)}"


def _short(value: Any) -> str:
    shown = "(none)" if value is None else json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= 48 else f"{shown[:20]}...{shown[-8:]}"


def _changes(title: str, found: Sequence[Change]) -> list[str]:
    return [title, *(f"  {change_text(change)}" for change in found), ""] if found else []


def _row(row: RowDifference, comparison: Comparison) -> list[str]:
    percent = comparison.percent
    name = row.a if row.a == row.b else f"{row.a} minus {row.b}"
    lines = [f"== {name} ({row.model}, {seeds_text(row)}{', PARTIAL' if row.is_partial else ''})"]
    lines += [f"  recipe differs: {change_text(change)}" for change in row.recipe]
    head = ("", "A", "B", "A - B", "p", "Holm", "pairs")
    table = [head, ("mean", "", "", *_tested(row.mean, row.p_holm, percent))]
    table += [
        (
            d.name,
            value_text(d.a, percent),
            value_text(d.b, percent),
            *_tested(d.difference, d.p_holm, percent),
        )
        for d in row.dimensions
    ]
    widths = [max(len(line[column]) for line in table) for column in range(len(head))]
    lines += ["  " + "  ".join(f"{t:<{w}}" for t, w in zip(r, widths, strict=True)).rstrip() for r in table]
    lines.append(f"  prompts: A better on {row.wins}, worse on {row.losses}, equal on {row.ties}")
    for title, prompts in (("best for A", row.winners), ("worst for A", row.losers)):
        lines += [
            f"  {title}: {p.prompt_id} {value_text(p.difference, percent, signed=True)} "
            f"({p.most} {value_text(p.by, percent, signed=True)}) {p.text}"
            for p in prompts
        ]
    lines += [
        f"  {cost.name}: {cost.a:.2f} against {cost.b:.2f}"
        + (f" ({100 * cost.relative:+.1f} %)" if cost.relative is not None else "")
        for cost in row.costs
    ]
    return [*lines, ""]


def _tested(effect: Effect, p_holm: float | None, percent: bool) -> tuple[str, str, str, str]:
    return difference_text(effect, percent), p_text(effect.p), p_text(p_holm), str(effect.n)
