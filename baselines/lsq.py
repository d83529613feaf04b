"""Learned step size quantization (Esser et al., ICLR 2020), per channel, for a diffusion model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from qvgen.config import QuantConfig, check_choice
from qvgen.method import TrainedMethod
from qvgen.training.recipe import Loss

if TYPE_CHECKING:
    from torch import nn

    from qvgen.training.context import TrainContext


@dataclass(frozen=True, slots=True, kw_only=True)
class LSQ(TrainedMethod):
    """Learnt weight steps with a fixed integer zero point, dynamic activations, the task loss.

    Differs from the original as every method of a fair comparison must: steps per output channel
    with a searched start instead of one per tensor, activations dynamic per token instead of a
    learnt static step, AdamW instead of SGD. ``recipe.loss`` is set by ``kd``.

    Attributes:
        kd: learn from the full-precision teacher instead of the training target.
    """

    name: ClassVar[str] = "lsq"
    summary: ClassVar[str] = "learned step sizes, trained on the model's own loss"
    paper: ClassVar[str] = "arXiv 1902.08153"
    needs: ClassVar[str] = "training"

    kd: bool = False

    def __post_init__(self) -> None:
        check_choice("kd", self.kd, (True, False))
        given = self.recipe
        TrainedMethod.__post_init__(self)
        loss: Loss = "distill" if self.kd else "task"
        if isinstance(given, Mapping) and given.get("loss", loss) != loss:
            raise ValueError(
                f"recipe.loss is {given['loss']!r} but kd is {self.kd}; set kd alone, the loss follows"
            )
        object.__setattr__(self, "recipe", dataclasses.replace(self.recipe, loss=loss))

    def quant_config(self) -> QuantConfig:
        return QuantConfig(w_bits=self.w_bits, a_bits=self.a_bits, zero_point="fixed")

    def apply(self, model: nn.Module, ctx: TrainContext) -> nn.Module:
        from qvgen.training.run import quantize_and_train_

        return quantize_and_train_(model, self.quant_config(), self.recipe, ctx)
