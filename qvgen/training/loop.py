"""Quantization-aware training, top to bottom."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from qvgen.api import quant_layers
from qvgen.schedule import RankSchedule
from qvgen.training.agreement import all_or_none
from qvgen.training.checkpointing import set_gradient_checkpointing
from qvgen.training.context import TrainContext, extras
from qvgen.training.decay import RankDecay
from qvgen.training.identity import training_identity
from qvgen.training.log import TrainLog, TrainResult
from qvgen.training.optim import build_optimizer, set_learning_rate
from qvgen.training.parallel import share
from qvgen.training.recipe import TrainRecipe
from qvgen.training.sharding import check_shared, shard, unshard_
from qvgen.training.state import TrainState
from qvgen.training.step import build_step
from qvgen.training.teacher import place_teacher_
from qvgen.training.validation import Validation


def train_(
    student: nn.Module, recipe: TrainRecipe, ctx: TrainContext, *, schedule: RankSchedule | None = None
) -> TrainResult:
    """Train every parameter of ``student`` in place.

    Where ``ctx.state_folder`` holds the state of a killed run of the same training, that run goes
    on: on a CPU to the same bits as if it had never stopped. Where ``torch.distributed`` runs,
    all processes train one student together, see ``qvgen.training.sharding``: meanwhile, and after
    an error, ``student`` itself is empty.

    Args:
        student: a model from ``quantize_``, float32, on ``ctx.device``; of several processes, each has
            the same one, and it may be on the host.
        recipe: the numbers; ``recipe.loss`` says whether the teacher is used.
        ctx: teacher, batches, prediction, log, progress bar; see ``qvgen.training.context``.
        schedule: rank decay of Phi; needed exactly where the student has Phi.

    Raises:
        ValueError: at once: a student of less than 32 bits, a schedule that does not fit the
            student's Phi or the recipe's steps, a saved state that is damaged or foreign, or a ``ctx``
            or model that lacks what the recipe asks for.
        DivergedError: later: the loss became NaN or infinite; the message says what to change.

    Of several processes all raise at once what one of them raises before the first step, or while a line
    or a state is written: see ``qvgen.training.agreement``.
    """
    check_shared(recipe)
    with all_or_none():
        check_student(student, recipe, schedule)
    return train_and_end_(
        student, recipe, ctx, schedule, lambda trained: unshard_(trained, student, ctx.device)
    )


def train_and_end_(
    student: nn.Module,
    recipe: TrainRecipe,
    ctx: TrainContext,
    schedule: RankSchedule | None,
    end: Callable[[nn.Module], object],
) -> TrainResult:
    """``train_``, but ``end`` takes what was trained back from where it was sharded to."""
    student.train()
    with all_or_none():
        if recipe.gradient_checkpointing:
            set_gradient_checkpointing(student, True, keep=recipe.checkpointing_keeps)
    with all_or_none():
        trained = shard(student, ctx.device)
    resumable = extras(ctx).state_folder is not None  # else nobody asks, and hashing a large model takes time
    identity = training_identity(trained, recipe, schedule, ctx.seed) if resumable else {}
    with all_or_none():
        optimizer = build_optimizer(trained, recipe)
        decay = RankDecay(trained, schedule, ctx.seed) if schedule is not None else None
    teacher = _placed_teacher(recipe, ctx)
    with all_or_none():
        take_step = build_step(trained, teacher, optimizer, recipe, ctx)
        validation = Validation(trained, teacher, recipe, ctx)
        log = TrainLog(ctx, recipe, trained)
    with TrainState(trained, optimizer, log, recipe, identity, ctx) as state:
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

    if trained is not student:  # make room for whole weights
        optimizer.zero_grad(set_to_none=True)
        optimizer.state.clear()
    end(trained)
    if recipe.gradient_checkpointing:
        set_gradient_checkpointing(student, False)
    student.eval()
    return log.result()


def _placed_teacher(recipe: TrainRecipe, ctx: TrainContext) -> nn.Module | None:
    if recipe.loss == "task":
        return None
    with all_or_none():  # it may have to be read
        teacher = ctx.teacher()
    with all_or_none():
        return place_teacher_(teacher, recipe, ctx.device)


def check_student(student: nn.Module, recipe: TrainRecipe, schedule: RankSchedule | None) -> None:
    """Refuse what could not end well, before it costs a training.

    Raises:
        ValueError: as ``train_``.
    """
    for name, parameter in student.named_parameters():
        if parameter.requires_grad and parameter.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{name} is {str(parameter.dtype).removeprefix('torch.')}: rounding would swallow its steps; "
                "train in float32: model.float() before quantize_; recipe.precision bf16 computes in "
                "bfloat16 over float32 weights"
            )
    ranks = {
        name: (layer.phi.rank, min(layer.weight.shape))
        for name, layer in quant_layers(student)
        if layer.phi is not None
    }
    if schedule is None:
        if ranks:
            raise ValueError(
                f"layer {next(iter(ranks))} has a Phi, but train_ was given no schedule, so it would never "
                "decay; pass schedule=RankSchedule.of(config, recipe.steps)"
            )
        return
    if not ranks:
        raise ValueError(
            "a schedule is given, but no layer has a Phi; leave it out, or quantize_ by a QVGenConfig"
        )
    if schedule.steps != recipe.steps:
        raise ValueError(
            f"the schedule is over {schedule.steps} steps, the recipe has {recipe.steps}; give both the same "
            "(decay_until ends the decay before the training)"
        )
    for name, (rank, most) in ranks.items():
        if rank != min(schedule.rank, most):
            raise ValueError(
                f"layer {name}: Phi has {rank} columns, the schedule is for {min(schedule.rank, most)}; "
                "make it by RankSchedule.of from the config that quantize_ was given"
            )
