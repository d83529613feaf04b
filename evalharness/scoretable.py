"""Scores of one dimension as columns that read like a list of rows.

A list of 100,000 rows takes some 20 MB and a second to walk; three arrays take 2 MB and are computed with
whole. To whoever reads it (a reporter, a test) a table is the sequence of ``ScoreRow`` that it always was.

Shape legend: N scores, P prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

__all__ = ["Names", "ScoreRow", "ScoreTable", "union"]

Codes = NDArray[np.int32]
Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Names = tuple[str, ...]

CHUNK = 8192


class ScoreRow(NamedTuple):
    """One video's score in one dimension; ``value`` raw, finite."""

    prompt_id: str
    sample: int
    value: float


class ScoreTable(Sequence[ScoreRow]):
    """Rows in their order.

    Attributes:
        names: prompt ids in order, without repeats [P]; tables of one file share them.
        prompt: place of each row's prompt in ``names`` [N].
        sample: number of the video [N].
        value: raw score [N].
    """

    __slots__ = ("known", "names", "prompt", "sample", "value")

    def __init__(self, names: Names, prompt: Codes, sample: Integers, value: Floats) -> None:
        self.names, self.prompt, self.sample, self.value = names, prompt, sample, value
        self.known: dict[int | None, Any] = {}  # what ``columns`` made of it: every gate asks again

    @classmethod
    def of(cls, rows: Iterable[tuple[str, int, float]]) -> ScoreTable:
        """A table as it is, or one of any rows.

        Raises:
            ValueError: the number of a video is beyond 64 bits.
        """
        if isinstance(rows, ScoreTable):
            return rows
        listed = list(rows)
        columns: tuple[Sequence[Any], ...] = tuple(zip(*listed, strict=True)) if listed else ((), (), ())
        ids, samples, values = columns
        return cls.from_columns(ids, samples, np.array(values, dtype=np.float64))

    @classmethod
    def from_columns(cls, ids: Sequence[str], samples: Sequence[int], values: Floats) -> ScoreTable:
        """The same from three columns.

        Raises:
            ValueError: the number of a video is beyond 64 bits.
        """
        names = tuple(sorted(set(ids)))
        place = {name: index for index, name in enumerate(names)}
        codes = np.fromiter((place[name] for name in ids), np.int32, len(ids))
        try:
            numbers = np.array(samples, dtype=np.int64)
        except OverflowError:
            raise ValueError("the number of a video is beyond 64 bits") from None
        return cls(names, codes, numbers, values)

    def __len__(self) -> int:
        return len(self.value)

    @overload
    def __getitem__(self, at: int) -> ScoreRow: ...
    @overload
    def __getitem__(self, at: slice) -> ScoreTable: ...
    def __getitem__(self, at: int | slice) -> ScoreRow | ScoreTable:
        if isinstance(at, slice):
            return self.take(at)
        return ScoreRow(self.names[self.prompt[at]], int(self.sample[at]), float(self.value[at]))

    def __iter__(self) -> Iterator[ScoreRow]:
        for start in range(0, len(self), CHUNK):
            yield from map(ScoreRow._make, self.chunk(start))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ScoreTable):
            if len(self) != len(other):
                return False
            mine, theirs = self.prompt, other.prompt
            if self.names is not other.names:
                _, (to_mine, to_theirs) = union([self.names, other.names])
                mine, theirs = to_mine[mine], to_theirs[theirs]
            pairs = ((mine, theirs), (self.sample, other.sample), (self.value, other.value))
            return all(np.array_equal(a, b) for a, b in pairs)
        if isinstance(other, Sequence) and not isinstance(other, str | bytes):
            return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # a sequence that compares as a list does

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3]))
        return f"ScoreTable([{shown}{', ...' if len(self) > 3 else ''}], {len(self)} rows)"

    def chunk(self, start: int) -> Iterator[tuple[str, int, float]]:
        """Rows from ``start`` on as plain tuples, ``CHUNK`` of them at most."""
        part = slice(start, start + CHUNK)
        names = self.names
        ids = (names[code] for code in self.prompt[part].tolist())
        return zip(ids, self.sample[part].tolist(), self.value[part].tolist(), strict=True)

    def take(self, which: Any) -> ScoreTable:
        """The rows at some places, by any index of NumPy."""
        return ScoreTable(self.names, self.prompt[which], self.sample[which], self.value[which])

    def ordered(self) -> ScoreTable:
        """By prompt, number, value."""
        order = np.lexsort((self.value, self.sample, self.prompt))
        return self if bool((np.diff(order) == 1).all()) else self.take(order)

    def repeats(self) -> bool:
        """Whether a video has two rows."""
        order = np.lexsort((self.sample, self.prompt))
        same = (np.diff(self.prompt[order]) == 0) & (np.diff(self.sample[order]) == 0)
        return bool(same.any())

    def prompts(self) -> set[str]:
        """Ids of the prompts that have a row."""
        return {self.names[code] for code in np.unique(self.prompt).tolist()}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        rows = handler.generate_schema(list[ScoreRow])

        def validate(value: Any, check: Any) -> ScoreTable:
            return value if isinstance(value, ScoreTable) else cls.of(check(value))

        return core_schema.no_info_wrap_validator_function(
            validate, rows, serialization=core_schema.plain_serializer_function_ser_schema(
                list, return_schema=rows
            ),
        )  # fmt: skip


def union(several: Sequence[Names]) -> tuple[Names, list[NDArray[np.int32]]]:
    """All names in order, and for each list where its names stand among them."""
    first = several[0] if several else ()
    if all(names is first or names == first for names in several):
        same = np.arange(len(first), dtype=np.int32)
        return first, [same] * len(several)
    names = tuple(sorted(set().union(*several)))
    place = {name: index for index, name in enumerate(names)}
    return names, [np.fromiter((place[name] for name in each), np.int32, len(each)) for each in several]
