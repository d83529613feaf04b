"""What the metrics on tinyworld's judges share: declared facts, the reading, the labels.

Labels of a prompt (JSON): ``things`` = [{"color": ..., "shape": ...}, ...], ``motion``, ``scene``,
``relation`` (of the first thing to the second, or null) and ``caption``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evalharness.api import MetricInfo, Sample, Skip, Video
from evalharness.tinyworld import judge_files, spec

if TYPE_CHECKING:
    from evalharness.tinyworld.judges import Reading

__all__ = ["choice", "judge_info", "label", "reading", "things"]


def judge_info(faithful_to: str, *, version: int = 1) -> MetricInfo:
    """Range 0..1, higher is better, with the judges' files and hashes from ``judges.json``."""
    return MetricInfo(
        version=version, cost_ms=20.0, faithful_to=faithful_to, weights=judge_files.weight_files()
    )


def reading(video: Video) -> Reading:
    """What all judges saw in ``video``, computed once for all metrics."""
    from evalharness.tinyworld.judges import read_video

    return read_video(video)


def label(sample: Sample, key: str) -> Any:
    """The prompt's label ``key``.

    Raises:
        Skip: the prompt does not carry it, or it is null.
    """
    value = sample.prompt.labels.get(key)
    if value is None:
        raise Skip(f"prompt {sample.prompt.id} has no label {key!r}")
    return value


def choice(name: object, allowed: Sequence[str], what: str) -> int:
    """Position of ``name`` in ``allowed``.

    Raises:
        Skip: tinyworld's judges do not know it.
    """
    if name not in allowed:
        raise Skip(f"{what} {name!r} is none that tinyworld's judges know: {', '.join(allowed)}")
    return allowed.index(str(name))


def things(sample: Sample, *, at_least: int = 1) -> list[tuple[int, int]]:
    """(shape id, colour id) of each thing that the prompt names.

    Raises:
        Skip: fewer than ``at_least`` are named, or one is not of tinyworld.
    """
    named = label(sample, "things")
    if len(named) < at_least:
        raise Skip(f"prompt {sample.prompt.id} names {len(named)} things, {at_least} are needed")
    return [
        (choice(t.get("shape"), spec.SHAPES, "shape"), choice(t.get("color"), spec.COLORS, "color"))
        for t in named
    ]
