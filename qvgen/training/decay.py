"""Carries the rank schedule out on a model: sets gamma, re-factorises, and ends with Phi at zero."""

from __future__ import annotations

import torch
from torch import nn

from qvgen.api import phis
from qvgen.auxiliary import refactor_all_
from qvgen.schedule import RankSchedule, StageState
from qvgen.training.optim import reset_state


class RankDecay:
    """Hook of the training loop. ``before_step`` must be called for every step, in order.

    At a stage's first step the surviving product L R is re-factorised, so that its columns stand
    in the order of their singular values again and the smallest half goes next. Adam's state of L
    and R is then reset: the first moment could be carried into the new basis, the second cannot
    (it holds squares per entry, which a change of basis mixes), and a first moment divided by a
    foreign second one is neither the old direction nor the new.
    """

    def __init__(self, model: nn.Module, schedule: RankSchedule) -> None:
        self.schedule = schedule
        self.phis = phis(model)
        assert self.phis, "rank decay without Phi"
        device = self.phis[0].L.device
        rows = [schedule.gamma(step) for step in range(schedule.steps + 1)]
        # Every step's gamma, on the device from the start: no transfer and no wait in the loop.
        self._table = torch.tensor(rows, device=device)

    @torch.no_grad()
    def before_step(self, step: int, optimizer: torch.optim.Optimizer) -> StageState:
        """Bring Phi to where the schedule wants it at ``step``; returns that state."""
        state = self.schedule.at(step)
        if state.refactor:
            refactor_all_(self.phis, state.rank)
            reset_state(optimizer, [p for phi in self.phis for p in phi.parameters()])
        self._set_gamma(step)
        return state

    @torch.no_grad()
    def finish(self) -> None:
        """Set every gamma to zero: Phi contributes exactly nothing from here on."""
        self._set_gamma(self.schedule.steps)
        assert not any(bool(phi.gamma.any()) for phi in self.phis)

    def _set_gamma(self, step: int) -> None:
        row = self._table[min(step, self.schedule.steps)]
        torch._foreach_copy_([phi.gamma for phi in self.phis], [row[: phi.rank] for phi in self.phis])
