"""Carries the rank schedule out on a model: sets gamma, re-factorises, and ends with Phi at zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from qvgen import api
from qvgen.auxiliary import Phi, refactor_all_, reorder_
from qvgen.schedule import RankSchedule, StageState
from qvgen.training.optim import reset_state
from qvgen.training.parallel import assign_, assign_phis_, whole, whole_phis


class RankDecay:
    """Hook of the training loop. ``before_step`` must be called for every step, in order.

    At a stage's first step the surviving product L R is re-factorised, so that its columns stand
    in the order of their singular values again and the smallest half goes next. Adam's state of L
    and R is then reset. In the new basis L' = L A, R' = A^-1 R a gradient becomes g_L A^-T and
    A^T g_R, so the first moment could be carried over exactly; the second cannot: it holds squares
    per entry, and those of a sum of columns need the products between columns, which Adam never
    stored. A first moment divided by a foreign second one is neither the old step nor the new, and
    A is ill-conditioned just where columns have nearly vanished. So both start afresh, as for any
    new parameter.

    At each stage's end, the last and those without re-factorisation included, the columns that are gone
    and their moments are zeroed. They have no gradient, so they have no momentum and stay exactly zero.

    Args:
        model: the student, with Phi.
        schedule: what to do at which step.
        seed: of the order in which columns go where ``schedule.direction`` is ``random``.
    """

    def __init__(self, model: nn.Module, schedule: RankSchedule, seed: int = 0) -> None:
        self.schedule = schedule
        self.seed = seed
        self.phis = api.phis(model)
        assert self.phis, "rank decay without Phi"
        device = self.phis[0].L.device
        rows = [schedule.gamma(step) for step in range(schedule.steps + 1)]
        # Every step's gamma, on the device from the start: no transfer and no wait in the loop.
        self._table = torch.tensor(rows, device=device)

    @torch.no_grad()
    def before_step(self, step: int, optimizer: torch.optim.Optimizer) -> StageState:
        """Bring Phi to where the schedule wants it at ``step``; returns that state."""
        state = self.schedule.at(step)
        if state.refactor or (step == 0 and self.schedule.direction != "small"):
            phis = whole_phis(self.phis)
            if state.refactor:
                refactor_all_(phis, state.rank)
                reset_state(optimizer, [p for phi in self.phis for p in phi.parameters()])
            self._arrange(phis, state)
            assign_phis_(self.phis, phis)
        if step > 0 and state.rank < self.schedule.at(step - 1).rank:
            self._bury(state.rank, optimizer)
        self._set_gamma(step)
        return state

    @torch.no_grad()
    def finish(self) -> None:
        """Make every Phi exactly zero (L, R and gamma), unless the schedule keeps it."""
        if self.schedule.phi_end == "keep":
            return
        for phi in self.phis:
            for tensor in (phi.L, phi.R, phi.gamma):
                tensor.zero_()

    def _bury(self, alive: int, optimizer: torch.optim.Optimizer) -> None:
        """Zero the columns from ``alive`` on and their moments, in place, as a recorded step needs it."""
        for phi in self.phis:
            dead = max(0, phi.rank - alive)
            for parameter, dim in ((phi.L, 1), (phi.R, 0)):
                state = optimizer.state.get(parameter, {})
                for tensor in (parameter, *(state[k] for k in ("exp_avg", "exp_avg_sq") if k in state)):
                    value = whole(tensor)
                    value.narrow(dim, phi.rank - dead, dead).zero_()
                    if value is not tensor:
                        assign_(tensor, value)

    def _arrange(self, phis: Sequence[Phi], state: StageState) -> None:
        """The columns that go first to the back; they come by descending singular value."""
        if self.schedule.direction == "small" or self.schedule.phi_end != "decay":
            return
        generator = torch.Generator().manual_seed(self.seed * 1009 + state.stage)
        for phi in phis:
            count = min(state.rank, phi.rank)
            descending = self.schedule.direction == "large"
            order = torch.arange(count).flip(0) if descending else torch.randperm(count, generator=generator)
            reorder_(phi, order.to(phi.L.device))

    def _set_gamma(self, step: int) -> None:
        row = self._table[min(step, self.schedule.steps)]
        torch._foreach_copy_([phi.gamma for phi in self.phis], [row[: phi.rank] for phi in self.phis])
