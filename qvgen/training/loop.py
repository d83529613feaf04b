"""Quantization-aware training, top to bottom."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qvgen.schedule import RankSchedule
from qvgen.training.context import TrainContext
from qvgen.training.decay import RankDecay
from qvgen.training.optim import build_optimizer, set_learning_rate
from qvgen.training.recipe import TrainRecipe
from qvgen.training.step import Losses, build_step


@dataclass(frozen=True, slots=True)
class TrainResult:
    """Mean loss of the first and the last logged window, and the wall-clock seconds."""

    first_loss: float
    last_loss: float
    seconds: float


def train_(
    student: nn.Module, recipe: TrainRecipe, ctx: TrainContext, *, schedule: RankSchedule | None = None
) -> TrainResult:
    """Train every parameter of ``student`` in place.

    Args:
        student: a model from ``quantize_``, float32, on ``ctx.device``.
        recipe: the numbers; ``recipe.loss`` says whether the teacher is used.
        ctx: teacher, batches, prediction, log, progress bar.
        schedule: rank decay of Phi; needed exactly where the student has Phi.

    Raises:
        ValueError: the loss became NaN or infinite; the message says what to change.
    """
    student.train()
    device = next(student.parameters()).device
    optimizer = build_optimizer(student, recipe)
    decay = RankDecay(student, schedule) if schedule is not None else None
    teacher = ctx.teacher() if recipe.loss == "distill" else None
    take_step = build_step(student, teacher, optimizer, recipe, ctx)
    batches = ctx.batches(recipe.batch_size)
    log = _TrainLog(ctx, recipe, device)

    for step in ctx.track(range(recipe.steps), "train"):
        stage = decay.before_step(step, optimizer) if decay is not None else None
        set_learning_rate(optimizer, recipe.lr_factor(step))
        losses = take_step(next(batches))
        extra = {} if stage is None else {"rank": stage.rank, "gamma": stage.u}
        log.add(step, losses, optimizer, extra)

    if decay is not None:
        decay.finish()
    student.eval()
    return log.result()


class _TrainLog:
    """Sums loss and gradient norm on the device; reads them only when a line is due."""

    def __init__(self, ctx: TrainContext, recipe: TrainRecipe, device: torch.device) -> None:
        self._ctx, self._recipe = ctx, recipe
        self._sums = torch.zeros(2, device=device)
        self._count = 0
        self._losses: list[float] = []
        self._start = time.perf_counter()

    def add(self, step: int, losses: Losses, optimizer: torch.optim.Optimizer, extra: dict[str, Any]) -> None:
        self._sums += torch.stack(losses)
        self._count += 1
        if (step + 1) % self._recipe.log_every and step + 1 != self._recipe.steps:
            return
        mean_loss, mean_norm = (self._sums / self._count).tolist()
        if not math.isfinite(mean_loss) or not math.isfinite(mean_norm):
            raise ValueError(
                f"training diverged: loss {mean_loss} and gradient norm {mean_norm} in the steps up to "
                f"{step + 1}; lower lr_scales or lr_weights, or train with precision fp32"
            )
        rates = {f"lr_{group['name']}": float(group["lr"]) for group in optimizer.param_groups}
        seconds = round(time.perf_counter() - self._start, 3)
        self._ctx.log(
            {
                "step": step + 1,
                "loss": mean_loss,
                "grad_norm": mean_norm,
                **rates,
                **extra,
                "seconds": seconds,
            }
        )
        self._losses.append(mean_loss)
        self._sums.zero_()
        self._count = 0

    def result(self) -> TrainResult:
        return TrainResult(self._losses[0], self._losses[-1], time.perf_counter() - self._start)
