"""When and how Phi's rank decays: pure functions of the step, no torch, no state.

Stages halve the rank (lambda = 1/2): 32 > 16 > 8 > 4 > 2 > 1 > 0. Within a stage the columns to
be lost are multiplied by u, which goes from 1 to 0; the kept ones by 1; lost ones by 0.
(arXiv 2505.11497, section 3.3.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qvgen.config import Annealing, check_choice, check_float, check_int


@dataclass(frozen=True, slots=True)
class StageState:
    """Where a step stands.

    Attributes:
        stage: running number from 0; equal to the number of stages once Phi is gone.
        rank: columns alive in this stage.
        kept: columns that survive it.
        u: factor of the other ``rank - kept`` columns, in [0, 1].
        refactor: whether this step is the first of a stage after the first one.
    """

    stage: int
    rank: int
    kept: int
    u: float
    refactor: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSchedule:
    """Decay of ``rank`` columns over ``steps`` steps.

    Every stage lasts ``steps // number of stages``; the few steps left over train without Phi.

    Raises:
        ValueError: fewer steps than stages, or a value out of range.
    """

    rank: int
    steps: int
    decay_ratio: float = 0.5
    annealing: Annealing = "cosine"

    def __post_init__(self) -> None:
        check_int("rank", self.rank, 1, 4096)
        check_float("decay_ratio", self.decay_ratio, 0.0, 1.0, open_low=True)
        check_choice("annealing", self.annealing, ("cosine", "linear"))
        if self.steps < len(self.ranks) - 1:
            raise ValueError(
                f"{self.steps} training steps are fewer than the {len(self.ranks) - 1} stages that bring "
                f"rank {self.rank} to 0; train longer, lower the rank or raise decay_ratio"
            )

    @property
    def ranks(self) -> tuple[int, ...]:
        """Ranks at the stage boundaries, e.g. (32, 16, 8, 4, 2, 1, 0)."""
        ranks = [self.rank]
        while ranks[-1] > 0:
            # The small number keeps 10 * (1 - 0.9) = 0.999... from losing its last column.
            ranks.append(math.floor(ranks[-1] * (1 - self.decay_ratio) + 1e-9))
        return tuple(ranks)

    @property
    def stage_steps(self) -> int:
        """Steps of one stage."""
        return self.steps // (len(self.ranks) - 1)

    def at(self, step: int) -> StageState:
        """State before the optimiser step number ``step`` (from 0)."""
        assert step >= 0
        stage, inside = divmod(step, self.stage_steps)
        stages = len(self.ranks) - 1
        if stage >= stages:
            return StageState(stage=stages, rank=0, kept=0, u=0.0, refactor=False)
        return StageState(
            stage=stage,
            rank=self.ranks[stage],
            kept=self.ranks[stage + 1],
            u=annealed(inside / self.stage_steps, self.annealing),
            refactor=stage > 0 and inside == 0,
        )

    def gamma(self, step: int) -> tuple[float, ...]:
        """Factor of each of the ``rank`` columns at ``step``."""
        now = self.at(step)
        decaying, dead = now.rank - now.kept, self.rank - now.rank
        return (1.0,) * now.kept + (now.u,) * decaying + (0.0,) * dead


def annealed(fraction: float, annealing: Annealing) -> float:
    """1 at fraction 0, 0 at fraction 1: ``(1 + cos(pi f)) / 2`` or ``1 - f``."""
    return (1 + math.cos(math.pi * fraction)) / 2 if annealing == "cosine" else 1 - fraction
