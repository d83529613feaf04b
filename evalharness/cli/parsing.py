"""Argument parsing with errors that help: one line, the nearest valid name, exit code 2."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping
from typing import NoReturn

from evalharness.errors import UserError, unknown

__all__ = ["Parser", "helpful_error"]

_UNKNOWN_FLAG = re.compile(r"unrecognized arguments: (-[-\w.]+)")
_UNEXPECTED = re.compile(r"unrecognized arguments: (\S+)")
_UNKNOWN_KEY = re.compile(r"Option '([^']+)' is not accepted")
_BAD_VALUE = re.compile(r"Parser key \"(?P<key>[^\"]+)\":.*(?:Given|Got) value: (?P<value>.*)$", re.DOTALL)
_NOT_IN_FILES = ("help", "config", "dry_run", "print_config", "print_shtab")


class Parser(argparse.ArgumentParser):
    """The standard parser, without abbreviations, raising ``UserError``."""

    def __init__(self, verb: str, description: str) -> None:
        super().__init__(prog=f"evalharness {verb}", description=description, allow_abbrev=False)

    def add_plugins(self, text: str = "Python file with PLUGINS") -> None:
        """``--plugin FILE``, repeatable."""
        self.add_argument("--plugin", action="append", default=[], metavar="FILE", help=text)

    def error(self, message: str) -> NoReturn:
        flags = [flag for action in self._actions for flag in action.option_strings]
        raise helpful_error(self.prog, message, flags)


def helpful_error(
    prog: str, message: str, flags: Iterable[str], expected: Mapping[str, str] | None = None
) -> UserError:
    """A parser's ``message`` on one line, with the flag or key that was probably meant.

    Args:
        prog: the command.
        message: of argparse or jsonargparse.
        flags: option strings that exist.
        expected: what a value may be, by key.
    """
    text = " ".join(message.split())
    longs = sorted(f for f in flags if f.startswith("--") and not f.endswith("+") and f != "--print_shtab")
    keys = [key for flag in longs if (key := flag[2:].replace("-", "_")) not in _NOT_IN_FILES]
    keys = [key for key in keys if key.removeprefix("no_") == key or key.removeprefix("no_") not in keys]
    if match := _UNKNOWN_FLAG.search(text):
        return unknown("flag", match[1], longs)
    if match := _UNEXPECTED.search(text):
        return UserError(f"{prog}: unexpected argument {match[1]!r}; see {prog} --help")
    if match := _UNKNOWN_KEY.search(text):
        return unknown("key", match[1], keys)
    if match := _BAD_VALUE.search(text):
        key, wanted = match["key"], (expected or {}).get(match["key"], "another type")
        return UserError(f"--{key.replace('_', '-')} {match['value']}: expected {wanted}")
    return UserError(f"{prog}: {text}; see {prog} --help")
