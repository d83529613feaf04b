"""When and how Phi's rank decays: pure functions of the step, no torch, no state.

Stages halve the rank (lambda = 1/2): 32 > 16 > 8 > 4 > 2 > 1 > 0. Within a stage the columns to
be lost are multiplied by u, which goes from 1 to 0; the kept ones by 1; lost ones by 0.
(arXiv 2505.11497, section 3.3.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Self

from qvgen.config import Annealing, DecayOptions, QVGenConfig


@dataclass(frozen=True, slots=True)
class StageState:
    """Where a step stands.

    Attributes:
        stage: running number from 0; equal to the number of stages once Phi is gone.
        rank: columns alive in this stage.
        kept: columns that survive it.
        u: factor of the other ``rank - kept`` columns, in [0, 1].
        refactor: whether columns are sorted by singular value anew before this step: at the first
            step of every stage but one that starts at step 0 (``phi_init`` has just sorted them).
        begins: whether this step is the first of a stage, or of all.
    """

    stage: int
    rank: int
    kept: int
    u: float
    refactor: bool
    begins: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSchedule(DecayOptions):
    """Decay of ``rank`` columns over ``steps`` steps.

    The first ``round(hold * steps)`` steps leave Phi whole, the steps from ``round(decay_until * steps)``
    on train without it. Every stage lasts the steps in between divided by the number of stages, rounded
    down; the few left over train without Phi as well.

    Raises:
        ValueError: fewer steps than stages, or a value out of range.
    """

    steps: int

    @classmethod
    def of(cls, config: QVGenConfig, steps: int) -> Self:
        """The schedule that ``config`` describes, over ``steps`` training steps."""
        return cls(steps=steps, **{f.name: getattr(config, f.name) for f in fields(DecayOptions)})

    def __post_init__(self) -> None:
        DecayOptions.__post_init__(self)
        if self.phi_end == "decay" and self.decay_steps < len(self.ranks) - 1:
            parts = [f"after {self.hold_steps} of {self.steps} steps with hold"] if self.hold_steps else []
            parts += [f"decay_until {self.decay_until} of {self.steps}"] if self.decay_until < 1 else []
            which = f" ({', '.join(parts)})" if parts else ""
            raise ValueError(
                f"{self.decay_steps} training steps{which} are fewer than the {len(self.ranks) - 1} stages "
                f"that bring rank {self.rank} to 0; train longer, lower the rank or raise decay_ratio"
            )

    @property
    def ranks(self) -> tuple[int, ...]:
        """Ranks at the stage boundaries, e.g. (32, 16, 8, 4, 2, 1, 0)."""
        ranks = [self.rank]
        while ranks[-1] > 0:
            # The small number keeps 10 * (1 - 0.9) = 0.999... from losing its last column.
            survivors = math.floor(ranks[-1] * (1 - self.decay_ratio) + 1e-9)
            ranks.append(0 if len(ranks) == self.max_stages else survivors)
        return tuple(ranks)

    @property
    def hold_steps(self) -> int:
        """Steps before the decay begins."""
        return round(self.hold * self.steps)

    @property
    def decay_steps(self) -> int:
        """Steps from the end of the hold to where Phi must be gone."""
        return round(self.decay_until * self.steps) - self.hold_steps

    @property
    def stage_steps(self) -> int:
        """Steps of one stage."""
        return self.decay_steps // (len(self.ranks) - 1)

    def at(self, step: int) -> StageState:
        """State before the optimiser step number ``step`` (from 0)."""
        assert step >= 0
        if self.phi_end != "decay" or step < self.hold_steps:
            kept = self.ranks[1] if self.phi_end == "decay" else self.rank
            return StageState(stage=0, rank=self.rank, kept=kept, u=1.0, refactor=False, begins=step == 0)
        stage, inside = divmod(step - self.hold_steps, self.stage_steps)
        stages = len(self.ranks) - 1
        if stage >= stages:
            return StageState(stage=stages, rank=0, kept=0, u=0.0, refactor=False)
        return StageState(
            stage=stage,
            rank=self.ranks[stage],
            kept=self.ranks[stage + 1],
            u=annealed(inside / self.stage_steps, self.annealing),
            refactor=self.refactor and inside == 0 and step > 0,
            begins=inside == 0,
        )

    def gamma(self, step: int) -> tuple[float, ...]:
        """Factor of each of the ``rank`` columns at ``step``."""
        now = self.at(step)
        decaying, dead = now.rank - now.kept, self.rank - now.rank
        return (1.0,) * now.kept + (now.u,) * decaying + (0.0,) * dead


_POWERS = {"linear": 1.0, "quadratic": 2.0, "cubic": 3.0, "sqrt": 0.5}


def annealed(fraction: float, annealing: Annealing) -> float:
    """1 at fraction 0, 0 at fraction 1: ``(1 + cos(pi f)) / 2``, or ``(1 - f)^p``.

    p is 1 for ``linear``, 2 for ``quadratic``, 3 for ``cubic``, 1/2 for ``sqrt``. Cosine and linear are
    the official code's; the paper reports five shapes as alike, its formulas are not at hand.
    """
    if annealing == "cosine":
        return (1 + math.cos(math.pi * fraction)) / 2
    return float((1 - fraction) ** _POWERS[annealing])
