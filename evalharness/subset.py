"""Choosing a few prompts that stand for the protocol."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from fractions import Fraction

from evalharness.api import Prompt

__all__ = ["spread_prompts", "stratified_prompts"]


def spread_prompts(prompts: Sequence[Prompt], dimensions: Collection[str], limit: int | None) -> list[Prompt]:
    """At most ``limit`` of the prompts that count for ``dimensions``, spread evenly over these.

    Each step takes a prompt of the dimension that has the fewest so far. The choice is
    deterministic, in the order of ``prompts``, and nested: a larger limit only adds prompts, so
    that what was made for a smaller one is used again.
    """
    pool = [prompt for prompt in prompts if set(prompt.dimensions) & set(dimensions)]
    if limit is None or limit >= len(pool):
        return pool
    waiting = _shuffled(pool)
    counts = dict.fromkeys(sorted(dimensions), 0)
    chosen: set[str] = set()
    while len(chosen) < limit:
        covered = {dimension for prompt in waiting for dimension in prompt.dimensions}
        scarcest = min((d for d in counts if d in covered), key=lambda d: (counts[d], d))
        taken = next(prompt for prompt in waiting if scarcest in prompt.dimensions)
        waiting.remove(taken)
        chosen.add(taken.id)
        for dimension in taken.dimensions:
            if dimension in counts:
                counts[dimension] += 1
    return [prompt for prompt in pool if prompt.id in chosen]


def stratified_prompts(
    prompts: Sequence[Prompt], dimensions: Collection[str], limit: int | None
) -> list[Prompt]:
    """At most ``limit`` of the prompts that count for ``dimensions``, in the protocol's proportions.

    Prompts that count for the same dimensions are a stratum. Places go to the strata by the method of
    Sainte-Lague (the next to the largest ``size / (2 taken + 1)``), so that each has its share, rounded,
    and a larger limit only adds prompts. Deterministic, in the order of ``prompts``.
    """
    wanted = set(dimensions)
    pool = [prompt for prompt in prompts if set(prompt.dimensions) & wanted]
    if limit is None or limit >= len(pool):
        return pool
    strata: dict[tuple[str, ...], list[Prompt]] = {}
    for prompt in _shuffled(pool):
        strata.setdefault(tuple(sorted(set(prompt.dimensions) & wanted)), []).append(prompt)
    taken = dict.fromkeys(sorted(strata), 0)
    for _ in range(limit):
        due = max(
            (key for key in taken if taken[key] < len(strata[key])),
            key=lambda key: Fraction(len(strata[key]), 2 * taken[key] + 1),
        )
        taken[due] += 1
    chosen = {prompt.id for key, count in taken.items() for prompt in strata[key][:count]}
    return [prompt for prompt in pool if prompt.id in chosen]


def _shuffled(prompts: Sequence[Prompt]) -> list[Prompt]:
    """In the order of the ids' hashes: neighbours in a protocol's list are often alike."""
    return sorted(prompts, key=lambda prompt: hashlib.sha256(prompt.id.encode()).digest())
