"""The contracts between the harness and what is plugged into it.

Five kinds of plugin exist, each found through an entry-point group of the same name as its
plural: ``evalharness.methods``, ``.models``, ``.protocols``, ``.metrics``, ``.reporters``.
All contracts are structural (``typing.Protocol``): a plugin needs nothing from this package but
the shapes below, and ``qvgen`` and ``baselines`` indeed import nothing from it.

This module imports neither torch nor pandas at run time, so that listing plugins stays instant.

Shape legend: B batch, T frames, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeVar, runtime_checkable

from evalharness.bits import ALLOWED_BITS, FULL_PRECISION, FULL_PRECISION_BITS, Bits

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch
    from torch import nn

    from evalharness.results import Results

__all__ = [
    "ALLOWED_BITS",
    "FULL_PRECISION",
    "FULL_PRECISION_BITS",
    "Bits",
    "CalibrationNeeds",
    "EvalProtocol",
    "GenerationSettings",
    "LayerStatistics",
    "LeftOut",
    "LoadedModel",
    "Method",
    "MethodContext",
    "Metric",
    "MetricInfo",
    "Model",
    "Needs",
    "Prompt",
    "Reporter",
    "Sample",
    "Skip",
    "Total",
    "TotalTerm",
    "TrainBatch",
    "Verdict",
    "Video",
    "WeightFile",
]

ValueT = TypeVar("ValueT")


class Needs(StrEnum):
    """What a method asks for before it can quantize."""

    NONE = "none"
    CALIBRATION = "calibration"
    TRAINING = "training"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One line of a protocol.

    Attributes:
        id: stable, path-safe name, e.g. ``0042``; file names are built from it.
        text: what the text encoder reads.
        dimensions: the dimensions this prompt counts for.
        labels: JSON values that metrics judge against, e.g. ``{"scene": "desert"}``.
    """

    id: str
    text: str
    dimensions: tuple[str, ...]
    labels: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One video to make: a prompt, its running number and its seed (``evalharness.seeds``)."""

    prompt: Prompt
    index: int
    seed: int

    @property
    def id(self) -> str:
        return f"{self.prompt.id}-{self.index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSettings:
    """How videos are sampled. ``frames``, ``height`` and ``width`` in pixels, ``fps`` per second."""

    steps: int
    guidance: float
    frames: int
    height: int
    width: int
    fps: int
    scheduler: str


class TrainBatch(NamedTuple):
    """Inputs of one transformer call with the clean training target.

    Attributes:
        inputs: keyword arguments of the transformer's ``forward``.
        target: what the task loss compares with, same shape as the prediction.
    """

    inputs: dict[str, Any]
    target: torch.Tensor


class CalibrationNeeds(Protocol):
    """What a method asks of ``ctx.calibration``. Any object with these attributes will do.

    Attributes:
        layers: names of the linears to watch, as ``named_modules`` of the transformer spells them.
        prompts: videos that the full-precision sampler makes, at least 1.
        buckets: timestep ranges that channel maxima are kept for; bucket ``floor(t * G / 1000)``.
        rows: input rows (tokens) to keep of each layer, a uniform sample over all calls; 0: none.
        hessian: whether to collect the mean of x x^T.
        hessian_rows_per_call: rows of one call that it takes in, evenly spaced.
    """

    @property
    def layers(self) -> Sequence[str]: ...
    @property
    def prompts(self) -> int: ...
    @property
    def buckets(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def hessian(self) -> bool: ...
    @property
    def hessian_rows_per_call(self) -> int: ...


class LayerStatistics(Protocol):
    """What one linear with C inputs saw during calibration; tensors on the model's device.

    Attributes:
        absmax: largest magnitude of each channel by timestep bucket, float32 [G, C]; 0 where a
            bucket was never visited.
        low: smallest value seen, or 0 if that is smaller.
        high: largest value seen, or 0 if that is larger.
        rows: inputs, [at most needs.rows, C], in the dtype of the model.
        hessian: mean of x x^T, float32 [C, C]; may be None if it was not asked for.
        mean: mean of x over the same rows, float32 [C]; likewise.
        shares_input_with: the first layer that read the same tensor at every call; its own name if
            it was the first (so q, k and v of one attention have the same value).
    """

    @property
    def absmax(self) -> torch.Tensor: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def rows(self) -> torch.Tensor: ...
    @property
    def hessian(self) -> torch.Tensor | None: ...
    @property
    def mean(self) -> torch.Tensor | None: ...
    @property
    def shares_input_with(self) -> str: ...


class LoadedModel(Protocol):
    """A pipeline in memory. ``transformer`` is the module that methods quantize; assignable.

    A model may also offer ``calibration_runs(*, seed) -> Iterator[int]``: an endless iterator, each
    step of which samples one video from a caption of the training split (never one of a protocol)
    with the generation settings and the present ``transformer``, and yields its running number.
    Without it methods that calibrate cannot be run on the model. It may also offer
    ``latents(frames) -> np.ndarray``, the encoder's view of a video, uint8 [T, H, W, 3].

    A large model need not be copied: it offers ``take_transformer()``, which gives its full-precision
    transformer away, and reads another when one is wanted (``full_transformer()``, kept;
    ``read_transformer()``, the caller's); ``let_go()`` drops whatever else it holds before. Where its
    parts move between host and device, it offers the contexts ``using(module)``, to sample with it, and
    ``at_work(part)``, to call it.
    """

    transformer: nn.Module

    def skip_layers(self, preset: str) -> tuple[str, ...]:
        """Names of linears that stay in full precision. Presets: ``none``, ``std``."""
        ...

    def batches(self, *, batch_size: int, seed: int) -> Iterator[TrainBatch]:
        """Endless training batches; a pure function of its arguments."""
        ...

    def predict(self, transformer: nn.Module, batch: TrainBatch) -> torch.Tensor:
        """Run ``transformer`` on the batch; returns the prediction, shaped like the target."""
        ...

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        """Videos, uint8 [B, T, H, W, 3]. Row i depends on prompt i and seed i alone."""
        ...

    def step_inputs(self) -> dict[str, Any]:
        """Inputs of one denoising step's transformer call at generation size, for profiling."""
        ...


class Model(Protocol):
    """A text-to-video model that the harness can load."""

    name: ClassVar[str]
    summary: ClassVar[str]
    default_protocol: ClassVar[str]
    settings: ClassVar[GenerationSettings]

    def fingerprint(self) -> str:
        """Hex SHA-256 over the weight files. Must not need torch."""
        ...

    def checkpoint(self, method: str, bits: Bits) -> Path | None:
        """Folder of a published quantized checkpoint, or None."""
        ...

    def load(self, device: str) -> LoadedModel: ...


class MethodContext(Protocol):
    """What a method gets to work with; the prepare stage builds it.

    The harness's own also has ``state_folder``, a path where a training may save what it needs to
    go on after a kill, ``rewind_log(lines)``, ``validation_batches(batch_size)`` and
    ``calibration(needs: CalibrationNeeds) -> Mapping[str, LayerStatistics]``, which raises ValueError
    for a model without ``calibration_runs``; and ``trajectories(batch_size)``, the inputs along the
    full-precision sampler's own way, where the model has them. A method must do without them where
    they are absent, or say that it cannot.
    """

    seed: int
    device: torch.device
    skip_layers: tuple[str, ...]

    def teacher(self) -> nn.Module:
        """The frozen full-precision transformer, on ``device``, in eval mode."""
        ...

    def batches(self, batch_size: int) -> Iterator[TrainBatch]: ...

    def predict(self, transformer: nn.Module, batch: TrainBatch) -> torch.Tensor: ...

    def log(self, record: Mapping[str, float | int | str]) -> None:
        """Append one line to the cell's ``train.jsonl``."""
        ...

    def track(self, steps: range, what: str) -> Iterator[int]:
        """Iterate with a progress bar."""
        ...


@runtime_checkable
class Method(Protocol):
    """A quantization method: a frozen, keyword-only config dataclass with behaviour.

    The harness builds it as ``MethodClass(w_bits=.., a_bits=.., **options)``; options are the
    dataclass's other fields. A wrong value raises ValueError from ``__post_init__``.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[Needs | str]

    @property
    def w_bits(self) -> int: ...

    @property
    def a_bits(self) -> int: ...

    def apply(self, model: nn.Module, ctx: MethodContext) -> nn.Module:
        """Quantize ``model`` (may change it in place) and return it in eval mode.

        Raises:
            ValueError: a mistake of the user.
            FloatingPointError: a training diverged, which is a result; it may be a ValueError as well.
        """
        ...

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write what ``load`` needs, as safetensors and JSON only, into an existing folder."""
        ...

    def load(self, model: nn.Module, folder: Path) -> nn.Module:
        """Rebuild ``apply``'s result from ``folder`` on a fresh full-precision ``model``.

        Raises:
            ValueError: the folder is missing, corrupt, or of another method, model or bit width.
        """
        ...


class TotalTerm(NamedTuple):
    """A dimension's part in a ``Total``: ``low`` and ``high`` become 0 and 1, nothing is clipped."""

    low: float = 0.0
    high: float = 1.0
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """A weighted mean of stretched dimensions: sum of ``weight (x - low) / (high - low)`` over the
    sum of the weights. It exists only where every dimension of ``terms`` is fully scored.
    """

    name: str
    terms: Mapping[str, TotalTerm]


class EvalProtocol(Protocol):
    """Which prompts, how many videos each, which dimensions, and which metric judges each.

    A protocol may also have

    - ``samples_by_dimension: Mapping[str, int]``: how many videos a prompt of that dimension gets where
      that is more than ``samples_per_prompt``; of these the first ``samples_per_prompt`` that the
      dimension's metric does not leave out (``LeftOut``) are scored;
    - ``totals: Sequence[Total]``, shown beside the mean;
    - ``metrics_optional = True``: a dimension whose metric is not installed stays without a score,
      instead of being an error;
    - ``fallback_metrics``: dimension -> metric that judges it where that of ``metrics`` is not installed.

    Attributes:
        metrics: dimension -> name of a metric plugin, in the order of the table.
        percent: whether tables show the scores times 100 (as VBench papers do).
        label: what the scores are, printed above every table.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    samples_per_prompt: ClassVar[int]
    metrics: ClassVar[Mapping[str, str]]
    percent: ClassVar[bool]
    label: ClassVar[str]

    def prompts(self) -> Sequence[Prompt]: ...


class Skip(Exception):  # noqa: N818 - not an error: "no score, and this is why"
    """Raised by a metric that has nothing to say about a sample. Never turned into a 0."""


class LeftOut(Skip):
    """Raised where the dimension's own definition drops the video; it is then not missing either.

    So VBench's color drops a video without the object, and its static filter one that moves.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFile:
    """A file that a metric needs. ``path`` relative to the package or to the cache."""

    path: str
    sha256: str
    licence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricInfo:
    """Declared facts of a metric. Raising ``version`` makes every old score of it stale."""

    low: float = 0.0
    high: float = 1.0
    higher_is_better: bool = True
    version: int = 1
    cost_ms: float = 1.0
    faithful_to: str = "none"
    weights: tuple[WeightFile, ...] = ()


class Video:
    """Frames of one file, decoded once and shared by all metrics.

    Attributes:
        frames: uint8 [T, H, W, 3], RGB, exactly what the file holds.
        fps: frames per second.
    """

    def __init__(self, frames: np.ndarray, fps: float) -> None:
        self.frames = frames
        self.fps = fps
        self._memo: dict[str, Any] = {}

    def memo(self, key: str, compute: Callable[[Video], ValueT]) -> ValueT:
        """Compute a shared feature (a backbone's output) once per video."""
        if key not in self._memo:
            self._memo[key] = compute(self)
        value: ValueT = self._memo[key]
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a metric that judges files says of one: ``value``, or why there is none.

    Attributes:
        value: in the metric's range.
        skip: the reason where the metric has nothing to say; with ``left_out`` as for ``LeftOut``.
        error: what went wrong; the video is tried again next time.
        left_out: the dimension's own definition drops the video.
        details: JSON values that lie behind the score.
    """

    value: float | None = None
    skip: str | None = None
    error: str | None = None
    left_out: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)


class Metric(Protocol):
    """Scores one dimension of one video.

    A metric may also have ``details(video, sample) -> Mapping``, JSON values that lie behind its score
    and are kept beside it; ``device``, which the score stage then sets to the run's; ``missing``,
    names of weights that are not there, which ``evalharness ls metrics`` shows; and
    ``judge_files(files: Sequence[tuple[Sample, Path]]) -> Sequence[Verdict]``, in the same order, for a
    metric that reads video files itself and many at a time, at most ``files_at_once`` of them. The score
    stage then calls that in place of ``score``.
    """

    name: str
    dimension: str
    summary: str
    info: MetricInfo

    def score(self, video: Video, sample: Sample) -> float:
        """A value in ``[info.low, info.high]``.

        Raises:
            Skip: the sample lacks what the metric needs; the message is the recorded reason.
        """
        ...


class Reporter(Protocol):
    """Turns ``results.json`` into files."""

    name: str
    summary: str

    def write(self, results: Results, run_folder: Path) -> list[Path]:
        """Write atomically into ``run_folder``; returns the files."""
        ...
