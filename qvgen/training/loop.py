"""Quantization-aware training, top to bottom."""

from __future__ import annotations

from torch import nn

from qvgen.schedule import RankSchedule
from qvgen.training.context import TrainContext
from qvgen.training.decay import RankDecay
from qvgen.training.log import TrainLog, TrainResult
from qvgen.training.optim import build_optimizer, set_learning_rate
from qvgen.training.parallel import shard, share, unshard_
from qvgen.training.recipe import TrainRecipe
from qvgen.training.state import TrainState, training_identity
from qvgen.training.step import build_step
from qvgen.training.validation import Validation


def train_(
    student: nn.Module, recipe: TrainRecipe, ctx: TrainContext, *, schedule: RankSchedule | None = None
) -> TrainResult:
    """Train every parameter of ``student`` in place.

    Where ``ctx.state_folder`` holds the state of a killed run of the same training, that run goes
    on: on a CPU to the same bits as if it had never stopped. Where ``torch.distributed`` runs,
    all processes train one student together, see ``qvgen.training.parallel``.

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
    identity = training_identity(student, recipe, schedule, ctx.seed)
    trained = shard(student, recipe)
    optimizer = build_optimizer(trained, recipe)
    decay = RankDecay(trained, schedule, ctx.seed) if schedule is not None else None
    teacher = ctx.teacher() if recipe.loss != "task" else None
    take_step = build_step(trained, teacher, optimizer, recipe, ctx)
    validation = Validation(trained, teacher, recipe, ctx)
    log = TrainLog(ctx, recipe, trained)
    state = TrainState(trained, optimizer, log, recipe, identity, ctx)
    first = state.restore()
    batches = state.batches(first)

    for step in ctx.track(range(first, recipe.steps), "train"):
        stage = decay.before_step(step, optimizer) if decay is not None else None
        if stage is not None and stage.begins:
            log.stage_begins(step, stage)
        set_learning_rate(optimizer, recipe.lr_factor(step))
        losses = take_step(share([next(batches) for _ in range(recipe.accumulate)]))

        if validation.is_due(step):
            log.validation("val_loss", validation.loss())
        if decay is not None and step + 1 == recipe.steps:
            decay.finish()
            if recipe.validate_every:
                log.validation("val_loss_end", validation.loss())
        validation.sample_if_due(step)
        log.add(step, losses, optimizer, stage)
        state.save_if_due(step + 1)

    unshard_(trained, student, ctx.device)
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
