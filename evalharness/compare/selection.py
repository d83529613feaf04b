"""``RUN`` or ``RUN:CELL``: which cells of which results are meant, and which stand against which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evalharness.columns import Columns
from evalharness.errors import UserError, unknown
from evalharness.result_schema import CellResult, Results
from evalharness.results import read_results
from evalharness.scoretable import ScoreTable

__all__ = ["Pair", "Row", "Side", "pairs", "read_side", "rows_of"]


@dataclass(frozen=True, slots=True)
class Row:
    """One method at one bit width of one model: its cells, one a seed."""

    model: str
    name: str
    cells: tuple[CellResult, ...]

    @property
    def seeds(self) -> list[int]:
        return [cell.seed for cell in self.cells]


@dataclass(frozen=True, slots=True)
class Side:
    """Results and what of them was asked for; ``cell`` is empty for all."""

    given: str
    results: Results
    cell: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two rows against each other, seed by seed.

    Attributes:
        seeds: of A and of B, cell by cell; not the same ones when two single cells were named.
    """

    a: Row
    b: Row
    cells: tuple[tuple[CellResult, CellResult], ...]

    @property
    def seeds(self) -> list[tuple[int, int]]:
        return [(a.seed, b.seed) for a, b in self.cells]

    def differences(self, dimensions: Sequence[str]) -> list[dict[str, Columns]]:
        """A minus B, one entry a seed, from the videos that both have."""
        return [{name: _minus(a, b, name) for name in dimensions} for a, b in self.cells]


def read_side(given: str) -> Side:
    """Read ``RUN``, ``RUN:CELL``, or the path of a ``results.json`` in place of RUN.

    Raises:
        UserError: no such run, results that cannot be read, no such cell.
    """
    path, colon, cell = given, "", ""
    if not Path(given).exists():
        path, colon, cell = given.rpartition(":")
        path = path if colon else given
        cell = cell if colon else ""
    target = Path(path)
    if not target.exists():
        raise UserError(f"{path}: no such run folder or results.json")
    results = read_results(target / "results.json" if target.is_dir() else target)
    side = Side(given, results, cell)
    if cell:
        rows_of(side)
    return side


def rows_of(side: Side) -> list[Row]:
    """The rows asked for, seeds together: ``lsq-w3a3`` is all seeds, ``lsq-w3a3-s0`` is one.

    Raises:
        UserError: no such cell.
    """
    groups: dict[tuple[str, str], list[CellResult]] = {}
    for cell in side.results.cells:
        groups.setdefault((cell.model, _row_name(cell)), []).append(cell)
    rows = [Row(model, name, tuple(cells)) for (model, name), cells in groups.items()]
    if not side.cell:
        return rows
    if found := [row for row in rows if row.name == side.cell]:
        return found
    found = [Row(c.model, _row_name(c), (c,)) for c in side.results.cells if c.id == side.cell]
    if not found:
        names = [*(row.name for row in rows), *(cell.id for cell in side.results.cells)]
        raise unknown(f"cell of {side.given.rpartition(':')[0]}", side.cell, names)
    return found


def pairs(a: Side, b: Side) -> tuple[list[Pair], list[str], list[str]]:
    """What stands against what, and the names of rows that only A and only B has.

    Where both sides name a cell these two are compared, whatever they are called. Otherwise rows of one
    model and name are; a cell that only one side names is looked up on the other.

    Raises:
        UserError: other protocols, dimensions or prompts; nothing in common.
    """
    _refuse_incomparable(a, b)
    if bool(a.cell) != bool(b.cell):
        a, b = (Side(s.given, s.results, s.cell or a.cell or b.cell) for s in (a, b))
        left, right = _named_like(a), _named_like(b)
    else:
        left, right = rows_of(a), rows_of(b)
    if a.cell and len(left) == len(right) == 1:
        return [_pair(left[0], right[0], a, b)], [], []
    theirs = {(row.model, row.name): row for row in right}
    ours = {(row.model, row.name): row for row in left}
    found = [_pair(row, theirs[key], a, b) for key, row in ours.items() if key in theirs]
    if not found:
        raise UserError(
            f"{a.given} and {b.given} have no row in common: {_listed(left)} against {_listed(right)}; "
            "name one cell of each, as RUN:CELL"
        )
    return (
        found,
        [row.name for key, row in ours.items() if key not in theirs],
        [row.name for key, row in theirs.items() if key not in ours],
    )


def _named_like(side: Side) -> list[Row]:
    """As ``rows_of``, with an error that says which run lacks the cell."""
    try:
        return rows_of(side)
    except UserError as error:
        raise UserError(f"{side.given}: {error}") from error


def _pair(a: Row, b: Row, left: Side, right: Side) -> Pair:
    theirs = {cell.seed: cell for cell in b.cells}
    common = [(cell, theirs[cell.seed]) for cell in a.cells if cell.seed in theirs]
    if not common and len(a.cells) == len(b.cells) == 1:
        common = [(a.cells[0], b.cells[0])]
    if not common:
        raise UserError(
            f"{left.given} {a.name} has seeds {a.seeds}, {right.given} {b.name} has {b.seeds}: none in "
            "common; name one cell of each, as RUN:CELL-sN"
        )
    return Pair(a, b, tuple(common))


def _refuse_incomparable(a: Side, b: Side) -> None:
    left, right = a.results, b.results
    if left.protocol != right.protocol:
        raise UserError(
            f"{a.given} has protocol {left.protocol}, {b.given} has {right.protocol}: their scores mean "
            "different things"
        )
    if set(left.dimensions) != set(right.dimensions):
        odd = sorted(set(left.dimensions) ^ set(right.dimensions))
        raise UserError(f"{a.given} and {b.given} have other dimensions: {', '.join(odd)} in one only")
    common = left.prompts.keys() & right.prompts.keys()
    other = sorted(name for name in common if left.prompts[name] != right.prompts[name])
    if other:
        raise UserError(
            f"{a.given} and {b.given}: prompt {other[0]} is {left.prompts[other[0]]!r} in one and "
            f"{right.prompts[other[0]]!r} in the other; scores of other prompts cannot be paired"
        )


def _minus(a: CellResult, b: CellResult, dimension: str) -> Columns:
    ours, theirs = (Columns.of([(None, ScoreTable.of(cell.scores[dimension]))]) for cell in (a, b))
    return ours.minus(theirs)


def _row_name(cell: CellResult) -> str:
    return cell.id.removesuffix(f"-s{cell.seed}")


def _listed(rows: Sequence[Row]) -> str:
    return ", ".join(row.name for row in rows) or "nothing"
