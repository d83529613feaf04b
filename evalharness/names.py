"""Names that become file names."""

from __future__ import annotations

import re

from evalharness.errors import UserError

__all__ = ["check_name", "is_name"]

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


LONGEST = 200
"""Bytes that a file system takes, with room for what is added."""


def is_name(name: str) -> bool:
    """Whether it can name a folder: what ``check_name`` lets pass, and a file system too."""
    return len(name) <= LONGEST and _SAFE_NAME.fullmatch(name) is not None


def check_name(name: str, what: str) -> None:
    """Refuse a name that cannot be a file's: no separators, no leading dot, not too long.

    Raises:
        UserError: names it.
    """
    if len(name) > LONGEST:
        raise UserError(f"{what} {name[:40]!r}...: longer than {LONGEST} letters")
    if not _SAFE_NAME.fullmatch(name):
        raise UserError(f"{what} {name!r}: only letters, digits, '_', '.' and '-' can name a file")
