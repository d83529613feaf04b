"""A checksum at the end of each line of a record, of each small file and of results: a flipped digit is seen.

A line ends with ``, "crc": "1a2b3c4d"}``: the CRC-32 of all bytes before that comma, in hex. A small file has
the sum of its record as ``json.dumps`` gives it, so that one which was indented anew still fits, and
``results.json``, which may be long, that of its text. What older versions wrote has none, and is read as it
is. It tells damage, not forgery.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from zlib import crc32

__all__ = ["KEY", "fits", "is_sound", "sum_of", "summed", "with_sum"]

KEY = "crc"
_MARK, _END = b', "crc": "', b'"}\n'
_FROM = -(len(_MARK) + 8 + len(_END))
_PART = 1 << 20
_DIGITS = slice(_FROM + len(_MARK), -len(_END))


def summed(text: str) -> str:
    """The line of a JSON object, as ``json.dumps`` gives it, with its sum; one without keys has none."""
    body = text[:-1]
    return text if body == "{" else f'{body}, "{KEY}": "{crc32(body.encode()):08x}"}}'


def sum_of(record: Mapping[str, Any]) -> str:
    """Of a whole file's record, without its sum."""
    return f"{crc32(json.dumps(record).encode()):08x}"


def is_sound(line: bytes) -> bool | None:
    """Whether a line, its end included, is as it was written; None where it does not say.

    A copy whose lines end with CR LF says the same.
    """
    if line.endswith(b"\r\n"):
        line = line[:-2] + b"\n"
    if line[_FROM : _DIGITS.start] != _MARK or line[_DIGITS.stop :] != _END:
        return None
    return line[_DIGITS] == b"%08x" % crc32(line[:_FROM])


def with_sum(pieces: Iterable[str]) -> Iterator[str]:
    """Pieces of a JSON object, all but its end, and then its end, with their sum as the last key."""
    crc = 0
    for piece in pieces:
        crc = crc32(piece.encode(), crc)
        yield piece
    yield _end(crc)


def fits(text: str) -> bool:
    """Whether a text is as ``with_sum`` wrote it, but for the ends of its lines if it was read as text."""
    start, crc = len(text) - len(_end(0)), 0
    for first in range(0, start, _PART):
        crc = crc32(text[first : min(first + _PART, start)].encode(), crc)
    return start > 0 and text[start:] == _end(crc)


def _end(crc: int) -> str:
    return f',\n "{KEY}": "{crc:08x}"\n}}\n'
