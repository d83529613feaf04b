"""The training log: what happened since the last line, without waiting for the device in between."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qvgen.api import phis, quant_layers, refuse_bad_scales
from qvgen.diverged import DivergedError
from qvgen.schedule import StageState
from qvgen.training.agreement import all_or_none
from qvgen.training.context import TrainContext
from qvgen.training.measures import clip_ratios, layer_gradient_norms, layer_spectra, spectrum
from qvgen.training.parallel import rank, whole
from qvgen.training.recipe import TrainRecipe
from qvgen.training.step import Losses


@dataclass(frozen=True, slots=True)
class TrainResult:
    """Mean loss of the first and the last logged window, and the wall-clock seconds."""

    first_loss: float
    last_loss: float
    seconds: float


class TrainLog:
    """Sums loss and gradient norm on the device; reads them only when a line is due.

    Attributes:
        sums: of loss and gradient norm since the last line, [2] on the device.
    """

    def __init__(self, ctx: TrainContext, recipe: TrainRecipe, student: nn.Module) -> None:
        self._ctx, self._recipe, self._student = ctx, recipe, student
        self.sums = torch.zeros(2, device=next(student.parameters()).device)
        self._count = 0
        self._bad = 0
        self._lines = 0
        self._losses: list[float] = []
        self._pending: dict[str, float | int | str] = {}
        self._start = time.perf_counter()

    def stage_begins(self, step: int, state: StageState) -> None:
        """At the first step of a stage: the next line will hold Phi's spectrum of this moment.

        Of several stages that begin before that line, the last one has the plain names. Those of an
        earlier one end in ``/`` and the number of steps taken when it began.
        """
        if not state.rank:
            return
        found = {"phi_step": step, **spectrum(phis(self._student))}
        if "phi_step" in self._pending:
            earlier = {name: self._pending.pop(name) for name in found}
            began = earlier.pop("phi_step")
            self._pending |= {f"{name}/{began}": value for name, value in earlier.items()}
        self._pending |= found

    def validation(self, name: str, loss: float) -> None:
        """Keep a validation loss for the next line."""
        self._pending[name] = loss

    def add(
        self,
        step: int,
        losses: Losses,
        optimizer: torch.optim.Optimizer,
        stage: StageState | None,
    ) -> None:
        """Count one step; writes a line if one is due.

        Raises:
            DivergedError: the loss or the gradient norm is not finite, more often than the recipe allows.
            ValueError: a scale is not positive.
        """
        if not self._recipe.skip_bad_steps or losses.finite():
            self.sums += torch.stack(losses)
            self._count += 1
            self._bad = 0
        else:
            self._skip(step)
        if not self.is_due(step) or not self._count:
            return
        mean_loss, mean_norm = (self.sums / self._count).tolist()
        if not math.isfinite(mean_loss) or not math.isfinite(mean_norm):
            raise DivergedError(
                f"training diverged: loss {mean_loss} and gradient norm {mean_norm} in the steps up to "
                f"{step + 1}; lower lr_scales or lr_weights, or train with precision fp32"
            )
        refuse_bad_scales(dict(quant_layers(self._student)), whole)
        rates = {f"lr_{group['name']}": float(group["lr"]) for group in optimizer.param_groups}
        decay = {} if stage is None else {"rank": stage.rank, "gamma": stage.u}
        record = {"step": step + 1, "loss": mean_loss, "grad_norm": mean_norm, **rates, **decay}
        record |= clip_ratios(self._student) | self._pending
        if self._recipe.log_layers_every and self._lines % self._recipe.log_layers_every == 0:
            clipped_by = max(1.0, float(losses.grad_norm) / self._recipe.grad_clip)
            norms = layer_gradient_norms(self._student)
            record |= {name: norm * clipped_by for name, norm in norms.items()}
            record |= layer_spectra(self._student)
        with all_or_none():
            if rank() == 0:
                self._ctx.log({**record, "seconds": round(time.perf_counter() - self._start, 3)})
        self._lines += 1
        self._losses.append(mean_loss)
        self._pending.clear()
        self.sums.zero_()
        self._count = 0

    def _skip(self, step: int) -> None:
        """Count a step that was left out; the next line has their number as ``skipped``."""
        self._bad += 1
        self._pending["skipped"] = int(self._pending.get("skipped", 0)) + 1
        if self._bad > self._recipe.skip_bad_steps:
            raise DivergedError(
                f"training diverged: no finite loss and gradient in the {self._bad} steps up to {step + 1}; "
                "lower lr_scales or lr_weights, or look for NaN in the training data"
            )

    def result(self) -> TrainResult:
        """Of the whole training, steps before a resume included.

        Raises:
            DivergedError: all its steps were left out.
        """
        if not self._losses:
            raise DivergedError(
                "training diverged: no step had a finite loss and gradient; see skip_bad_steps"
            )
        return TrainResult(self._losses[0], self._losses[-1], time.perf_counter() - self._start)

    def state(self) -> dict[str, Any]:
        """JSON values that ``restore`` takes; ``sums`` is kept apart."""
        return {
            "count": self._count,
            "lines": self._lines,
            "losses": [self._losses[0], self._losses[-1]] if self._losses else [],
            "pending": self._pending,
            "seconds": time.perf_counter() - self._start,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on as the log that gave ``state``."""
        self._count, self._lines = state["count"], state["lines"]
        self._losses, self._pending = list(state["losses"]), dict(state["pending"])
        self._start = time.perf_counter() - state["seconds"]

    def is_due(self, step: int) -> bool:
        """Whether a line follows the step of this number."""
        return (step + 1) % self._recipe.log_every == 0 or step + 1 == self._recipe.steps
