"""EfficientDM (He et al., ICLR 2024): a low-rank adapter merged into the weight before quantization."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from baselines.modes import Mode, check_mode, timestep_config
from qvgen.config import QuantConfig, check_choice, check_float, check_int
from qvgen.method import TrainedMethod

if TYPE_CHECKING:
    from torch import nn

    from qvgen.training.context import TrainContext

Data = Literal["clips", "trajectory"]

# Batches and samples in each that first steps come from: a sampler needs many to go from noise to video.
OBSERVED: Mapping[Data, tuple[int, int]] = {"clips": (4, 8), "trajectory": (32, 2)}
_RANK: Mapping[Mode, int] = {"fair": 64, "author": 32}
_DATA: Mapping[Mode, Data] = {"fair": "clips", "author": "trajectory"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EfficientDM(TrainedMethod):
    """``Q(W + B A)`` with W frozen; A, B, weight steps and activation quantizers learn from the teacher.

    Mode ``author``: static activation steps and offsets, one pair for each timestep bucket (TALSQ),
    weights started at their extremes, rank 32, no data but the teacher's own sampling. Mode ``fair``:
    activations dynamic per token with a learnt clip for each timestep bucket, searched start of the
    weight ranges, rank 64, the training data of all methods.

    Attributes:
        mode: ``fair`` or ``author``.
        rank: of the adapter; None: the mode's own.
        buckets: equal parts of the 1000 timesteps with activation steps or clips of their own.
        lr_adapter: peak learning rate of A and B, in units of the layer's mean weight step.
            ``recipe.lr_weights`` is set to it; options that ask for another rate are refused.
        scale_aware: whether that unit is used; without it the rate is the same in every layer.
        data: ``clips``: batches of the training data; ``trajectory``: states that the teacher's own
            sampler goes through, from noise and prompts alone (noised training data where the
            surroundings offer no such sampler); None: the mode's own.
    """

    name: ClassVar[str] = "efficientdm"
    summary: ClassVar[str] = "low-rank adapter quantized with the weight, learning from the teacher"
    paper: ClassVar[str] = "arXiv 2310.03270"
    needs: ClassVar[str] = "training"
    exact: ClassVar[str] = "Q(W + BA), rates by step size"
    adapted: ClassVar[str] = "base weight not quantized twice; rates for a short training"

    mode: Mode = "fair"
    rank: int | None = None
    buckets: int = 50
    lr_adapter: float = 2e-2
    scale_aware: bool = True
    data: Data | None = None

    def __post_init__(self) -> None:
        check_mode(self.mode)
        if self.rank is not None:
            check_int("rank", self.rank, 1, 4096)
        check_int("buckets", self.buckets, 1, 1000)
        check_float("lr_adapter", self.lr_adapter, 0.0, 1.0)
        check_choice("scale_aware", self.scale_aware, (True, False))
        check_choice("data", self.data, (None, "clips", "trajectory"))
        given = self.recipe
        TrainedMethod.__post_init__(self)
        # A TrainRecipe always has a rate, and one object may be shared by several methods.
        if isinstance(given, Mapping) and given.get("lr_weights", self.lr_adapter) != self.lr_adapter:
            raise ValueError("recipe.lr_weights trains no weights here; set lr_adapter instead")
        object.__setattr__(self, "recipe", dataclasses.replace(self.recipe, lr_weights=self.lr_adapter))

    def quant_config(self) -> QuantConfig:
        config = timestep_config(self.mode, self.w_bits, self.a_bits, self.buckets)
        return config if self.mode == "fair" else dataclasses.replace(config, range_init="minmax")

    @property
    def observed_samples(self) -> int:
        """In author mode; see ``TrainedMethod``."""
        return OBSERVED[self.data or _DATA[self.mode]][1] if self.mode == "author" else 0

    def apply(self, model: nn.Module, ctx: TrainContext) -> nn.Module:
        from baselines.adapter import attach_adapters_
        from baselines.inputs import InputStats
        from baselines.static_steps import start_search_
        from baselines.training import observe_and_train_
        from baselines.trajectory import along_trajectory
        from qvgen.training.run import quantize_and_train_

        data = self.data or _DATA[self.mode]
        if data == "trajectory":
            ctx = along_trajectory(ctx)
        rank, config = self.rank or _RANK[self.mode], self.quant_config()

        def attach(student: nn.Module) -> None:
            attach_adapters_(student, rank, ctx.seed, scale_aware=self.scale_aware)

        def start(student: nn.Module, stats: Mapping[str, InputStats]) -> None:
            start_search_(student, stats)
            attach(student)

        if self.mode == "fair":
            return quantize_and_train_(model, config, self.recipe, ctx, prepare=attach)
        return observe_and_train_(model, config, self.recipe, ctx, start, observed=OBSERVED[data])
