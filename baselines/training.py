"""What the trained baselines share: modes, and a training that first looks at the layers' inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from torch import nn

from baselines.inputs import InputStats, observe_inputs
from baselines.layerwise import check_weights
from qvgen.api import quantizable_names
from qvgen.config import QuantConfig
from qvgen.training.agreement import all_or_none
from qvgen.training.dtypes import dtypes_of, restore_dtypes_
from qvgen.training.parallel import world_size
from qvgen.training.run import quantize_and_train_
from qvgen.training.visiting import float32_by_blocks

if TYPE_CHECKING:
    from qvgen.training.context import TrainContext
    from qvgen.training.recipe import TrainRecipe


def observe_and_train_(
    model: nn.Module,
    config: QuantConfig,
    recipe: TrainRecipe,
    ctx: TrainContext,
    start: Callable[[nn.Module, Mapping[str, InputStats]], None],
    *,
    observed: tuple[int, int],
) -> nn.Module:
    """``quantize_and_train_`` with static activation steps.

    Args:
        model: full precision; changed in place.
        config: the quantizers; ``config.buckets`` timestep buckets are told apart.
        recipe: the training.
        ctx: its surroundings.
        start: called with the quantized model and what entered each of its layers before.
        observed: how many batches are looked at, and how many samples each has.

    Raises:
        ValueError: as ``quantize_and_train_`` and ``observe_inputs``.
    """
    dtypes = dtypes_of(model)
    if world_size() == 1:  # it becomes the student as it is; of several processes each takes a shard of it
        nn.Module.float(model)
    with all_or_none(), float32_by_blocks(model):
        names = quantizable_names(model, ctx.skip_layers)
        check_weights(model, names)  # before NaN in one shows as the next layer's input
        stats = observe_inputs(
            model,
            names,
            ctx,
            batches=observed[0],
            batch_size=observed[1],
            buckets=config.buckets,
        )
    trained = quantize_and_train_(model, config, recipe, ctx, prepare=lambda student: start(student, stats))
    return restore_dtypes_(trained, dtypes)
