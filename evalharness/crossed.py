"""The standard error of a mean over seeds by prompts, and its degrees of freedom, when seeds are few.

With two or three seeds one or two degrees of freedom say how far seeds differ. Satterthwaite's formula (1946)
puts the estimate in the place of the truth: where two seeds agree by luck it promises many degrees of
freedom, and its 95 % intervals held the truth in as little as 86 %. What is needed is a rule under which the
interval holds the truth in 95 % whatever the variance between seeds is.

With W the seeds' part of the variance of the mean (k = S - 1 degrees of freedom) and C that of the prompts
alone, the variance is W + C, and the degrees of freedom are::

    1 / df = exp(-m C / W) / k + (B / (W + C))^2 / (P - 1),      m = (2 k - 0.9) / (k + 4.2)

B is the mean square of prompts over S P. For many seeds and W large beside C this is Satterthwaite's formula
to first order (m = 2); for few, m was fitted: to draws of normal tables with every mix of the three
variances, 50 to 1000 prompts, the interval holds the truth in 93.5 to 97 % (by
``benchmarks/interval_coverage.py``, ``results/statistics/coverage.md``). C counts only as far as it is beyond
its own standard error; small C would otherwise be half noise and half cut off at zero, which is too much on
average.

A mean is never taken to be surer than a quarter of what prompts or the rest alone would give: seeds may
agree by chance to any number of digits.

Shape legend: the parts are floats or arrays of one shape, so that many draws are worked out at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Crossed", "crossed"]

Values = float | NDArray[np.float64]
_LEAST = 1 / 16
_TINY = 1e-300


class Crossed(NamedTuple):
    """Two t distributions around the mean; the wider one counts.

    Attributes:
        variance, df: of the mean, prompts and seeds drawn at random.
        least, least_df: the variance below which it is not believed.
    """

    variance: Values
    df: Values
    least: Values
    least_df: float

    def margin(self, confidence: float) -> Values:
        """Half the width of the two-sided interval."""
        from scipy.special import stdtrit

        level = (1 + confidence) / 2
        wide = np.sqrt(self.variance) * stdtrit(self.df, level)
        half: NDArray[np.float64] = np.maximum(wide, np.sqrt(self.least) * stdtrit(self.least_df, level))
        return half


def crossed(by_seed: Values, by_prompt: Values, rest: Values, seeds: int, prompts: int) -> Crossed:
    """From the mean squares of seeds, prompts and the rest, each over S P; at least two of both."""
    k = seeds - 1
    slope = (2 * k - 0.9) / (k + 4.2)
    doubt = np.sqrt(2 / (prompts - 1) * (1 + 1 / k))
    alone = np.maximum(by_prompt - rest * (1 + doubt), 0.0)
    variance = by_seed + alone
    seeds_share = np.exp(-np.minimum(slope * alone / np.maximum(by_seed, _TINY), 700.0))
    prompts_share = np.where(alone > 0, (by_prompt / np.maximum(variance, _TINY)) ** 2, 0.0)
    df = 1 / (seeds_share / k + prompts_share / (prompts - 1))
    return Crossed(variance, np.maximum(df, 1.0), np.maximum(by_prompt, rest) * _LEAST, prompts - 1.0)
