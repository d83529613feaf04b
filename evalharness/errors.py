"""Errors that are the user's to mend: one clear line, exit code 2, no traceback."""

from __future__ import annotations

import difflib
import errno
import sys
from collections.abc import Callable, Iterable

from evalharness.redaction import redact_text
from evalharness.visible import visible

__all__ = [
    "StorageError",
    "UserError",
    "guarded",
    "is_storage_error",
    "named",
    "nearest",
    "one_line",
    "unknown",
]

# The disk, not the program: nothing that a traceback would explain.
_STORAGE_ERRNOS = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.EIO,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EMFILE,
    }
)


class UserError(ValueError):
    """A mistake in what was asked. The message says what was given, what is allowed, what to do."""


class StorageError(UserError):
    """The run folder cannot be written or read."""


def is_storage_error(error: BaseException) -> bool:
    """Whether ``error`` is about the disk (full, read-only, no permission)."""
    return isinstance(error, OSError) and error.errno in _STORAGE_ERRNOS


class named:  # noqa: N801 - a context manager; a class, since 100,000 files are read within one
    """Gives an ``OSError`` raised within the name of the file, which reading an open one leaves out."""

    def __init__(self, path: object) -> None:
        self._path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(self._path)


def guarded(command: Callable[[], int]) -> int:
    """The exit code of a command; of a user's mistake 2, with its one line on standard error."""
    try:
        return command()
    except UserError as error:
        sys.stderr.write(f"error: {visible(str(error))}\n")
        return 2


def nearest(given: str, allowed: Iterable[str]) -> str | None:
    """The allowed name most like ``given``, or None when nothing is close."""
    matches = difflib.get_close_matches(given.lower(), list(allowed), n=1, cutoff=0.5)
    return matches[0] if matches else None


def unknown(what: str, given: str, allowed: Iterable[str], hint: str = "") -> UserError:
    """An error for a name that does not exist, with the nearest one and the whole list."""
    names = sorted(allowed)
    close = nearest(given, names)
    guess = f"; did you mean {close!r}?" if close else "."
    listed = f" Allowed: {', '.join(names)}." if names else f" No {what} is installed."
    return UserError(f"unknown {what} {given!r}{guess}{listed}{' ' + hint if hint else ''}")


def one_line(error: BaseException) -> str:
    """``Type: message`` on a single line, short enough for a table."""
    text = redact_text(" ".join(str(error).split())) or "(no message)"
    return f"{type(error).__name__}: {text}"[:500]
