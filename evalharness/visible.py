r"""Text of others, for people's eyes: what would act on a terminal or a page instead of being seen, is seen.

Escape sequences move a terminal's cursor and rewrite what stands there; U+202E lets a name read backwards;
other format characters are not seen at all. Each becomes ``\u202e``, as JSON writes it (so that JSON which
passes here means what it meant). It is done where text leaves for a medium: ``cli.main`` and ``console`` for
the terminal, the reporters for their files, the pages' template engine for HTML. Data (CSV and JSON files)
stays as it is.
"""

from __future__ import annotations

import re
from typing import Any, TextIO

__all__ = ["VisibleStream", "seen", "visible"]

# Controls but tab and line feed, format characters but the joiners that scripts and emoji need, line
# separators, surrogates; held against Unicode's own table in tests/evalharness/test_visible.py.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b\u200e\u200f"
    "\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f\ud800-\udfff]"
)
_BREAKS = re.compile("[\t\n]")
_FIRST_BEYOND = 0x10000


def visible(text: str, *, one_line: bool = False) -> str:
    """``text`` with hidden characters as escapes; tabs and line feeds too with ``one_line``."""
    if text.isascii() and text.isprintable():
        return text
    shown = _HIDDEN.sub(_escape, text)
    return _BREAKS.sub(_escape, shown) if one_line else shown


def seen(value: Any) -> Any:
    """For a template engine, before it escapes: texts made ``visible``, of the type that they were."""
    return type(value)(visible(value)) if isinstance(value, str) else value


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < _FIRST_BEYOND:
        return f"\\u{code:04x}"
    high, low = divmod(code - _FIRST_BEYOND, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"


class VisibleStream:
    """A text stream that shows what is written to it; all else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(visible(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
