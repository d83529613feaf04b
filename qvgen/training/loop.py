"""Quantization-aware training, top to bottom."""

from __future__ import annotations

from torch import nn

from qvgen.schedule import RankSchedule
from qvgen.training.context import TrainContext
from qvgen.training.decay import RankDecay
from qvgen.training.log import TrainLog, TrainResult
from qvgen.training.optim import build_optimizer, set_learning_rate
from qvgen.training.recipe import TrainRecipe
from qvgen.training.state import TrainState
from qvgen.training.step import build_step
from qvgen.training.validation import Validation


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
    decay = RankDecay(student, schedule, ctx.seed) if schedule is not None else None
    teacher = ctx.teacher() if recipe.loss != "task" else None
    take_step = build_step(student, teacher, optimizer, recipe, ctx)
    validation = Validation(student, teacher, recipe, ctx)
    log = TrainLog(ctx, recipe, student)
    state = TrainState(student, optimizer, log, recipe, schedule, ctx)
    first = state.restore()
    batches = state.batches(first)

    for step in ctx.track(range(first, recipe.steps), "train"):
        stage = decay.before_step(step, optimizer) if decay is not None else None
        if stage is not None and stage.begins:
            log.stage_begins(stage)
        set_learning_rate(optimizer, recipe.lr_factor(step))
        losses = take_step([next(batches) for _ in range(recipe.accumulate)])

        if validation.is_due(step):
            log.validation("val_loss", validation.loss())
        if decay is not None and step + 1 == recipe.steps:
            decay.finish()
            if recipe.validate_every:
                log.validation("val_loss_end", validation.loss())
        log.add(step, losses, optimizer, stage)
        state.save_if_due(step + 1)

    if recipe.gradient_checkpointing:
        set_gradient_checkpointing(student, False)
    student.eval()
    return log.result()


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
