"""The tables of the page: what each cell shows and what it sorts by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING

from evalharness.report.recipes import anchors
from evalharness.report.rows import (
    AGAINST_REFERENCE,
    bits_label,
    cost,
    cost_columns,
    coverage_text,
    dimension_text,
    estimate_text,
    minus_reference,
    number,
    seed_means_text,
    sorted_cells,
    sorted_pooled,
    total_columns,
)

if TYPE_CHECKING:
    from evalharness.result_schema import CellResult, Estimate, PooledResult, Results


_SIZES = ("weight_bits", "stored_mb")  # counted, so that a simulation has them too

MINUS = "\N{MINUS SIGN}"  # as wide as a plus, so that signs stand under each other
_CLICKS = "A click on a column's name sorts by it; a click on a method shows its recipe."


@dataclass(frozen=True, slots=True)
class Column:
    """A column's name; text columns are left-aligned and sorted as text."""

    name: str
    is_text: bool = False


@dataclass(frozen=True, slots=True)
class TableCell:
    """What is shown, a second smaller line, the sort key (empty sorts last), a place to jump to.

    Attributes:
        bar: the interval drawn: percent of the column's width at which it begins, has its value, and ends.
    """

    text: str
    small: str = ""
    sort: str = ""
    anchor: str = ""
    bar: tuple[float, float, float] | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """Cells in the order of the columns; ``method`` and ``bits`` are what the page filters by."""

    cells: tuple[TableCell, ...]
    is_reference: bool
    method: str = ""
    bits: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """One sortable table of the page; a folded one opens on a click."""

    title: str
    note: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    is_folded: bool = False


def cell_table(results: Results, *, is_folded: bool) -> Table:
    """One row a cell."""
    texts = [Column("method", True), Column("bits"), Column("seed")]
    facts = [Column("source", True), Column("execution", True), Column("coverage")]
    facts += [*_total_columns(results), Column("mean"), Column(AGAINST_REFERENCE)]
    numbers = [Column(name) for name in (*results.dimensions, *cost_columns(results), "train_minutes")]
    differences, places, ends = minus_reference(results), anchors(results), _ends(results)
    rows = tuple(
        Row(
            _cells(cell, differences.get(cell.id), results, places[cell.id], ends),
            cell.is_reference,
            cell.method,
            bits_label(cell.w_bits, cell.a_bits),
        )
        for cell in sorted_cells(results)
    )
    note = f"One row for each method, bit width and seed. {_CLICKS}"
    title = "Every cell" if is_folded else "Leaderboard"
    return Table(title, note, (*texts, *facts, *numbers), rows, is_folded)


def pooled_table(results: Results) -> Table:
    """One row for each method and bit width, all seeds together."""
    columns = [Column("method", True), Column("bits"), *_total_columns(results), Column("mean")]
    columns += [Column(AGAINST_REFERENCE), *(Column(name) for name in _SIZES)]
    columns += [Column("mean of each seed", True), *(Column(name) for name in results.dimensions)]
    columns += [Column("source", True), Column("execution", True)]
    places, ends = anchors(results), _ends(results)
    rows = tuple(
        Row(
            _pooled_cells(row, results, places[row.cells[0]], ends),
            row.is_reference,
            row.method,
            bits_label(row.w_bits, row.a_bits),
        )
        for row in sorted_pooled(results)
    )
    note = f"{len(results.seeds)} seeds taken together; prompts stay the clusters of the intervals. {_CLICKS}"
    return Table("Leaderboard, all seeds together", note, tuple(columns), rows)


def _cells(
    cell: CellResult, difference: Estimate | None, results: Results, anchor: str, ends: tuple[float, float]
) -> tuple[TableCell, ...]:
    return (
        TableCell(cell.method, sort=cell.method, anchor=anchor),
        _bits(cell),
        TableCell(str(cell.seed), sort=str(cell.seed)),
        _text(cell.source),
        _text(cell.execution),
        TableCell(coverage_text(cell.coverage), sort=repr(cell.coverage)),
        *_totals(cell, results),
        _mean(cell, results, ends),
        _estimate(difference, results, signed=True),
        *_dimensions(cell, results),
        *(_number(cost(cell, column), 2) for column in cost_columns(results)),
        _number(cell.train_minutes, 1),
    )


def _pooled_cells(
    row: PooledResult, results: Results, anchor: str, ends: tuple[float, float]
) -> tuple[TableCell, ...]:
    return (
        TableCell(row.method, sort=row.method, anchor=anchor),
        _bits(row),
        *_totals(row, results),
        _mean(row, results, ends),
        _estimate(row.minus_reference, results, signed=True),
        *(_number(_median_cost(row, name, results), 2) for name in _SIZES),
        _text(seed_means_text(row, results)),
        *_dimensions(row, results),
        _text(", ".join(row.sources)),
        _text(", ".join(row.executions)),
    )


def _total_columns(results: Results) -> list[Column]:
    return [Column(name) for name in total_columns(results)]


def _totals(row: CellResult | PooledResult, results: Results) -> list[TableCell]:
    return [_estimate(row.totals.get(name), results) for name in results.totals]


def _dimensions(row: CellResult | PooledResult, results: Results) -> Sequence[TableCell]:
    estimates = [row.dimensions[name] for name in results.dimensions]
    return [_split(dimension_text(estimate, results), estimate) for estimate in estimates]


def _text(text: str) -> TableCell:
    return TableCell(text, sort=text)


def _bits(row: CellResult | PooledResult) -> TableCell:
    return TableCell(bits_label(row.w_bits, row.a_bits), sort=str(100 * row.w_bits + row.a_bits))


def _number(value: float | None, digits: int) -> TableCell:
    return TableCell(number(value, digits), sort="" if value is None else repr(value))


def _estimate(estimate: Estimate | None, results: Results, *, signed: bool = False) -> TableCell:
    text = estimate_text(estimate, results, signed=signed)
    return _split(text if text == "-" else text.replace("-", MINUS), estimate)


def _mean(row: CellResult | PooledResult, results: Results, ends: tuple[float, float]) -> TableCell:
    """With its interval drawn from ``ends`` to ``ends``, a scale that all rows share."""
    plain, mean = _estimate(row.mean, results), row.mean
    least, most = ends
    if mean is None or mean.value is None or mean.lo is None or mean.hi is None or least >= most:
        return plain
    begin, at, end = (round(100 * (x - least) / (most - least), 1) for x in (mean.lo, mean.value, mean.hi))
    return replace(plain, bar=(begin, at, end))


def _ends(results: Results) -> tuple[float, float]:
    """Where the lowest interval of a mean begins and the highest ends."""
    means = [*(cell.mean for cell in results.cells), *(row.mean for row in results.pooled)]
    found = [end for mean in means if mean is not None for end in (mean.lo, mean.hi) if end is not None]
    return (min(found), max(found)) if found else (0.0, 0.0)


def _median_cost(row: PooledResult, column: str, results: Results) -> float | None:
    """Over the row's seeds."""
    found = [value for name in row.cells if (value := cost(results.cell(name), column)) is not None]
    return median(found) if found else None


def _split(text: str, estimate: Estimate | None) -> TableCell:
    """The value on the first line, interval and count on the second."""
    value, _, rest = text.partition(" ")
    known = estimate is not None and estimate.value is not None
    return TableCell(value, rest, repr(estimate.value) if estimate is not None and known else "")
