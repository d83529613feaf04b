"""Totals that a protocol declares (``api.Total``). A missing dimension is missing, never 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from evalharness.api import EvalProtocol, Total

if TYPE_CHECKING:
    from evalharness.result_schema import DimensionEstimate, Estimate
    from evalharness.stats import Resampler, Scores

__all__ = ["total_estimates", "totals_of"]


def totals_of(protocol: EvalProtocol) -> tuple[Total, ...]:
    """The protocol's totals; empty where it declares none."""
    return tuple(getattr(protocol, "totals", ()))


def total_estimates(
    totals: Sequence[Total],
    scores: Mapping[str, Scores],
    dimensions: Mapping[str, DimensionEstimate],
    resampler: Resampler,
) -> dict[str, Estimate | None]:
    """Every total with its interval; None for one that lacks a score in one of its dimensions.

    Each resample draws prompts once for all dimensions, as for the mean: a total is the mean of the
    dimensions after each is stretched and weighted, and that is how it is computed.

    Args:
        totals: as the protocol declares them.
        scores: dimension -> video -> raw score.
        dimensions: the same dimensions' estimates, which say whether each is complete.
        resampler: how to bootstrap.
    """
    from evalharness.comparison import joint_estimate

    found: dict[str, Estimate | None] = {}
    for total in totals:
        estimates = [dimensions.get(name) for name in total.terms]
        if all(estimate is not None and estimate.n == estimate.expected > 0 for estimate in estimates):
            found[total.name] = joint_estimate(_stretched(total, scores), resampler.unbounded())
        else:
            found[total.name] = None
    return found


def _stretched(total: Total, scores: Mapping[str, Scores]) -> dict[str, Scores]:
    """Scores whose plain mean over dimensions is the total."""
    from evalharness.columns import Columns

    weights = sum(term.weight for term in total.terms.values())
    stretched: dict[str, Scores] = {}
    for name, term in total.terms.items():
        factor = len(total.terms) * term.weight / weights / (term.high - term.low)
        plain = scores[name]
        if isinstance(plain, Columns):
            stretched[name] = plain.stretched(term.low, factor)
        else:
            stretched[name] = {key: factor * (value - term.low) for key, value in plain.items()}
    return stretched
