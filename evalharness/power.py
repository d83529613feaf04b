"""How small a difference a comparison can find, and how many prompts or seeds a difference needs.

From a pilot's variance components (``evalharness.effects``) the standard error at other numbers of seeds S
and prompts P is ``sqrt(seed / S + prompt / P + rest / (S P))``. A difference is found with probability
``power`` if it is ``t(1 - alpha / 2) + t(power)`` standard errors large, the usual approximation of the
noncentral t distribution (good to a per cent from ten degrees of freedom).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from evalharness.effects import CONFIDENCE, Components

__all__ = ["MAX_PROMPTS", "MAX_SEEDS", "Design", "detectable", "prompts_needed", "seeds_needed"]

MAX_PROMPTS = 100_000
MAX_SEEDS = 100


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
    from scipy.special import stdtrit

    error, df = _standard_error(design.components, prompts, seeds)
    factor = stdtrit(df, (1 + design.confidence) / 2) + stdtrit(df, design.power)
    return max(0.0, float(factor)) * error


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


def _standard_error(c: Components, prompts: int, seeds: int) -> tuple[float, float]:
    """Expected standard error, and Satterthwaite's degrees of freedom of its two parts.

    One seed leaves the seeds' part out, as its interval does: it speaks of that seed.
    """
    by_prompt = c.prompt / prompts + c.rest / (seeds * prompts)
    by_seed = c.seed / seeds if seeds > 1 else 0.0
    whole = by_prompt + by_seed
    if by_seed == 0.0:
        return math.sqrt(whole), prompts - 1.0
    return math.sqrt(whole), whole**2 / (by_seed**2 / (seeds - 1) + by_prompt**2 / (prompts - 1))


def _fewest(is_enough: Callable[[int], bool], low: int, high: int) -> int | None:
    """The smallest number that is enough, where more is never worse."""
    if not is_enough(high):
        return None
    while low < high:
        middle = (low + high) // 2
        if is_enough(middle):
            high = middle
        else:
            low = middle + 1
    return low
