"""The whole way from a full-precision model to a finished quantized one."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from qvgen.api import convert_, quantize_
from qvgen.config import QuantConfig, QVGenConfig
from qvgen.schedule import RankSchedule
from qvgen.training.agreement import all_or_none
from qvgen.training.context import TrainContext
from qvgen.training.dtypes import dtypes_of, restore_dtypes_
from qvgen.training.loop import train_, train_and_end_
from qvgen.training.parallel import world_size
from qvgen.training.recipe import TrainRecipe
from qvgen.training.sharding import check_shared, convert_sharded_
from qvgen.training.start import quantize_by_layers_


def quantize_and_train_(
    model: nn.Module,
    config: QuantConfig | QVGenConfig,
    recipe: TrainRecipe,
    ctx: TrainContext,
    prepare: Callable[[nn.Module], None] | None = None,
) -> nn.Module:
    """Quantize, train and convert ``model`` in place; float32 while training, its own dtypes after.

    They may differ within a model: of Wan diffusers loads norms and modulation tables in float32 whatever
    the rest is in.

    Several processes take ``model`` from where it is, on the device or the host, block by block: no device
    ever holds all of it in float32.

    Args:
        model: full precision.
        config: the quantizers.
        recipe: the training.
        ctx: its surroundings.
        prepare: called with the quantized model before it trains, to set what data must tell; of several
            processes, in each, and weights are then in the dtype and place that they had.

    Raises:
        ValueError: as ``quantize_`` and ``train_``; of several processes, in all if in one.
    """
    check_shared(recipe)
    dtypes = dtypes_of(model)
    schedule = RankSchedule.of(config, recipe.steps) if isinstance(config, QVGenConfig) else None
    if world_size() > 1:
        quantize_by_layers_(model, config, ctx.skip_layers, ctx.device)
        with all_or_none():
            if prepare is not None:
                prepare(model)
        train_and_end_(
            model, recipe, ctx, schedule, lambda trained: convert_sharded_(trained, model, ctx.device, dtypes)
        )
        return model
    with all_or_none():
        quantize_(nn.Module.float(model), config, ctx.skip_layers)
        if prepare is not None:
            prepare(model)
    train_(model, recipe, ctx, schedule=schedule)
    return restore_dtypes_(convert_(model), dtypes)
