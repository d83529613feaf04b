"""Does a training fit the memory of each GPU? Asked before it starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from evalharness.errors import UserError
from evalharness.machine.costs import (
    GB,
    observing_memory,
    start_memory,
    state_bytes,
    training_memory,
)
from evalharness.machine.pinned import training_host_memory
from evalharness.models.video.settings import VideoSettings
from evalharness.models.video.spec import ModelSpec

__all__ = ["Host", "Training", "host_need_of", "need_of", "preflight"]

# Of a GPU's memory, what a process can fill: the rest is CUDA's own and holes between tensors.
_USABLE = 0.92
# Of the free memory of a host: the rest is for what reads and writes beside the training.
_USABLE_HOST = 0.95
_SHARES = (0.9, 0.8, 0.7, 0.6, 0.5)
_SUGGESTIONS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What of a training decides its memory; see ``qvgen.training.recipe.TrainRecipe``.

    ``observed``: samples of a batch that the method looks at before, at full precision; 0: it looks at none.
    ``offload``: share of the weights' moments that rests on the host. ``save_async``: states are written from
    a copy of them in the first process.
    """

    batch_size: int
    gpus: int
    checkpointing: bool
    rank: int = 0
    teacher: bool = True
    teacher_place: str = "whole"
    offload: float = 0.0
    keeps_attention: bool = False
    observed: int = 0
    save_async: bool = False

    @classmethod
    def of(cls, recipe: Mapping[str, Any], rank: int, gpus: int, observed: int = 0) -> Training:
        """From a recipe's fields."""
        saves = bool(recipe.get("save_every", 0) or recipe.get("save_every_s", 1))
        return cls(
            batch_size=int(recipe.get("batch_size", 1)),
            gpus=gpus,
            checkpointing=bool(recipe.get("gradient_checkpointing", False)),
            rank=rank,
            teacher=recipe.get("loss", "distill") != "task",
            teacher_place=str(recipe.get("teacher", "whole")),
            offload=float(recipe.get("offload_share", 1.0)) if recipe.get("offload") == "moments" else 0.0,
            keeps_attention=recipe.get("checkpointing_keeps", "nothing") == "attention",
            observed=observed,
            save_async=bool(recipe.get("save_async", False)) and saves,
        )

    def of_a_step(self) -> dict[str, Any]:
        """The arguments of ``training_memory``."""
        fields = dataclasses.asdict(self)
        del fields["observed"], fields["save_async"]
        return fields

    def on_the_host(self) -> dict[str, Any]:
        """The arguments of ``training_host_memory``."""
        teacher = self.teacher and self.teacher_place == "host"
        return {"gpus": self.gpus, "teacher_on_host": teacher, "offload": self.offload}

    @property
    def words(self) -> str:
        keep = "on" if self.checkpointing else "off"
        words = f"{self.gpus} GPU{'s' * (self.gpus > 1)}, batch_size {self.batch_size}, "
        words += f"gradient_checkpointing {keep}"
        if self.keeps_attention:
            words += ", checkpointing_keeps attention"
        if self.teacher_place != "whole":
            words += f", teacher {self.teacher_place}"
        words += ", offload moments" if self.offload else ""
        words += f", offload_share {self.offload:g}" if 0 < self.offload < 1 else ""
        return words + (", save_async on" if self.save_async else "")


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


def host_need_of(spec: ModelSpec, training: Training) -> float:
    """Bytes that each process keeps on the host; the pipeline's other parts rest there as well."""
    pipeline = 2.0 * spec.text_parameters + float(spec.decoder_bytes) * spec.decoder_parameters
    return pipeline + training_host_memory(spec, **training.on_the_host())


def _whole_host_need(spec: ModelSpec, training: Training, processes: int) -> float:
    """Bytes that ``processes`` keep on their host, the first of them among them, which copies states."""
    copied = state_bytes(spec, training.rank) if training.save_async else 0.0
    return processes * host_need_of(spec, training) + copied


@dataclass(frozen=True, slots=True)
class Host:
    """Free bytes of a machine, and how many of a training's processes share them."""

    free: float
    processes: int = 1


