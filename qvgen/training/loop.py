"""Quantization-aware training, top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from qvgen.schedule import RankSchedule
from qvgen.training.context import TrainContext
from qvgen.training.decay import RankDecay
from qvgen.training.optim import build_optimizer, set_learning_rate
from qvgen.training.recipe import TrainRecipe


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
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    student_call = _compiled(student, recipe)
    teacher_call = _compiled(ctx.teacher(), recipe) if recipe.loss == "distill" else None
    batches = ctx.batches(recipe.batch_size)
    log = _TrainLog(ctx, recipe, device)

    for step in ctx.track(range(recipe.steps), "train"):
        stage = decay.before_step(step, optimizer) if decay is not None else None
        set_learning_rate(optimizer, recipe.lr_factor(step))
        batch = next(batches)
        if recipe.compile != "off":
            torch.compiler.cudagraph_mark_step_begin()

        with _precision(device, recipe):
            target = _target(teacher_call, batch, ctx)
            prediction = ctx.predict(student_call, batch)
        loss = functional.mse_loss(prediction.float(), target.float())
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(parameters, recipe.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        extra = {} if stage is None else {"rank": stage.rank, "gamma": stage.u}
        log.add(step, loss.detach(), grad_norm, optimizer, extra)

    if decay is not None:
        decay.finish()
    student.eval()
    return log.result()


def _target(teacher_call: nn.Module | None, batch: Any, ctx: TrainContext) -> Tensor:
    if teacher_call is None:
        target: Tensor = batch.target
        return target
    with torch.no_grad():
        return ctx.predict(teacher_call, batch)


def _compiled(model: nn.Module, recipe: TrainRecipe) -> nn.Module:
    if recipe.compile == "off":
        return model
    mode = None if recipe.compile == "default" else recipe.compile
    return cast(nn.Module, torch.compile(model, mode=mode, dynamic=False))


@contextmanager
def _precision(device: torch.device, recipe: TrainRecipe) -> Iterator[None]:
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.precision == "bf16"):
        yield


class _TrainLog:
    """Sums loss and gradient norm on the device; reads them only when a line is due."""

    def __init__(self, ctx: TrainContext, recipe: TrainRecipe, device: torch.device) -> None:
        self._ctx, self._recipe = ctx, recipe
        self._sums = torch.zeros(2, device=device)
        self._count = 0
        self._losses: list[float] = []
        self._start = time.perf_counter()

    def add(
        self,
        step: int,
        loss: Tensor,
        grad_norm: Tensor,
        optimizer: torch.optim.Optimizer,
        extra: dict[str, Any],
    ) -> None:
        self._sums += torch.stack([loss, grad_norm])
        self._count += 1
        if (step + 1) % self._recipe.log_every and step + 1 != self._recipe.steps:
            return
        mean_loss, mean_norm = (self._sums / self._count).tolist()
        if not math.isfinite(mean_loss) or not math.isfinite(mean_norm):
            raise ValueError(
                f"training diverged: loss {mean_loss} and gradient norm {mean_norm} in the steps up to "
                f"{step + 1}; lower lr_scales or lr_weights, or train with precision fp32"
            )
        rates = {f"lr_{group['name']}": group["lr"] for group in optimizer.param_groups}
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
