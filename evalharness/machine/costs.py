"""Work, memory and time of a video model, from its sizes. Needs neither torch nor weights.

Counted: matrix products of linears and attention, and the decoder's convolutions. Estimated: the bytes
that elementwise work moves, and activations. What was measured elsewhere is said beside each constant;
none of it was measured on full-size weights by this project.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from evalharness.models.video.settings import VideoSettings
from evalharness.models.video.spec import ModelSpec, TransformerShape

__all__ = [
    "NOMINAL",
    "TILE_PIXELS",
    "MemoryNeed",
    "Rates",
    "Work",
    "call_seconds",
    "expert_bytes",
    "memory_needs",
    "observing_memory",
    "output_bytes",
    "start_memory",
    "state_bytes",
    "training_memory",
    "training_seconds",
    "video_seconds",
    "video_tokens",
    "weights_bytes",
    "work_of",
]

GB = 1e9
# Bytes moved for a channel of a token in one block by norms, modulation, rotary angles, gates: counted
# in diffusers' eager code.
_ELEMENTWISE = {True: 78.0, False: 267.0}  # CogVideoX, Wan
# Sides of diffusers' tiles, and from one to the next, in pixels: CogVideoX, Wan.
_TILES = {True: ((240, 200), (360, 288)), False: ((256, 192), (256, 192))}
# Copies of all frames beside the tiles that they are made of: joined in rows, joined; and clamped, of Wan.
_JOINED = {True: 2, False: 3}
TILE_PIXELS = {joint: rows[0] * columns[0] for joint, (rows, columns) in _TILES.items()}
# Of a block at work in a training under autocast, with quantizers as one kernel each: numbers of bfloat16 a
# token, in widths and in hidden layers, counted tensor by tensor without data (a test does it again). Wan's
# norms and modulation are float32, and one backward pass through them holds fourteen such hidden states.
_TRAINED = {True: (30, 4), False: (50, 3)}  # CogVideoX, Wan
# Moments that an optimizer with offload has on the GPU at once: three parts of 2^26 numbers.
_MOMENTS_AT_WORK = 3 * 2**26 * 8.0
# An encoded video's bytes for a pixel of a frame, at the harness's codec setting.
VIDEO_BYTES = 0.12


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One call of the transformer for one sample.

    Attributes:
        tokens: length of the sequence that self-attention sees.
        linear_flops: of the blocks' linears.
        attention_flops: of attention, cross-attention included.
        bytes_moved: by elementwise work.
    """

    tokens: int
    linear_flops: float
    attention_flops: float
    bytes_moved: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a device does in a second.

    Attributes:
        gemm: floating-point operations of matrix products in the transformer's number format.
        attention: of attention.
        float32: of float32 products, for a decoder that runs in it.
        bandwidth: bytes read and written.
    """

    gemm: float
    attention: float
    float32: float
    bandwidth: float


# Where nothing is measured: an H100's rates with good kernels, and one processor core's.
NOMINAL = {
    "cuda": Rates(gemm=700e12, attention=350e12, float32=50e12, bandwidth=3e12),
    "cpu": Rates(gemm=50e9, attention=50e9, float32=50e9, bandwidth=1e10),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """Bytes on the device at most, by phase, under one memory preset."""

    preset: str
    phases: Mapping[str, float]

    @property
    def peak(self) -> float:
        return max(self.phases.values())


def work_of(spec: ModelSpec, settings: VideoSettings) -> Work:
    """Of a model of known size."""
    shape = _shape(spec)
    width, hidden, layers = shape.width, shape.hidden, shape.layers
    video = video_tokens(spec, settings)
    text = shape.text_tokens
    if shape.joint_text:
        tokens = video + text
        weights = 4 * width * width + 2 * width * hidden
        linear = 2.0 * layers * tokens * weights
        attention = 4.0 * layers * tokens * tokens * width
    else:
        tokens = video
        linear = 2.0 * layers * (tokens * (6 * width * width + 2 * width * hidden) + 2 * text * width * width)
        attention = 4.0 * layers * tokens * (tokens + text) * width
    return Work(
        tokens=tokens,
        linear_flops=linear,
        attention_flops=attention,
        bytes_moved=_ELEMENTWISE[shape.joint_text] * tokens * width * layers,
    )


def video_tokens(spec: ModelSpec, settings: VideoSettings) -> int:
    """Tokens of the video itself."""
    shape = _shape(spec)
    latent = (settings.frames - 1) // spec.temporal + 1
    frames = math.ceil(latent / shape.patch[0])
    rows, columns = (size // spec.spatial // shape.patch[1] for size in (settings.height, settings.width))
    return frames * rows * columns


def calls(settings: VideoSettings) -> int:
    """Transformer calls of one sample for a video: two a step where there is guidance."""
    return settings.steps * (2 if settings.guidance > 1 else 1)


def call_seconds(work: Work, rates: Rates) -> float:
    """Of one transformer call."""
    return (
        work.linear_flops / rates.gemm
        + work.attention_flops / rates.attention
        + work.bytes_moved / rates.bandwidth
    )


def video_seconds(spec: ModelSpec, settings: VideoSettings, rates: Rates) -> float:
    """Of one video: denoising and decoding; a tiled decoder does a quarter more."""
    pixels = settings.frames * settings.height * settings.width
    rate = rates.float32 if spec.decoder_bytes == 4 else rates.gemm
    decode = spec.decode_flops * pixels / rate * (1.25 if settings.tiled_decode else 1.0)
    return calls(settings) * call_seconds(work_of(spec, settings), rates) + decode


def training_seconds(spec: ModelSpec, settings: VideoSettings, rates: Rates) -> float:
    """Of one sample in a training step: teacher, student, its blocks again, and a backward pass of two."""
    return 5 * call_seconds(work_of(spec, settings), rates)


def expert_bytes(spec: ModelSpec, execution: str, w_bits: int) -> float:
    """Bytes of one transformer on a GPU, whose blocks' linears are quantized per output channel.

    Args:
        spec: the model.
        execution: ``bf16``; ``fake``: codes of a byte and, beside them, the weights computed from them;
            ``packed``: codes alone.
        w_bits: of a weight.
    """
    shape = _shape(spec)
    if execution == "bf16":
        return 2.0 * shape.parameters
    attention = 4 if shape.joint_text else 8
    weights = shape.layers * (attention * shape.width**2 + 2 * shape.width * shape.hidden)
    channels = shape.layers * (attention * shape.width + shape.hidden + shape.width)
    each = {"fake": 3.0, "packed": w_bits / 8}[execution]
    return each * weights + 2.0 * (shape.parameters - weights) + 8.0 * channels


def memory_needs(
    spec: ModelSpec,
    settings: VideoSettings,
    number_bytes: int = 2,
    transformer: float | None = None,
    decoder_pixel_bytes: float | None = None,
) -> list[MemoryNeed]:
    """Under each preset, from the fastest to the smallest.

    Args:
        spec: the model.
        settings: of generation.
        number_bytes: of a weight at full precision.
        transformer: bytes of one transformer, where it is not at full precision; see ``expert_bytes``.
        decoder_pixel_bytes: that the decoder takes for a pixel of a frame, where another was measured.
    """
    shape = _shape(spec)
    text = spec.text_parameters * float(number_bytes)
    expert = shape.parameters * float(number_bytes) if transformer is None else transformer
    decoder = spec.decoder_parameters * float(spec.decoder_bytes)
    work = work_of(spec, settings)
    rows = 2 if shape.joint_text and settings.guidance > 1 else 1  # CogVideoX takes both at once
    activations = rows * work.tokens * number_bytes * _live_channels(shape)
    frame = settings.height * settings.width
    scale = spec.decoder_pixel_bytes if decoder_pixel_bytes is None else decoder_pixel_bytes
    whole = scale * frame + output_bytes(settings.frames, frame, spec)
    tiled = _tiled_bytes(spec, settings, scale)
    everything = text + spec.experts * expert + decoder
    return [
        MemoryNeed(
            preset="resident",
            phases={
                "text": everything,
                "denoise": everything + activations,
                "decode": everything + whole,
            },
        ),
        MemoryNeed(
            preset="phases",
            phases={"text": text, "denoise": expert + activations, "decode": decoder + tiled},
        ),
        MemoryNeed(
            preset="blocks",
            phases={
                "text": text,
                "denoise": 2 * expert / shape.layers + activations,
                "decode": decoder + tiled,
            },
        ),
    ]


def _tiled_bytes(spec: ModelSpec, settings: VideoSettings, pixel_bytes: float) -> float:
    """Of a decode in tiles: one at work beside those that are done; later all, and what they become.

    The frames of the last one are held twice then.
    """
    sizes = (settings.height, settings.width)
    tiles = _TILES[_shape(spec).joint_text]
    frame = settings.height * settings.width
    output = output_bytes(settings.frames, frame, spec)
    if all(size <= tile for size, (tile, _) in zip(sizes, tiles, strict=True)):
        return pixel_bytes * frame + output
    done, last, at_work = output, output, 1
    for size, (tile, step) in zip(sizes, tiles, strict=True):
        parts = [min(tile, size - start) for start in range(0, size, step)]
        done, last = done * sum(parts) / size, last * parts[-1] / size
        at_work *= min(tile, size)
    return done + max(pixel_bytes * at_work, last + _JOINED[_shape(spec).joint_text] * output)


def output_bytes(frames: int, pixels: int, spec: ModelSpec) -> float:
    """Of decoded frames of so many pixels each."""
    return 3.0 * frames * pixels * spec.decoder_bytes


def _live_channels(shape: TransformerShape) -> int:
    """Channels of a token that are held at most within a call: counted on the meta device by a test.

    In the feed-forward part both sides of the activation, or in Wan's modulation, which is float32.
    """
    feed_forward = _feed_forward_channels(shape)
    return feed_forward if shape.joint_text else max(feed_forward, 11 * shape.width)


def _feed_forward_channels(shape: TransformerShape) -> int:
    return 2 * shape.hidden + 4 * shape.width


def weights_bytes(spec: ModelSpec) -> float:
    """On disk, as the repository stores them; tokenizers and configurations are megabytes beside it."""
    numbers = (spec.text_parameters, spec.experts * _shape(spec).parameters, spec.decoder_parameters)
    return float(sum(count * size for count, size in zip(numbers, spec.stored_bytes, strict=True)))


def training_memory(
    spec: ModelSpec,
    settings: VideoSettings,
    *,
    batch_size: int,
    gpus: int,
    checkpointing: bool,
    rank: int = 0,
    teacher: bool = True,
    teacher_place: str = "whole",
    offload: float = 0.0,
    keeps_attention: bool = False,
) -> dict[str, float]:
    """Bytes on each GPU while a quantized model trains under the loop of ``qvgen.training``.

    Student, gradients and both moments of AdamW are float32 and sharded over the GPUs; the teacher is
    bfloat16; activations are those of one pass of ``batch_size`` samples.

    Args:
        spec: the model.
        settings: size of the clips.
        batch_size: samples of one pass.
        gpus: that share weights.
        checkpointing: whether blocks are computed again in the backward pass.
        rank: of Phi; 0 without it.
        teacher: whether there is one.
        teacher_place: ``whole`` on each GPU, ``sharded`` or on the ``host``: ``recipe.teacher``.
        offload: share of the weights' moments that rests on the host: ``recipe.offload`` and its share.
        keeps_attention: whether checkpointed blocks keep what attention gave: one hidden state for each
            attention, of which Wan's blocks have two.
    """
    shape = _shape(spec)
    numbers = float(spec.experts * shape.parameters)
    phi = _phi(spec, rank)
    work = work_of(spec, settings)
    token = 2.0 * shape.width
    widths, hidden = _TRAINED[shape.joint_text]
    working = batch_size * work.tokens * (widths * token + hidden * 2.0 * shape.hidden)
    kept = batch_size * work.tokens * token * shape.layers if checkpointing else working * (shape.layers - 1)
    if checkpointing and keeps_attention:
        kept += batch_size * work.tokens * token * shape.layers * (1 if shape.joint_text else 2)
    block = shape.parameters / shape.layers
    at_work = 3 * 4.0 * block if gpus > 1 else 4.0 * block
    if teacher and teacher_place != "whole":
        at_work += 2 * 2.0 * block
    resting = offload * 8.0 * numbers / gpus - _MOMENTS_AT_WORK if offload else 0.0
    return {
        "student, gradients, moments": 16.0 * (numbers + phi) / gpus - max(0.0, resting),
        "whole blocks while at work": at_work,
        "teacher": 2.0 * numbers * {"whole": 1.0, "sharded": 1.0 / gpus}.get(teacher_place, 0.0)
        if teacher
        else 0.0,
        "activations": kept + working,
    }


def start_memory(spec: ModelSpec, gpus: int, teacher: bool = True) -> float:
    """Bytes on each GPU before the first step.

    The pipeline has given its transformer away. On one GPU it becomes the float32 student tensor by tensor,
    beside which a teacher is read. Several take the student block by block from it; then there is a whole
    copy for the teacher, beside the shards.
    """
    numbers = float(spec.experts * _shape(spec).parameters)
    if gpus == 1:
        return numbers * (4.0 + (2.0 if teacher else 0.0))
    copied = 2.0 * numbers
    return max(copied, 4.0 * numbers / gpus + (copied if teacher else 0.0))


def observing_memory(spec: ModelSpec, settings: VideoSettings, samples: int, gpus: int) -> float:
    """Bytes on each GPU while a method looks at batches of ``samples`` before it trains, in float32.

    One GPU has all of the model in float32, several have it as it was read and one block of it in float32.
    """
    shape = _shape(spec)
    numbers = float(spec.experts * shape.parameters)
    weights = 4.0 * numbers if gpus == 1 else 2.0 * numbers + 4.0 * shape.parameters / shape.layers
    tokens = samples * work_of(spec, settings).tokens
    return weights + 4.0 * tokens * _feed_forward_channels(shape)


def state_bytes(spec: ModelSpec, rank: int) -> float:
    """Of a training's saved state: student and both moments in float32, with Phi of ``rank``."""
    return 12.0 * (spec.experts * _shape(spec).parameters + _phi(spec, rank))


def _phi(spec: ModelSpec, rank: int) -> float:
    """Numbers of Phi in all experts."""
    return float(spec.experts * rank * _linear_sides(_shape(spec)))


def _linear_sides(shape: TransformerShape) -> int:
    """Sum of both sides of all block linears: what a rank of Phi costs."""
    attention = (4 if shape.joint_text else 8) * 2 * shape.width
    return shape.layers * (attention + 2 * (shape.width + shape.hidden))


def _shape(spec: ModelSpec) -> TransformerShape:
    assert spec.shape is not None, f"model {spec.name} has no known size"
    return spec.shape
