"""Quantization-aware training, top to bottom."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from qvgen.schedule import RankSchedule
from qvgen.training.context import TrainContext, extras
from qvgen.training.decay import RankDecay
from qvgen.training.log import TrainLog, TrainResult
from qvgen.training.optim import build_optimizer, set_learning_rate
from qvgen.training.recipe import TrainRecipe
from qvgen.training.state import TrainState


def train_(
    student: nn.Module, recipe: TrainRecipe, ctx: TrainContext, *, schedule: RankSchedule | None = None
) -> TrainResult:
    """Train every parameter of ``student`` in place.

    Where ``ctx.state_folder`` holds the state of a killed run of the same training, that run goes
    on: on one device to the same bits as if it had never stopped.

    Args:
        student: a model from ``quantize_``, float32, on ``ctx.device``.
        recipe: the numbers; ``recipe.loss`` says whether the teacher is used.
        ctx: teacher, batches, prediction, log, progress bar; see ``qvgen.training.context``.
        schedule: rank decay of Phi; needed exactly where the student has Phi.

    Raises:
        ValueError: the loss became NaN or infinite; the message says what to change. Or a saved
            state is damaged or foreign, or ``ctx`` or the model lacks what the recipe asks for.
    """
    student.train()
    if recipe.gradient_checkpointing:
        set_gradient_checkpointing(student, True)
    optimizer = build_optimizer(student, recipe)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    decay = RankDecay(student, schedule, ctx.seed) if schedule is not None else None
    student_call = _compiled(student, recipe)
    teacher_call = _compiled(ctx.teacher(), recipe) if recipe.loss != "task" else None
    held_out = _held_out_batch(recipe, ctx)
    log = TrainLog(ctx, recipe, student)
    state = TrainState(student, optimizer, log, recipe, schedule, ctx)
    first = state.restore()
    batches = state.batches(first)

    for step in ctx.track(range(first, recipe.steps), "train"):
        stage = decay.before_step(step, optimizer) if decay is not None else None
        if stage is not None and stage.begins:
            log.stage_begins(stage)
        set_learning_rate(optimizer, recipe.lr_factor(step))
        loss = torch.zeros((), device=parameters[0].device)
        for _ in range(recipe.accumulate):
            if recipe.compile != "off":
                torch.compiler.cudagraph_mark_step_begin()
            part = _loss(student_call, teacher_call, next(batches), recipe, ctx) / recipe.accumulate
            part.backward()
            loss += part.detach()
        log.gradients(step)
        grad_norm = nn.utils.clip_grad_norm_(parameters, recipe.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        if recipe.validate_every and (step + 1) % recipe.validate_every == 0:
            log.validation("val_loss", _validate(student, teacher_call, held_out, recipe, ctx))
        if decay is not None and step + 1 == recipe.steps:
            decay.finish()
            if recipe.validate_every:
                log.validation("val_loss_end", _validate(student, teacher_call, held_out, recipe, ctx))
        log.add(step, loss, grad_norm, optimizer, stage)
        state.save_if_due(step + 1)

    if recipe.gradient_checkpointing:
        set_gradient_checkpointing(student, False)
    student.eval()
    return log.result()


def _loss(
    student_call: nn.Module,
    teacher_call: nn.Module | None,
    batch: Any,
    recipe: TrainRecipe,
    ctx: TrainContext,
) -> Tensor:
    """Mean squared error to the teacher's output, to the model's own target, or their sum."""
    with _precision(ctx.device, recipe):
        copied = None
        if teacher_call is not None:
            with torch.no_grad():
                copied = ctx.predict(teacher_call, batch)
        prediction = ctx.predict(student_call, batch).float()
    if copied is None:
        return functional.mse_loss(prediction, batch.target.float())
    loss = functional.mse_loss(prediction, copied.float())
    if recipe.loss == "distill+task":
        loss = loss + recipe.task_weight * functional.mse_loss(prediction, batch.target.float())
    return loss


def _held_out_batch(recipe: TrainRecipe, ctx: TrainContext) -> Any:
    if not recipe.validate_every:
        return None
    draw = extras(ctx).validation_batches
    if draw is None:
        raise ValueError("validate_every is set, but the context has no validation_batches; set it to 0")
    return next(draw(recipe.batch_size))


@torch.no_grad()
def _validate(
    student: nn.Module, teacher_call: nn.Module | None, batch: Any, recipe: TrainRecipe, ctx: TrainContext
) -> float:
    student.eval()
    loss = _loss(student, teacher_call, batch, recipe, ctx)
    student.train()
    return float(loss)


def set_gradient_checkpointing(model: nn.Module, on: bool) -> None:
    """Turn it on or off by the model's own method, as diffusers' and transformers' models have it.

    Raises:
        ValueError: the model cannot do it.
    """
    change = getattr(model, f"{'enable' if on else 'disable'}_gradient_checkpointing", None)
    if change is None:
        raise ValueError(
            f"gradient_checkpointing: {type(model).__name__} has no enable_gradient_checkpointing(); "
            "turn it off, or lower batch_size and raise accumulate"
        )
    change()


def _compiled(model: nn.Module, recipe: TrainRecipe) -> nn.Module:
    if recipe.compile == "off":
        return model
    mode = None if recipe.compile == "default" else recipe.compile
    return cast(nn.Module, torch.compile(model, mode=mode, dynamic=False))


@contextmanager
def _precision(device: torch.device, recipe: TrainRecipe) -> Iterator[None]:
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.precision == "bf16"):
        yield
