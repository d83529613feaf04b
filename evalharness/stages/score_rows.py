"""What both ways to score share: the row of ``scores.jsonl``, and the check of a value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from evalharness.api import Metric, Sample
from evalharness.session import Session

__all__ = ["checked", "sample_of", "score_row"]


def sample_of(session: Session, payload: Mapping[str, Any]) -> Sample:
    """The sample that a task's payload is about."""
    return Sample(prompt=session.prompts[payload["prompt_id"]], index=payload["index"], seed=payload["seed"])


def score_row(
    sample: Sample, due: Mapping[str, Any], video_sha256: str, found: Mapping[str, Any]
) -> dict[str, Any]:
    """One line of ``scores.jsonl``.

    Args:
        sample: what was judged.
        due: ``dimension``, ``metric`` and its ``hash``.
        video_sha256: of the file that was judged.
        found: ``value``, ``skip`` and, where they apply, ``error``, ``left_out``, ``details``.
    """
    return {
        "sample": sample.id,
        "prompt_id": sample.prompt.id,
        "dimension": due["dimension"],
        "metric": due["metric"],
        **found,
        "video_sha256": video_sha256,
        "metric_hash": due["hash"],
    }


def checked(metric: Metric, value: float) -> float:
    """``value`` as a float.

    Raises:
        ValueError: not finite, or outside the range that the metric declares.
    """
    value = float(value)
    info = metric.info
    if not (math.isfinite(value) and info.low <= value <= info.high):
        raise ValueError(f"score {value} is outside the declared range {info.low}..{info.high}")
    return value
