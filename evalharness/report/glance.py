"""Methods by bit widths on one screen: which keeps the quality, and which cannot be told from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from evalharness.report.html_tables import MINUS
from evalharness.report.rows import bits_label, estimate_text, number, scale_of

if TYPE_CHECKING:
    from evalharness.ranking import BitsRanking, Ranked
    from evalharness.result_schema import Estimate, PooledResult, Results

__all__ = ["Glance", "GlanceCell", "glance"]

KEY = (
    "Under each mean its distance from the best at that width. level: not told apart from the best; "
    "*: behind it with these seeds, though others might tell otherwise; no mark: behind it. The darker, the "
    "more of full precision's mean is lost."
)


@dataclass(frozen=True, slots=True)
class GlanceCell:
    """One method at one width.

    Attributes:
        state: ``best``, ``level``, ``here`` (the star) or ``behind``, see ``KEY``; ``none`` without a mean.
        fall: share of full precision's mean that is lost, 0..1.
    """

    text: str
    small: str
    state: str
    fall: float
    sort: str


@dataclass(frozen=True, slots=True)
class Glance:
    """``rows`` are a method's name and its cells in the order of ``columns``; best methods first."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[GlanceCell, ...]], ...]
    note: str


def glance(rankings: Sequence[BitsRanking], results: Results) -> Glance | None:
    """None where there is nothing to compare: no more than one method."""
    methods = {row.result.method for group in rankings for row in group.rows}
    if len(methods) < 2:
        return None
    several = len({group.model for group in rankings}) > 1
    references = {row.model: row for row in results.pooled if row.is_reference}
    columns, found = [], []
    for group in rankings:
        label = bits_label(group.w_bits, group.a_bits)
        columns.append(f"{group.model} {label}" if several else label)
        found.append(_column(group, references.get(group.model), results))
    empty = GlanceCell("-", "", "none", 0.0, "")
    rows = [(name, tuple(column.get(name, empty) for column in found)) for name in methods]
    rows.sort(key=lambda row: (-fmean(float(cell.sort or 0.0) for cell in row[1]), row[0]))
    whole = [f"{row.method} {estimate_text(row.mean, results)}" for row in references.values()]
    note = f"Full precision: {', '.join(whole)}. " if whole else ""
    return Glance(tuple(columns), tuple(rows), f"{note}{KEY}")


def _column(group: BitsRanking, whole: PooledResult | None, results: Results) -> dict[str, GlanceCell]:
    """By method."""
    if not group.rows:
        return {}
    best = group.rows[0]
    found = {best.result.method: _cell(best, "best", "best", whole, results)}
    for lead, row in zip(best.leads, group.rows[1:], strict=True):
        state = "behind" if lead.is_clear else "here" if lead.is_clear_here else "level"
        found[row.result.method] = _cell(row, _distance(lead.by, state, results), state, whole, results)
    return found


def _distance(by: Estimate, state: str, results: Results) -> str:
    digits = 1 if results.percent else 3
    text = number(None if by.value is None else -by.value * scale_of(results), digits)
    return f"{text.replace('-', MINUS)}{ {'level': ' level', 'here': ' *'}.get(state, '') }"


def _cell(row: Ranked, small: str, state: str, whole: PooledResult | None, results: Results) -> GlanceCell:
    mean = row.result.mean
    assert mean is not None and mean.value is not None  # a ranked row has one
    top = whole.mean.value if whole is not None and whole.mean is not None else None
    fall = min(1.0, max(0.0, (top - mean.value) / top)) if top is not None and top > 0 else 0.0
    text = number(mean.value * scale_of(results), 1 if results.percent else 3)
    return GlanceCell(text, small, state, round(fall, 3), repr(mean.value))
