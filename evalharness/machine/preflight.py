"""Does a training fit the memory of each GPU? Asked before it starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from evalharness.errors import UserError
from evalharness.machine.costs import GB, observing_memory, start_memory, training_memory
from evalharness.models.video.settings import VideoSettings
from evalharness.models.video.spec import ModelSpec

__all__ = ["Training", "need_of", "preflight"]

# Of a GPU's memory, what a process can fill: the rest is CUDA's own and holes between tensors.
_USABLE = 0.92
_SUGGESTIONS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What of a training decides its memory; see ``qvgen.training.recipe.TrainRecipe``.

    ``observed``: samples of a batch that the method looks at before, at full precision; 0: it looks at none.
    """

    batch_size: int
    gpus: int
    checkpointing: bool
    rank: int = 0
    teacher: bool = True
    teacher_place: str = "whole"
    offload: bool = False
    keeps_attention: bool = False
    observed: int = 0

    @classmethod
    def of(cls, recipe: Mapping[str, Any], rank: int, gpus: int, observed: int = 0) -> Training:
        """From a recipe's fields."""
        return cls(
            batch_size=int(recipe.get("batch_size", 1)),
            gpus=gpus,
            checkpointing=bool(recipe.get("gradient_checkpointing", False)),
            rank=rank,
            teacher=recipe.get("loss", "distill") != "task",
            teacher_place=str(recipe.get("teacher", "whole")),
            offload=recipe.get("offload", "off") == "moments",
            keeps_attention=recipe.get("checkpointing_keeps", "nothing") == "attention",
            observed=observed,
        )

    def of_a_step(self) -> dict[str, Any]:
        """The arguments of ``training_memory``."""
        fields = dataclasses.asdict(self)
        del fields["observed"]
        return fields

    @property
    def words(self) -> str:
        keep = "on" if self.checkpointing else "off"
        words = f"{self.gpus} GPUs, batch_size {self.batch_size}, gradient_checkpointing {keep}"
        if self.keeps_attention:
            words += ", checkpointing_keeps attention"
        if self.teacher_place != "whole":
            words += f", teacher {self.teacher_place}"
        return words + (", offload moments" if self.offload else "")


def need_of(spec: ModelSpec, settings: VideoSettings, training: Training) -> tuple[float, dict[str, float]]:
    """Bytes on each GPU at most, and the parts of a step's."""
    parts = training_memory(spec, settings, **training.of_a_step())
    return max(sum(parts.values()), *_before(spec, settings, training)), parts


def _before(spec: ModelSpec, settings: VideoSettings, training: Training) -> tuple[float, float]:
    """Before the first step: where whole models lie on each GPU, and while batches are looked at."""
    observing = 0.0
    if training.observed:
        observing = observing_memory(spec, settings, training.observed, training.gpus)
    return start_memory(spec, training.gpus, training.teacher), observing


def preflight(spec: ModelSpec, settings: VideoSettings, training: Training, memory: float) -> None:
    """Raise UserError if ``training`` does not fit GPUs of ``memory`` bytes; the message names what would."""
    need, parts = need_of(spec, settings, training)
    if need <= _USABLE * memory:
        return
    step, (start, observing) = sum(parts.values()), _before(spec, settings, training)
    where = ", ".join(f"{name} {size / GB:.1f}" for name, size in parts.items())
    if need > step:
        what = "where whole models lie on each GPU"
        if observing > start:
            what = f"while the method looks at batches of {training.observed} in float32"
        where = f"before its first step, {what} (a step takes {step / GB:.0f})"
    fits = list(
        dict.fromkeys(
            other.words
            for other in _others(training)
            if need_of(spec, settings, other)[0] <= _USABLE * memory
        )
    )
    advice = (
        f"what would fit: {'; or '.join(fits[:_SUGGESTIONS])}"
        if fits
        else f"it needs GPUs of {need / GB / _USABLE:.0f} GB"
    )
    clip = f"{settings.frames}x{settings.height}x{settings.width}"
    raise UserError(
        f"training {spec.name} on clips {clip} with {training.words} takes about {need / GB:.0f} GB on each "
        f"GPU, which have {memory / GB:.0f}: {where}; {advice}"
    )


def _others(training: Training) -> Iterator[Training]:
    """From the smallest change to the largest."""
    for gpus in (training.gpus, *(count for count in (2, 4, 8, 16, 32) if count > training.gpus)):
        for size in sorted({training.batch_size, max(1, training.batch_size // 2), 1}, reverse=True):
            for checkpointing in (training.checkpointing, True):
                for offload in (training.offload, True):
                    for place in (training.teacher_place, "sharded" if gpus > 1 else "host"):
                        yield dataclasses.replace(
                            training, gpus=gpus, batch_size=size, checkpointing=checkpointing,
                            offload=offload, teacher_place=place,
                        )  # fmt: skip
