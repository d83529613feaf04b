"""Learned step size quantization (Esser et al., ICLR 2020) for a diffusion model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from baselines.modes import Mode, check_mode
from qvgen.config import QuantConfig, check_choice
from qvgen.method import TrainedMethod
from qvgen.training.recipe import Loss, TrainRecipe

if TYPE_CHECKING:
    from torch import nn

    from qvgen.training.context import TrainContext


@dataclass(frozen=True, slots=True, kw_only=True)
class LSQ(TrainedMethod):
    """Learnt steps, trained on the model's own loss. ``recipe.loss`` follows ``kd``.

    A recipe that asks for another loss is refused. Only the default of a ``TrainRecipe``, "distill", is
    taken for no wish and gives way, since an object does not tell whether it was written out.

    Mode ``author`` has the paper's quantizers: one symmetric step for each weight matrix and one
    static step for the inputs of each layer, both learnt and started at ``2 mean|v| / sqrt(Q_P)``.
    Mode ``fair`` has what all methods of a fair comparison share: steps per output channel with a
    searched start and a fixed integer zero point, activations dynamic per token. Both train with
    AdamW on the logarithm of the steps, instead of SGD on the steps.

    Attributes:
        mode: ``fair`` or ``author``.
        kd: learn from the full-precision teacher instead of the training target.
    """

    name: ClassVar[str] = "lsq"
    summary: ClassVar[str] = "learned step sizes, trained on the model's own loss"
    paper: ClassVar[str] = "arXiv 1902.08153"
    needs: ClassVar[str] = "training"
    exact: ClassVar[str] = "gradient and gradient scale of the step; in author mode the quantizers"
    adapted: ClassVar[str] = "fair mode: a step a channel, dynamic activations; AdamW"

    mode: Mode = "fair"
    kd: bool = False

    def __post_init__(self) -> None:
        check_mode(self.mode)
        check_choice("kd", self.kd, (True, False))
        given = self.recipe
        TrainedMethod.__post_init__(self)
        loss: Loss = "distill" if self.kd else "task"
        asked = given.get("loss", loss) if isinstance(given, Mapping) else given.loss
        unsaid = not isinstance(given, Mapping) and asked == TrainRecipe().loss
        if asked != loss and not unsaid:
            raise ValueError(f"recipe.loss is {asked!r} but kd is {self.kd}; set kd alone, the loss follows")
        object.__setattr__(self, "recipe", dataclasses.replace(self.recipe, loss=loss))

    def quant_config(self) -> QuantConfig:
        if self.mode == "fair":
            return QuantConfig(w_bits=self.w_bits, a_bits=self.a_bits, zero_point="fixed")
        return QuantConfig(
            w_bits=self.w_bits,
            a_bits=self.a_bits,
            range_init="lsq",
            zero_point="fixed",
            w_symmetric=True,
            a_symmetric=True,
            w_granularity="tensor",
            a_granularity="tensor",
            a_range="static",
            clip_first=True,
        )

    @property
    def observed_samples(self) -> int:
        """In author mode; see ``TrainedMethod``."""
        return self.recipe.batch_size if self.mode == "author" else 0

    def apply(self, model: nn.Module, ctx: TrainContext) -> nn.Module:
        from baselines.static_steps import start_lsq_
        from baselines.training import observe_and_train_
        from qvgen.training.run import quantize_and_train_

        config = self.quant_config()
        if self.mode == "fair":
            return quantize_and_train_(model, config, self.recipe, ctx)
        return observe_and_train_(
            model, config, self.recipe, ctx, start_lsq_, observed=(1, self.observed_samples)
        )
