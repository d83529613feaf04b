"""How small a difference a comparison can find, and how many prompts or seeds a difference needs.

What is worked out is the chance that the interval of ``evalharness.effects`` leaves zero out, from a pilot's
variance components. With one seed the interval is Student's, and a difference is found with probability
``power`` if it is ``t(1 - alpha / 2) + t(power)`` standard errors large (good to a per cent from ten degrees
of freedom). With several seeds the interval's width hangs on how far these seeds happen to lie apart, so
the chance is averaged over the chi-square distribution of that; the mean squares of prompts and the rest
stand at their expectations. ``simulated_power`` asks the interval itself, on tables drawn with the same
components: ``plan`` shows it beside its promise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from evalharness.crossed import crossed
from evalharness.effects import CONFIDENCE, Components, effect_of

__all__ = [
    "MAX_PROMPTS",
    "MAX_SEEDS",
    "Design",
    "detectable",
    "prompts_needed",
    "seeds_needed",
    "simulated_power",
]

MAX_PROMPTS = 100_000
MAX_SEEDS = 100
_GRID = (np.arange(400) + 0.5) / 400
"""Levels of the quantiles that stand for a chi-square distribution."""
_DRAWN_NUMBERS = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """What one pair of methods is compared on.

    Attributes:
        components: of the differences, raw scores squared.
        power: chance of finding a difference of the size asked for, in (0, 1).
        confidence: of the two-sided test that finds it.
    """

    components: Components
    power: float = 0.8
    confidence: float = CONFIDENCE

    def __post_init__(self) -> None:
        if not 0.0 < self.power < 1.0 or not 0.0 < self.confidence < 1.0:
            raise ValueError(
                f"power={self.power}, confidence={self.confidence}: expected both between 0 and 1"
            )


def detectable(design: Design, prompts: int, seeds: int) -> float:
    """The smallest true difference that is found with the design's power, raw score."""
    if prompts < 2 or seeds < 1:
        raise ValueError(f"prompts={prompts}, seeds={seeds}: expected at least 2 prompts and 1 seed")
    from scipy.special import ndtr, stdtrit

    c = design.components
    if seeds == 1:
        factor = stdtrit(prompts - 1, (1 + design.confidence) / 2) + stdtrit(prompts - 1, design.power)
        return max(0.0, float(factor)) * math.sqrt((c.prompt + c.rest) / prompts)
    error = math.sqrt(c.seed / seeds + c.prompt / prompts + c.rest / (seeds * prompts))
    if error == 0.0:
        return 0.0
    margins = _margins(design, prompts, seeds)

    def found(difference: float) -> float:
        above = ndtr((difference - margins) / error) + ndtr((-difference - margins) / error)
        return float(above.mean())

    low, high = 0.0, float(margins.max()) + 10.0 * error
    if found(low) >= design.power:
        return 0.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if found(middle) >= design.power else (middle, high)
    return high


def prompts_needed(design: Design, difference: float, seeds: int) -> int | None:
    """Fewest prompts that find ``difference``; None if ``MAX_PROMPTS`` do not (seeds differ too much)."""
    return _fewest(lambda prompts: detectable(design, prompts, seeds) <= abs(difference), 2, MAX_PROMPTS)


def seeds_needed(design: Design, difference: float, prompts: int) -> int | None:
    """Fewest seeds that find ``difference``; None if ``MAX_SEEDS`` do not (too few prompts).

    Two at least where seeds differ, as one speaks of itself alone.
    """
    first = 2 if design.components.seed > 0.0 else 1
    enough = (s for s in range(first, MAX_SEEDS + 1) if detectable(design, prompts, s) <= abs(difference))
    return next(enough, None)


def simulated_power(
    design: Design, difference: float, prompts: int, seeds: int, draws: int = 400
) -> tuple[float, int]:
    """Share of simulated runs whose interval leaves zero out, and the number of runs.

    Normal tables Z [seeds, prompts] with the design's components; fewer draws where tables are large. With
    one seed, that seed's own difference is meant, so seeds add nothing.

    Raises:
        ValueError: another confidence than that of ``evalharness.effects``.
    """
    if design.confidence != CONFIDENCE:
        raise ValueError(f"confidence={design.confidence}: intervals are made at {CONFIDENCE}")
    draws = max(50, min(draws, _DRAWN_NUMBERS // (seeds * prompts)))
    rng, c = np.random.default_rng([seeds, prompts]), design.components
    by_seed = math.sqrt(c.seed) if seeds > 1 else 0.0
    found = 0
    for _ in range(draws):
        z = difference + rng.normal(0, by_seed, (seeds, 1)) + rng.normal(0, math.sqrt(c.prompt), prompts)
        found += effect_of(z + rng.normal(0, math.sqrt(c.rest), (seeds, prompts)), prompts).excludes_zero
    return found / draws, draws


def _margins(design: Design, prompts: int, seeds: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Half widths of the interval at the quantiles of how far the seeds lie apart."""
    from scipy.special import chdtri

    c, cells = design.components, seeds * prompts
    by_seed = (prompts * c.seed + c.rest) / cells * chdtri(seeds - 1, 1 - _GRID) / (seeds - 1)
    parts = crossed(by_seed, (seeds * c.prompt + c.rest) / cells, c.rest / cells, seeds, prompts)
    return np.broadcast_to(np.asarray(parts.margin(design.confidence)), _GRID.shape)


def _fewest(is_enough: Callable[[int], bool], low: int, high: int) -> int | None:
    """The first number that is enough: doubled until one is, then halved back.

    Not from ``high`` downwards: with two seeds a few more prompts can widen an interval, where they let the
    seeds' part stand out.
    """
    below, step = low - 1, low
    while not is_enough(step):
        if step == high:
            return None
        below, step = step, min(2 * step, high)
    while below + 1 < step:
        middle = (below + step) // 2
        below, step = (below, middle) if is_enough(middle) else (middle, step)
    return step
