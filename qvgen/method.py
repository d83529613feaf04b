"""Quantization methods as plugins: what all of them share, and QVGen itself.

Importing this module imports no torch, so that a list of methods appears at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, cast

from qvgen.config import (
    ActivationGranularity,
    Annealing,
    Direction,
    PhiEnd,
    PhiInit,
    QuantConfig,
    QVGenConfig,
    RangeInit,
    ScaleParam,
    WeightGranularity,
    ZeroPoint,
    from_mapping,
)
from qvgen.training.recipe import TrainRecipe

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from qvgen.training.context import TrainContext


_QUANTIZERS = (
    "clip_init", "range_init", "zero_point", "scale_param", "w_symmetric", "a_symmetric", "w_granularity",
    "w_group_size", "a_granularity", "a_group_size",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantMethod(ABC):
    """Base of the methods built on this library: checked config, ``save`` and ``load``.

    Attributes:
        bits: which widths there are, for lists.
        exact: what is as published, for lists.
        adapted: what is not; ``docs/methods/`` has it in full.
        w_bits: bits of weights, 2..8.
        a_bits: bits of activations, 2..8.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[str]
    bits: ClassVar[str] = "W2-8 A2-8"
    exact: ClassVar[str] = ""
    adapted: ClassVar[str] = ""

    w_bits: int
    a_bits: int

    def __post_init__(self) -> None:
        self.quant_config()

    @abstractmethod
    def quant_config(self) -> QuantConfig:
        """The quantizers this method uses.

        Raises:
            ValueError: a field out of range.
        """

    @abstractmethod
    def apply(self, model: nn.Module, ctx: TrainContext) -> nn.Module:
        """Quantize ``model`` in place; returns it converted, in eval mode."""

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the converted ``model`` into an existing folder."""
        from qvgen.checkpoint import save_quantized

        save_quantized(model, folder, {"method": self.name})

    def load(self, model: nn.Module, folder: Path) -> nn.Module:
        """Rebuild what ``save`` wrote on a fresh full-precision ``model``.

        Raises:
            ValueError: missing, corrupt, or of another method, model or bit width.
        """
        from qvgen.checkpoint import load_quantized

        return load_quantized(model, folder, self.expected())

    def expected(self) -> dict[str, Any]:
        """What a checkpoint must say of itself for ``load`` to take it."""
        return {"method": self.name, "w_bits": self.w_bits, "a_bits": self.a_bits}

    def pack(self, model: nn.Module) -> nn.Module:
        """The finished ``model`` with packed weights and integer arithmetic, in place."""
        from qvgen.packed.convert import pack_

        return pack_(model)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedMethod(QuantMethod):
    """A method that trains the quantized model by a ``TrainRecipe``.

    Attributes:
        recipe: the training run; a plain mapping of its fields is accepted.
    """

    recipe: TrainRecipe = field(default_factory=TrainRecipe)

    def __post_init__(self) -> None:
        given = cast("TrainRecipe | Mapping[str, Any]", self.recipe)
        object.__setattr__(self, "recipe", from_mapping(TrainRecipe, given, "recipe"))
        QuantMethod.__post_init__(self)

    @property
    def observed_samples(self) -> int:
        """Of a batch that is looked at before the training, at full precision; 0: none is."""
        return 0

    def expected(self) -> dict[str, Any]:
        # Tells fair from author mode in checkpoints of every age. Slots leave super() without its class.
        return QuantMethod.expected(self) | {"a_range": self.quant_config().a_range}


@dataclass(frozen=True, slots=True, kw_only=True)
class KDQAT(TrainedMethod):
    """QVGen without Phi: the same quantizers, teacher and recipe. The arm Phi is measured against.

    Attributes:
        learn_clip: whether activation ranges are clipped by a learnt ratio.
        clip_buckets: learnt clips per layer, by timestep.
        clip_init: that ratio at the start.

    The other attributes are those of ``QuantConfig``, with its defaults. Where one is not the default, a
    checkpoint with another is not loaded. Static activations are missing: they need calibration.
    """

    name: ClassVar[str] = "kd-qat"
    summary: ClassVar[str] = "distillation with learnable quantizers: QVGen without Phi"
    paper: ClassVar[str] = "arXiv 2505.11497"
    needs: ClassVar[str] = "training"
    exact: ClassVar[str] = "forward pass, loss"
    adapted: ClassVar[str] = "an ablation of qvgen, no published method"

    learn_clip: bool = True
    clip_buckets: int = 1
    clip_init: float = 0.95
    range_init: RangeInit = "search"
    zero_point: ZeroPoint = "learned"
    scale_param: ScaleParam = "log"
    w_symmetric: bool = False
    a_symmetric: bool = False
    w_granularity: WeightGranularity = "channel"
    w_group_size: int = 64
    a_granularity: ActivationGranularity = "token"
    a_group_size: int = 64

    def quant_config(self) -> QuantConfig:
        return QuantConfig(
            w_bits=self.w_bits,
            a_bits=self.a_bits,
            learn_clip=self.learn_clip,
            clip_buckets=self.clip_buckets,
            **{name: getattr(self, name) for name in _QUANTIZERS},
        )

    def expected(self) -> dict[str, Any]:
        usual = KDQAT(w_bits=self.w_bits, a_bits=self.a_bits)
        chosen = {name: getattr(self, name) for name in _QUANTIZERS}
        return TrainedMethod.expected(self) | {k: v for k, v in chosen.items() if v != getattr(usual, k)}

    def training_config(self) -> QuantConfig | QVGenConfig:
        """What is trained: the quantizers, and Phi where there is one."""
        return self.quant_config()

    def apply(self, model: nn.Module, ctx: TrainContext) -> nn.Module:
        from qvgen.training.run import quantize_and_train_

        return quantize_and_train_(model, self.training_config(), self.recipe, ctx)


@dataclass(frozen=True, slots=True, kw_only=True)
class QVGen(KDQAT):
    """QVGen: distillation with an auxiliary low-rank module that decays to nothing.

    Attributes:
        rank: columns of Phi at the start.
        phi_init: what Phi starts as: ``error``, ``zero`` or ``random``.
        decay_ratio: lambda, share of the columns that each stage anneals away; 1: all at once.
        annealing: shape of that annealing.
        direction: which singular values go first: ``small``, ``large`` or ``random``.
        max_stages: the stage of this number takes all that is left; 0: no limit.
        hold: share of the steps before the decay begins.
        decay_until: share of the steps by which Phi is gone.
        refactor: whether columns are sorted by singular value at each stage.
        phi_end: ``decay``, or ``drop``: whole to the last step, then removed at once.
    """

    name: ClassVar[str] = "qvgen"
    summary: ClassVar[str] = "distillation with a low-rank helper whose rank decays to zero"
    exact: ClassVar[str] = "forward pass, Phi from the SVD of the error, rank decay, loss"
    adapted: ClassVar[str] = "scales learnt as logarithms; recipe for a short training"

    rank: int = 32
    phi_init: PhiInit = "error"
    decay_ratio: float = 0.5
    annealing: Annealing = "cosine"
    direction: Direction = "small"
    max_stages: int = 0
    hold: float = 0.0
    decay_until: float = 1.0
    refactor: bool = True
    phi_end: PhiEnd = "decay"

    def __post_init__(self) -> None:
        KDQAT.__post_init__(self)
        from qvgen.schedule import RankSchedule

        RankSchedule.of(self.training_config(), self.recipe.steps)
        if self.phi_end == "keep":
            raise ValueError(
                "phi_end is 'keep': a model with Phi is no low-bit model and cannot be exported; 'drop' "
                "trains just so, logs the loss with Phi, and removes it at the end"
            )

    def training_config(self) -> QVGenConfig:
        names = [f.name for f in fields(QVGenConfig) if f.name != "quant"]
        return QVGenConfig(quant=self.quant_config(), **{name: getattr(self, name) for name in names})
