"""Q-DM (Li et al., NeurIPS 2023) adapted to a diffusion transformer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from baselines.modes import Mode, check_mode, timestep_config
from qvgen.config import QuantConfig, check_choice, check_int
from qvgen.method import TrainedMethod

if TYPE_CHECKING:
    from collections.abc import Collection

    from torch import nn

    from qvgen.training.context import TrainContext

OBSERVED = (16, 8)  # batches, and samples in each, that tell the moments at each timestep
ATTENTION = "attn"


@dataclass(frozen=True, slots=True, kw_only=True)
class QDM(TrainedMethod):
    """Timestep-aware quantization (TaQ) and noise-estimating mimicking (NeM), as an adaptation.

    No code of the authors is known, and the paper's network is a U-Net: what follows keeps its two
    ideas. NeM is the loss: mean squared error to the full-precision model's prediction. TaQ is
    about activations whose distribution moves with the timestep. Mode ``author``: the inputs of
    attention's linears are normalised by their mean and deviation at each timestep before a learnt
    static step and offset quantizes them, and that is undone behind the product; all other inputs
    have one learnt step and offset. Mode ``fair``: activations are dynamic per token, as in all
    methods of a fair comparison, with a learnt clip for each timestep bucket.

    Attributes:
        mode: ``fair`` or ``author``.
        buckets: equal parts of the 1000 timesteps that are told apart.
        taq_layers: whose inputs author mode normalises: linears with ``attn`` in their name, or all.
    """

    name: ClassVar[str] = "qdm"
    summary: ClassVar[str] = "timestep-aware activations, learning from the teacher's prediction (adapted)"
    paper: ClassVar[str] = "NeurIPS 2023, Q-DM"
    needs: ClassVar[str] = "training"
    exact: ClassVar[str] = "the teacher's prediction as the target"
    adapted: ClassVar[str] = "all else: no public code"

    mode: Mode = "fair"
    buckets: int = 50
    taq_layers: Literal["attention", "all"] = "attention"

    def __post_init__(self) -> None:
        check_mode(self.mode)
        check_int("buckets", self.buckets, 1, 1000)
        check_choice("taq_layers", self.taq_layers, ("attention", "all"))
        TrainedMethod.__post_init__(self)

    def quant_config(self) -> QuantConfig:
        config = timestep_config(self.mode, self.w_bits, self.a_bits, self.buckets)
        return config if self.mode == "fair" else dataclasses.replace(config, w_symmetric=True)

    @property
    def observed_samples(self) -> int:
        """In author mode; see ``TrainedMethod``."""
        return OBSERVED[1] if self.mode == "author" else 0

    def apply(self, model: nn.Module, ctx: TrainContext) -> nn.Module:
        """Quantize and train ``model``.

        Raises:
            ValueError: author mode on a model without attention layers, or as every training.
        """
        from baselines.static_steps import start_normalised_
        from baselines.training import observe_and_train_
        from qvgen.api import quantizable_names
        from qvgen.training.run import quantize_and_train_

        config = self.quant_config()
        if self.mode == "fair":
            return quantize_and_train_(model, config, self.recipe, ctx)
        aware = self.timestep_aware(quantizable_names(model, ctx.skip_layers))
        return observe_and_train_(
            model,
            config,
            self.recipe,
            ctx,
            lambda student, stats: start_normalised_(student, stats, aware),
            observed=OBSERVED,
        )

    def timestep_aware(self, names: Collection[str]) -> set[str]:
        """Of the quantized linears, those whose inputs are normalised by timestep.

        Raises:
            ValueError: none has ``attn`` in its name.
        """
        if self.taq_layers == "all":
            return set(names)
        chosen = {name for name in names if ATTENTION in name}
        if not chosen:
            raise ValueError(
                f"no quantized linear has {ATTENTION!r} in its name, so TaQ finds no attention; "
                "set taq_layers=all"
            )
        return chosen
