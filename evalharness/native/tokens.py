"""CLIP's byte pair encoding (Sennrich et al. 2016, over bytes), from its published list of merges."""

from __future__ import annotations

import functools
import gzip
import html
import itertools
from collections.abc import Iterator

import regex

from evalharness.api import Skip

__all__ = ["ClipTokens", "cleaned"]

START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = 49152 - 256 - 2
_WORD_END = "</w>"
_PIECES = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'(?:s|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)


class ClipTokens:
    """Text to numbers.

    Args:
        merges: the gzipped list as published: a heading, then one pair a line, in the order of their rank.

    Raises:
        ValueError: not that list.
    """

    def __init__(self, merges: bytes) -> None:
        try:
            lines = gzip.decompress(merges).decode("utf-8").split("\n")[1 : MERGES + 1]
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise ValueError(f"not CLIP's list of merges: {error}") from error
        pairs = [tuple(line.split()) for line in lines]
        if len(pairs) != MERGES or any(len(pair) != 2 for pair in pairs):
            raise ValueError(f"not CLIP's list of merges: {MERGES} pairs expected, one a line")
        self._ranks = {(pair[0], pair[1]): rank for rank, pair in enumerate(pairs)}
        symbols = list(_symbols().values())
        words = [*symbols, *(symbol + _WORD_END for symbol in symbols), *map("".join, pairs), START, END]
        self._numbers = {word: number for number, word in enumerate(words)}

    def row(self, text: str, context: int) -> list[int]:
        """``text`` between its marks, filled with 0 to ``context`` numbers; too long a text is cut.

        Raises:
            Skip: a text beyond ASCII, where ftfy, which mends encodings first, is not installed.
        """
        numbers = [self._numbers[START], *self.encode(text), self._numbers[END]]
        if len(numbers) > context:
            numbers = [*numbers[: context - 1], self._numbers[END]]
        return numbers + [0] * (context - len(numbers))

    def encode(self, text: str) -> list[int]:
        """The numbers of ``text`` without marks."""
        found = []
        for piece in _PIECES.findall(cleaned(text)):
            if piece in (START, END):
                found.append(self._numbers[piece])
                continue
            symbols = "".join(_symbols()[byte] for byte in piece.encode("utf-8"))
            found += [self._numbers[word] for word in self._merged(symbols)]
        return found

    def _merged(self, symbols: str) -> list[str]:
        """Join the pair of the lowest rank, wherever it stands, until none is in the list."""
        word = [*symbols[:-1], symbols[-1] + _WORD_END]
        while len(word) > 1:
            best = min(set(itertools.pairwise(word)), key=lambda pair: self._ranks.get(pair, MERGES))
            if best not in self._ranks:
                break
            word = list(_joined(word, best))
        return word


def cleaned(text: str) -> str:
    """As CLIP reads it: encodings mended, entities resolved, blanks single, lower case.

    Raises:
        Skip: a text beyond ASCII needs ftfy, which is not installed.
    """
    if not (text.isascii() and text.isprintable()):  # such texts ftfy leaves alone
        try:
            import ftfy
        except ImportError as error:
            raise Skip("a prompt beyond ASCII needs ftfy: pip install ftfy") from error
        text = ftfy.fix_text(text)
    return " ".join(html.unescape(html.unescape(text)).split()).lower()


def _joined(word: list[str], pair: tuple[str, str]) -> Iterator[str]:
    place = 0
    while place < len(word):
        if tuple(word[place : place + 2]) == pair:
            yield "".join(pair)
            place += 2
        else:
            yield word[place]
            place += 1


@functools.cache
def _symbols() -> dict[int, str]:
    """A visible character for each byte: itself where it is one in Latin-1, else one past 255, in order."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}
