"""``results.json`` read with its scores as columns: no list and no number object for each of them.

Text that is not as ``write_results`` writes it is read as any JSON is, so that what it means, and what is
wrong with it, does not depend on this module.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from evalharness.scoretable import ScoreTable
from evalharness.store import parse_json

__all__ = ["read_document"]

PART = 1 << 16
"""Characters of rows that are parsed at a time."""

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


class _UnusualError(Exception):
    """Not as we write it; the text may be good JSON all the same."""


def read_document(text: str) -> Any:
    """The JSON value of ``text``; rows in ``cells[].scores`` as ``ScoreTable`` where they can be.

    Raises:
        ValueError: the text is not JSON.
    """
    try:
        return _Reader(text).document()
    except (_UnusualError, ValueError, RecursionError):
        return parse_json(text)


class _Reader:
    """Walks through the outer levels of the text; what lies deeper goes to ``json``."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._names: dict[str, int] = {}
        self._tables: list[ScoreTable] = []

    def document(self) -> dict[str, Any]:
        found, end = self._object(self._skip(0), {"cells": self._cells})
        if self._skip(end) != len(self._text):
            raise _UnusualError
        self._share_names()
        return found

    def _cells(self, at: int) -> tuple[Any, int]:
        cells = []
        at = self._expect("[", at)
        while True:
            cell, at = self._object(at, {"scores": self._scores})
            cells.append(cell)
            if self._text[at : at + 1] == "]":
                return cells, at + 1
            at = self._expect(",", at)

    def _scores(self, at: int) -> tuple[Any, int]:
        return self._object(at, None)

    def _object(
        self, at: int, special: dict[str, Callable[[int], tuple[Any, int]]] | None
    ) -> tuple[dict[str, Any], int]:
        """An object from its brace; ``special`` keys are read by their own functions, of None all as rows."""
        found: dict[str, Any] = {}
        at = self._expect("{", at)
        if self._text[at : at + 1] == "}":
            return found, self._skip(at + 1)
        while True:
            key, at = self._value(at)
            if not isinstance(key, str):
                raise _UnusualError
            at = self._expect(":", at)
            read = self._rows if special is None else special.get(key, self._value)
            found[key], at = read(at)
            at = self._skip(at)
            if self._text[at : at + 1] == "}":
                return found, self._skip(at + 1)
            at = self._expect(",", at)

    def _value(self, at: int) -> tuple[Any, int]:
        value, end = _DECODER.raw_decode(self._text, at)
        return value, self._skip(end)

    def _rows(self, at: int) -> tuple[Any, int]:
        """A list of rows, parsed part by part."""
        text, codes, samples, values = self._text, [], [], []
        at = self._expect("[", at)
        while text[at : at + 1] != "]":
            # A part ends with a row. Were that bracket inside a string, the part would not parse.
            close = text.find("]]", at, at + PART)
            if close < 0 and (close := text.rfind("], [", at, at + PART)) < 0:
                raise _UnusualError
            rows = json.loads(f"[{text[at : close + 1]}]")
            code, sample, value = self._columns(rows)
            codes.append(code)
            samples.append(sample)
            values.append(value)
            at = self._skip(close + 1)
            if text[at : at + 1] == ",":
                at = self._skip(at + 1)
        if not codes:
            return [], at + 1
        table = ScoreTable((), np.concatenate(codes), np.concatenate(samples), np.concatenate(values))
        self._tables.append(table)
        return table, at + 1

    def _columns(self, rows: list[Any]) -> tuple[Any, Any, Any]:
        if set(map(type, rows)) != {list} or set(map(len, rows)) != {3}:
            raise _UnusualError
        ids, samples, values = zip(*rows, strict=True)
        kinds = [set(map(type, column)) for column in (ids, samples, values)]
        if kinds[0] != {str} or kinds[1] != {int} or not kinds[2] <= {int, float}:
            raise _UnusualError
        names = self._names
        found = list(map(names.get, ids))
        if None in found:
            found = [names.setdefault(name, len(names)) for name in ids]
        try:
            return np.array(found, np.int32), np.array(samples, np.int64), np.array(values, np.float64)
        except OverflowError:
            raise _UnusualError from None

    def _share_names(self) -> None:
        """All tables get the same names, in order."""
        known = list(self._names)
        order = sorted(range(len(known)), key=known.__getitem__)
        place = np.empty(len(known), np.int32)
        place[order] = np.arange(len(known), dtype=np.int32)
        names = tuple(known[index] for index in order)
        for table in self._tables:
            table.names, table.prompt = names, place[table.prompt]

    def _expect(self, character: str, at: int) -> int:
        if self._text[at : at + 1] != character:
            raise _UnusualError
        return self._skip(at + 1)

    def _skip(self, at: int) -> int:
        found = _SPACE.match(self._text, at)
        assert found is not None
        return found.end()
