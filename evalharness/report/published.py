"""What papers report for the methods of a run: apart from what was measured, each row with its source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from evalharness.papers import PaperRow, paper_rows, read_papers
from evalharness.report.html_tables import Column, Row, Table, TableCell
from evalharness.report.rows import bits_label, number, scale_of, sorted_pooled

if TYPE_CHECKING:
    from evalharness.papers import PaperNumber
    from evalharness.result_schema import Estimate, PooledResult, Results

_MEAN = "mean"


@dataclass(frozen=True, slots=True)
class Published:
    """Rows of papers beside measured ones.

    Attributes:
        is_comparable: whether they are of the protocol that was run.
        measured: the run's own rows on the models of ``rows``, as (row, values by metric).
    """

    is_comparable: bool
    metrics: tuple[str, ...]
    rows: tuple[PaperRow, ...]
    measured: tuple[PooledResult, ...]


def published(results: Results, numbers: list[PaperNumber] | None = None) -> Published | None:
    """Rows of the methods that the run has; None where no paper has one.

    Those of the same protocol and model if there are any, else those of the same protocol, else all that
    report a dimension of the same name, which are then not comparable.
    """
    names = {cell.variant_of or cell.method for cell in results.cells}
    metrics = [*results.dimensions, _MEAN]
    rows = [
        row
        for row in paper_rows(read_papers() if numbers is None else numbers)
        if row.first.row in names and any(name in row.values for name in metrics)
    ]
    same = [row for row in rows if row.first.protocol.partition(",")[0] == results.protocol]
    models = {_plain(cell.model) for cell in results.cells}
    mine = [row for row in same if _plain(row.first.model) in models]
    kept = mine or same or rows
    if not kept:
        return None
    used = tuple(name for name in metrics if any(name in row.values for row in kept))
    measured = tuple(sorted_pooled(results)) if mine else ()
    return Published(bool(same), used, tuple(kept), measured)


def published_table(found: Published, results: Results) -> Table:
    """The rows as a table of the page; it opens on a click where they cannot be compared."""
    columns = [Column("method", True), Column("bits"), Column("model", True), Column("from", True)]
    columns += [Column("prompts", True), *(Column(name) for name in found.metrics)]
    rows = [_measured(row, found.metrics, results) for row in found.measured]
    rows += [_printed(row, found.metrics) for row in found.rows]
    note = (
        "Reported by papers, not measured here: no mean, interval or ranking above contains them. "
        "Second-hand "
        "means quoted by another source than the paper itself. Rows of different papers differ in "
        "prompts, seeds "
        "and code."
    )
    if not found.is_comparable:
        note += (
            f" NOT COMPARABLE with this run: these are other models, other videos and other judges than "
            f"{results.protocol}'s; only the names of the dimensions are the same."
        )
    return Table("Published numbers", note, tuple(columns), tuple(rows), is_folded=not found.is_comparable)


def published_markdown(found: Published, results: Results) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of the same table as text."""
    table = published_table(found, results)
    rows = [[" ".join(part for part in (c.text, c.small) if part) for c in row.cells] for row in table.rows]
    return [column.name for column in table.columns], rows


def _printed(row: PaperRow, metrics: tuple[str, ...]) -> Row:
    first = row.first
    source = f"paper: {first.paper}" + (f", {first.table}" if first.table else "")
    hand = f"second-hand, read in: {first.read_in}" if first.is_second_hand else "first-hand"
    note = f"{hand}; {first.note}" if first.note else hand
    values = [row.values.get(name) for name in metrics]
    cells = (
        TableCell(first.method, first.scheme, first.method),
        TableCell(bits_label(first.bits_w, first.bits_a), sort=str(100 * first.bits_w + first.bits_a)),
        TableCell(first.model, sort=first.model),
        TableCell(source, note, source),
        TableCell(first.protocol, sort=first.protocol),
        *(TableCell(v.value if v else "-", sort=v.value if v else "") for v in values),
    )
    return Row(cells, is_reference=first.bits_w >= 16)


def _measured(row: PooledResult, metrics: tuple[str, ...], results: Results) -> Row:
    cells = (
        TableCell(row.method, sort=row.method),
        TableCell(bits_label(row.w_bits, row.a_bits), sort=str(100 * row.w_bits + row.a_bits)),
        TableCell(row.model, sort=row.model),
        TableCell("measured here", sort="measured here"),
        TableCell(results.protocol, sort=results.protocol),
        *(_value(row.mean if name == _MEAN else row.dimensions[name], results) for name in metrics),
    )
    return Row(cells, is_reference=row.is_reference)


def _value(estimate: Estimate | None, results: Results) -> TableCell:
    value = None if estimate is None or estimate.value is None else estimate.value * scale_of(results)
    return TableCell(number(value, 2), sort="" if value is None else repr(value))


def _plain(name: str) -> str:
    """Letters and digits alone: models are spelt in many ways."""
    return "".join(character for character in name.lower() if character.isalnum())
