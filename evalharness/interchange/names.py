"""VBench's file names: ``{prompt}-{number}.mp4``. The key of a video there is its name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from evalharness.api import Sample

__all__ = ["Placed", "is_safe", "place", "split_stem", "video_name"]

SUFFIX = ".mp4"
MAX_BYTES = 255  # of a file name, on every common file system
_NUMBERED = re.compile(r"(.*)-(\d{1,6})", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a video goes in an export.

    Attributes:
        folder: ``videos``; ``videos-2`` ... for a prompt whose name is taken there; ``unnamed`` for one
            that cannot be a file's name.
    """

    sample: Sample
    folder: str
    name: str


def video_name(prompt: str, number: int) -> str:
    """The name that VBench looks for."""
    return f"{prompt}-{number}{SUFFIX}"


def is_safe(name: str) -> bool:
    """Whether ``name`` can be a visible file's, and of that folder only: no separator, no control sign."""
    return (
        0 < len(name.encode("utf-8", "replace")) <= MAX_BYTES
        and not name.startswith(".")
        and not any(letter in "/\\" or not letter.isprintable() for letter in name)
    )


def split_stem(stem: str) -> tuple[str, int] | None:
    """Prompt and number of a file's name without suffix; None if it does not end with a number."""
    match = _NUMBERED.fullmatch(stem)
    return (match[1], int(match[2])) if match else None


def place(samples: Iterable[Sample], *, case_sensitive: bool) -> list[Placed]:
    """A folder and a name for each video; no two share both.

    Prompts with one text (or, on a file system that does not tell case, with texts that differ in
    case only) are kept apart: the first has ``videos``, the next ``videos-2``.

    Args:
        samples: of one cell.
        case_sensitive: whether the target's file system tells ``A`` from ``a``.
    """
    owners: dict[str, list[str]] = {}
    placed = []
    for sample in samples:
        name = video_name(sample.prompt.text, sample.index)
        if not is_safe(name):
            placed.append(Placed(sample, "unnamed", f"{sample.id}{SUFFIX}"))
            continue
        text = sample.prompt.text
        sharing = owners.setdefault(text if case_sensitive else text.casefold(), [])
        if sample.prompt.id not in sharing:
            sharing.append(sample.prompt.id)
        level = sharing.index(sample.prompt.id)
        placed.append(Placed(sample, f"videos-{level + 1}" if level else "videos", name))
    return placed
