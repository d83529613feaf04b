"""The whole way from a full-precision model to a finished quantized one."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from qvgen.api import convert_, quantize_
from qvgen.config import QuantConfig, QVGenConfig
from qvgen.schedule import RankSchedule
from qvgen.training.context import TrainContext
from qvgen.training.dtypes import dtypes_of, restore_dtypes_
from qvgen.training.loop import train_
from qvgen.training.recipe import TrainRecipe


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

    Args:
        model: full precision.
        config: the quantizers.
        recipe: the training.
        ctx: its surroundings.
        prepare: called with the quantized model before it trains, to set what data must tell.

    Raises:
        ValueError: as ``quantize_`` and ``train_``.
    """
    dtypes = dtypes_of(model)
    quantize_(nn.Module.float(model), config, ctx.skip_layers)
    if prepare is not None:
        prepare(model)
    schedule = None
    if isinstance(config, QVGenConfig):
        schedule = RankSchedule.of(config, recipe.steps)
    train_(model, recipe, ctx, schedule=schedule)
    return restore_dtypes_(convert_(model), dtypes)