def preflight(
    spec: ModelSpec, settings: VideoSettings, training: Training, memory: float, host: Host | None = None
) -> None:
    """Raise UserError if ``training`` does not fit; the message names what would.

    Args:
        spec: the model.
        settings: size of the clips.
        training: what was asked for.
        memory: bytes of each GPU.
        host: of the first process; None: not known.
    """
    need, parts = need_of(spec, settings, training)
    if need <= _USABLE * memory:
        if host is not None and not _fits_host(spec, training, host):
            fits = _fitting(spec, settings, training, memory, host)
            raise UserError(
                f"{_asked(spec, settings, training)} {_host_words(spec, training, host)}; "
                + (f"what would fit: {fits}" if fits else "nothing fits these GPUs and this host")
            )
        return
    step, (start, observing) = sum(parts.values()), _before(spec, settings, training)
    where = ", ".join(f"{name} {size / GB:.1f}" for name, size in parts.items())
    if need > step:
        what = "where whole models lie on each GPU"
        if observing > start:
            what = f"while the method looks at batches of {training.observed} in float32"
        where = f"before its first step, {what} (a step takes {step / GB:.0f})"
    fits = _fitting(spec, settings, training, memory, host)
    advice = f"what would fit: {fits}" if fits else f"it needs GPUs of {need / GB / _USABLE:.0f} GB"
    raise UserError(
        f"{_asked(spec, settings, training)} takes about {need / GB:.0f} GB on each "
        f"GPU, which have {memory / GB:.0f}: {where}; {advice}"
    )


def _fits_host(spec: ModelSpec, training: Training, host: Host) -> bool:
    """A pipeline that does not fit is no matter of a training that keeps nothing there."""
    keeps = bool(training.offload) or training.teacher_place == "host" or training.save_async
    return not keeps or _whole_host_need(spec, training, host.processes) <= _USABLE_HOST * host.free


def _host_words(spec: ModelSpec, training: Training, host: Host) -> str:
    words = f"keeps about {host_need_of(spec, training) / GB:.0f} GB of each process"
    if training.save_async:
        words += f" and {state_bytes(spec, training.rank) / GB:.0f} GB of a state that is being written"
    count = f"{host.processes} processes" if host.processes > 1 else "one process"
    return f"{words} on the host, which has {host.free / GB:.0f} GB free for {count}"


def _asked(spec: ModelSpec, settings: VideoSettings, training: Training) -> str:
    clip = f"{settings.frames}x{settings.height}x{settings.width}"
    return f"training {spec.name} on clips {clip} with {training.words}"


def _fitting(
    spec: ModelSpec, settings: VideoSettings, training: Training, memory: float, host: Host | None
) -> str:
    """A few trainings that would fit, in words; empty if there are none.

    Further GPUs are taken to be of the same hosts, whose memory their processes share.
    """

    def on_host(other: Training) -> bool:
        if host is None:
            return True
        processes = -(-host.processes * other.gpus // training.gpus)
        return _fits_host(spec, other, Host(host.free, processes))

    fits: dict[str, None] = {}
    for wanted in _others(training):
        for other in (wanted, *(() if on_host(wanted) else _with_less_on_the_host(wanted))):
            if on_host(other) and need_of(spec, settings, other)[0] <= _USABLE * memory:
                fits[other.words] = None
                break
        if len(fits) == _SUGGESTIONS:
            break
    return "; or ".join(fits)


def _with_less_on_the_host(training: Training) -> Iterator[Training]:
    """Without a copy of the state; then some of the moments stay."""
    training = dataclasses.replace(training, save_async=False)
    yield training
    if training.offload == 1:
        for share in _SHARES:
            yield dataclasses.replace(training, offload=share)


def _others(training: Training) -> Iterator[Training]:
    """From the smallest change to the largest."""
    for gpus in (training.gpus, *(count for count in (2, 4, 8, 16, 32) if count > training.gpus)):
        for size in sorted({training.batch_size, max(1, training.batch_size // 2), 1}, reverse=True):
            for checkpointing in (training.checkpointing, True):
                for offload in dict.fromkeys((training.offload, 1.0, 0.0)):
                    elsewhere = "sharded" if gpus > 1 else "host"
                    for place in dict.fromkeys((training.teacher_place, elsewhere, "whole")):
                        yield dataclasses.replace(
                            training, gpus=gpus, batch_size=size, checkpointing=checkpointing,
                            offload=offload, teacher_place=place,
                        )  # fmt: skip
