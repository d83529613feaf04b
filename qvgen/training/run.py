"""The whole way from a full-precision model to a finished quantized one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from qvgen.api import convert_, frozen_layers, quantize_
from qvgen.config import QuantConfig, QVGenConfig
from qvgen.schedule import RankSchedule
from qvgen.training.context import TrainContext
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
    dtypes = {name: tensor.dtype for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    quantize_(nn.Module.float(model), config, ctx.skip_layers)
    if prepare is not None:
        prepare(model)
    schedule = None
    if isinstance(config, QVGenConfig):
        schedule = RankSchedule.of(config, recipe.steps)
    train_(model, recipe, ctx, schedule=schedule)
    return _cast_(convert_(model), dtypes)


def _cast_(model: nn.Module, dtypes: Mapping[str, torch.dtype]) -> nn.Module:
    """Each tensor of a converted ``model`` to the dtype that it had, by name, before it was quantized."""
    for name, layer in frozen_layers(model):
        nn.Module.to(layer, dtypes[f"{name}.weight"])
    own = {tensor for _, layer in frozen_layers(model) for tensor in (*layer.parameters(), *layer.buffers())}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor not in own and tensor.is_floating_point():
            tensor.data = tensor.data.to(dtypes.get(name, tensor.dtype))
    return model
