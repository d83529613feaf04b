"""Choosing a few prompts that stand for the protocol."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

from evalharness.api import Prompt

__all__ = ["spread_prompts"]


def spread_prompts(prompts: Sequence[Prompt], dimensions: Collection[str], limit: int | None) -> list[Prompt]:
    """At most ``limit`` of the prompts that count for ``dimensions``, spread evenly over these.

    Each step takes a prompt of the dimension that has the fewest so far. The choice is
    deterministic, in the order of ``prompts``, and nested: a larger limit only adds prompts, so
    that what was made for a smaller one is used again.
    """
    pool = [prompt for prompt in prompts if set(prompt.dimensions) & set(dimensions)]
    if limit is None or limit >= len(pool):
        return pool
    # Shuffled by id: neighbours in a protocol's list are often alike.
    waiting = sorted(pool, key=lambda prompt: hashlib.sha256(prompt.id.encode()).digest())
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
