"""Processes of this machine, as ``/proc`` tells."""

from __future__ import annotations

import contextlib
from pathlib import Path

__all__ = ["below", "words"]


def below(root: int) -> set[int]:
    """All processes that descend from one; it is not among them."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):  # it may end meanwhile
                told = entry.joinpath("stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(told[1])
    found, grown = {root}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        found |= more
        grown = bool(more)
    return found - {root}


def words(pid: int) -> str:
    """Its command line, with spaces between the words; empty of one that has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ")
    return ""
