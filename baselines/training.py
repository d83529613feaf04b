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
from qvgen.training.run import quantize_and_train_

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
    dtype = next(model.parameters()).dtype
    with all_or_none():
        names = quantizable_names(model, ctx.skip_layers)
        check_weights(model, names)  # before NaN in one shows as the next layer's input
        nn.Module.float(model)
        stats = observe_inputs(
            model,
            names,
            ctx,
            batches=observed[0],
            batch_size=observed[1],
            buckets=config.buckets,
        )
    trained = quantize_and_train_(model, config, recipe, ctx, prepare=lambda student: start(student, stats))
    return nn.Module.to(trained, dtype)
