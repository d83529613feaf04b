"""Numbers that papers report, as data: one CSV row a number, each with where it was read.

They are shown beside measured ones, never mixed with them: no mean, interval or ranking is made of them.
The files lie in ``results/paper`` of the repository and are part of the installed package.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from evalharness.errors import UserError

__all__ = ["COLUMNS", "PaperNumber", "PaperRow", "paper_folder", "paper_rows", "read_papers"]

COLUMNS = (
    "paper",
    "arxiv",
    "table",
    "model",
    "protocol",
    "method",
    "row",
    "bits_w",
    "bits_a",
    "scheme",
    "metric",
    "value",
    "unit",
    "hand",
    "read_in",
    "reference",
    "note",
)
_REQUIRED = (
    "paper",
    "model",
    "protocol",
    "method",
    "metric",
    "value",
    "unit",
    "hand",
    "read_in",
    "reference",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperNumber:
    """One number of a paper.

    Attributes:
        paper: the publication that the number comes from.
        table: its table, where the source tells.
        model: lower case, e.g. ``wan2.1-1.3b``.
        protocol: what was evaluated; ``qvgen-8``: VBench's eight dimensions on short prompts.
        method: as the paper calls it.
        row: the harness's name of that method, empty where it has none.
        value: digits as printed; ``number`` is the same as a float.
        unit: ``percent``, ``ratio`` and so on.
        hand: ``first`` if read in the paper itself or its authors' code, ``second`` if quoted elsewhere.
        read_in: where it was read.
        reference: section of the notes that list it.
    """

    paper: str
    arxiv: str
    table: str
    model: str
    protocol: str
    method: str
    row: str
    bits_w: int
    bits_a: int
    scheme: str
    metric: str
    value: str
    unit: str
    hand: Literal["first", "second"]
    read_in: str
    reference: str
    note: str

    @property
    def number(self) -> float:
        return float(self.value)

    @property
    def is_second_hand(self) -> bool:
        return self.hand == "second"


@dataclass(frozen=True, slots=True)
class PaperRow:
    """The numbers of one method at one bit width in one paper, read in one place.

    Attributes:
        first: one of them, for all that they share.
        values: metric -> number.
    """

    first: PaperNumber
    values: dict[str, PaperNumber] = field(default_factory=dict)


def paper_folder() -> Path:
    """The CSV files: inside an installed package, or of the repository that it runs from."""
    package = Path(__file__).parent
    inside = package / "paper_data"
    return inside if inside.is_dir() else package.parent / "results" / "paper"


def read_papers(folder: Path | None = None) -> list[PaperNumber]:
    """All numbers of all files, in the files' order; empty where there is no such folder.

    Raises:
        UserError: a row lacks its source, is no number, or stands there twice.
    """
    found: list[PaperNumber] = []
    seen: dict[tuple[object, ...], str] = {}
    for path in sorted((paper_folder() if folder is None else folder).glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise UserError(f"{path}: columns {str(reader.fieldnames)[:300]}, expected {list(COLUMNS)}")
            for record in reader:
                where = f"{path}: line {reader.line_num}"
                number = _number(record, where)
                key = (*_shared(number), number.metric)
                if key in seen:
                    raise UserError(f"{where}: the number of {seen[key]} again")
                seen[key] = where
                found.append(number)
    return found


def paper_rows(numbers: Iterable[PaperNumber]) -> list[PaperRow]:
    """The numbers by method, bit width and place; in the order in which they come."""
    rows: dict[tuple[object, ...], PaperRow] = {}
    for number in numbers:
        rows.setdefault(_shared(number), PaperRow(number)).values[number.metric] = number
    return list(rows.values())


def _shared(number: PaperNumber) -> tuple[object, ...]:
    bits = (number.bits_w, number.bits_a)
    place = (number.paper, number.read_in, number.model, number.protocol)
    return (*place, number.method, *bits, number.scheme)


def _number(record: dict[str, str], where: str) -> PaperNumber:
    missing = [name for name in _REQUIRED if not record.get(name)]
    if missing or None in record or None in record.values():
        raise UserError(f"{where}: {', '.join(missing) or 'a column'} is missing; a number needs its source")
    try:
        bits = int(record["bits_w"]), int(record["bits_a"])
        is_finite = math.isfinite(float(record["value"]))
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    hand = record["hand"]
    if not is_finite or (hand != "first" and hand != "second"):
        raise UserError(
            f"{where}: value {record['value']}, hand {hand!r}: expected a number, first or second"
        )
    texts = {name: record[name] for name in COLUMNS if name not in ("bits_w", "bits_a", "hand")}
    return PaperNumber(
        **texts, bits_w=bits[0], bits_a=bits[1], hand="second" if hand == "second" else "first"
    )


def table_of(numbers: Sequence[PaperNumber]) -> list[dict[str, str]]:
    """One record a row, for ``ls papers``: method, bits, where from, and the numbers in words."""
    return [
        {
            "paper": row.first.paper,
            "model": row.first.model,
            "protocol": row.first.protocol,
            "method": row.first.method,
            "bits": _bits(row.first),
            "hand": row.first.hand,
            "read in": row.first.read_in,
            "numbers": ", ".join(f"{name} {number.value}" for name, number in row.values.items()),
        }
        for row in paper_rows(numbers)
    ]


def _bits(number: PaperNumber) -> str:
    return "16/16" if number.bits_w >= 16 else f"{number.bits_w}/{number.bits_a}"
