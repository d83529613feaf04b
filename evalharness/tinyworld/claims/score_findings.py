"""What the scores of several trainings say about each hypothesis: plain JSON values.

A hypothesis says that one arm scores higher than another. It is tested at every bit width on the mean
over dimensions, and shown for each dimension. A trend says that its difference is larger at one width
than at another: a difference of differences, still paired by training seed, prompt and video.

Verdicts are those of ``findings``, by the interval that takes training seeds and prompts as random.
What is not there is named in ``missing`` and has no value: never a 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evalharness.api import Bits
from evalharness.tinyworld.claims.crossed import Crossed, contrast, crossed
from evalharness.tinyworld.claims.estimates import CONFIDENCE, mean_estimate, verdict_below
from evalharness.tinyworld.claims.scored import Scores

__all__ = ["MEAN", "Pair", "score_findings"]

MEAN = "mean"
Pair = tuple[str, str]
"""Names of the arm that is claimed to score higher, and of the other one."""

Term = tuple[float, Bits, str]
"""A factor and what it stands before: bits and arm."""


def score_findings(
    scores: Scores, hypotheses: Sequence[Pair], trends: Sequence[Pair], most_at: Bits
) -> dict[str, Any]:
    """All comparisons; of ``trends`` the difference is claimed to be largest at ``most_at``."""
    return {
        "confidence": CONFIDENCE,
        "label": scores.label,
        "percent": scores.percent,
        "dimensions": list(scores.dimensions),
        "sources": {seed: dict(scores.sources[seed]) for seed in scores.seeds},
        "levels": list(_levels(scores)),
        "hypotheses": [
            {"setting": _title(bits), "higher": higher, "than": than, **row}
            for higher, than in hypotheses
            for bits in scores.bits
            for row in _rows(scores, [(1.0, bits, higher), (-1.0, bits, than)])
        ],
        "trends": [
            {"setting": _title(most_at), "over": _title(bits), "higher": higher, "than": than, **row}
            for higher, than in trends
            for bits in scores.bits
            if bits != most_at and most_at in scores.bits
            for row in _rows(
                scores,
                [(1.0, most_at, higher), (-1.0, most_at, than), (-1.0, bits, higher), (1.0, bits, than)],
            )
        ],
        "missing": _missing(scores, [*hypotheses, *trends], most_at if trends else None),
    }


def _title(bits: Bits) -> str:
    return bits.label.upper()


def _levels(scores: Scores) -> Iterator[dict[str, Any]]:
    """Mean score of each arm by training seed, where all its scores are there."""
    for bits in scores.bits:
        for name in sorted(arm for width, arm in scores.arms if width == bits):
            whole = {seed: {seed: arm.scores} for seed, arm in scores.of(bits, name).items() if not arm.gaps}
            means = {seed: crossed(table, scores.dimensions).value for seed, table in whole.items()}
            estimate = mean_estimate(mean for mean in means.values() if mean is not None)
            yield {
                "setting": _title(bits),
                "arm": name,
                "by_seed": means,
                "mean": dataclasses.asdict(estimate),
            }


def _rows(scores: Scores, terms: Sequence[Term]) -> Iterator[dict[str, Any]]:
    """The mean over dimensions, then each dimension."""
    arms = [(factor, scores.of(bits, name)) for factor, bits, name in terms]
    seeds = [seed for seed in scores.seeds if all(seed in trained for _, trained in arms)]
    table = {seed: contrast([(factor, trained[seed].scores) for factor, trained in arms]) for seed in seeds}
    whole = {seed: rows for seed, rows in table.items() if not any(t[seed].gaps for _, t in arms)}
    found = crossed(whole, scores.dimensions)
    yield {"dimension": MEAN, **_json(found), "verdict": verdict_below(found.both.negated)}
    for dimension in scores.dimensions:
        yield {"dimension": dimension, **_json(crossed(table, [dimension])), "verdict": None}


def _json(found: Crossed) -> dict[str, Any]:
    return {
        "value": found.value,
        "by_seed": dict(found.by_seed),
        "videos": sum(found.videos.values()),
        **{name: dataclasses.asdict(getattr(found, name)) for name in ("both", "seeds", "prompts")},
    }


def _missing(scores: Scores, pairs: Sequence[Pair], most_at: Bits | None) -> list[str]:
    """In words: trainings that a hypothesis needs and nobody scored, and scores that an arm lacks."""
    found = []
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    for bits in scores.bits:
        for name in names:
            trained = scores.of(bits, name)
            if absent := [seed for seed in scores.seeds if seed not in trained]:
                found.append(f"{name}-{bits.label}: not scored in {', '.join(absent)}")
            found += _gaps(f"{name}-{bits.label}", {seed: arm.gaps for seed, arm in trained.items()})
    if most_at is not None and most_at not in scores.bits:
        found.append(f"{most_at.label}: no arm at this width, so no trend")
    return found


def _gaps(name: str, gaps: Mapping[str, Mapping[str, tuple[int, int]]]) -> list[str]:
    """One line for all training seeds that lack the same scores."""
    lines: dict[str, list[str]] = {}
    for seed, lacking in gaps.items():
        if lacking:
            text = ", ".join(f"{dimension} {there}/{full}" for dimension, (there, full) in lacking.items())
            lines.setdefault(text, []).append(seed)
    return [f"{name} in {', '.join(seeds)}, scores there: {text}" for text, seeds in lines.items()]
