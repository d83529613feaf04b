"""A CogVideoX or Wan pipeline in memory; satisfies ``evalharness.api.LoadedModel``.

What the families differ in is left to ``cogvideox_pipeline`` and ``wan_pipeline``. On a GPU transformer
and text encoder run in bfloat16; on a CPU, which emulates bfloat16 slowly, all is float32.
"""

from __future__ import annotations

import copy
import gc
import itertools
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, distributed, nn

from evalharness.api import TrainBatch
from evalharness.errors import UserError
from evalharness.models.video.captions import captions
from evalharness.models.video.experts import TwoExperts, same_side
from evalharness.models.video.moves import move_, places_itself
from evalharness.models.video.placement import Placement
from evalharness.models.video.settings import VideoSettings
from evalharness.models.video.source import PipelineSource
from evalharness.models.video.spec import ModelSpec
from evalharness.models.video.trajectories import record_steps

if TYPE_CHECKING:
    from evalharness.data.shards import EncodedClips
    from evalharness.modeloptions import ModelOptions

__all__ = ["LoadedVideo"]

CAPTION_DROPOUT = 0.05  # as the official training
_PREFIXES = ("high.", "low.")
_PARTS = ("transformer", "transformer_2")


class LoadedVideo(ABC):
    """See the module.

    Attributes:
        pipeline: of diffusers; its transformer is changed by the harness, see ``transformer``.
        device: where it computes.
        build_device: where a transformer that ``take_transformer`` gave away is made into another.

    At most one transformer is held. The full-precision one is given away to be quantized, and read
    again when it is asked for: two of them in memory would be one too many for a 14B model.
    """

    vae_in_float32: ClassVar[bool] = False
    # Linears around the blocks that the skip preset ``std`` spares, and parts of names within blocks.
    std_prefixes: ClassVar[tuple[str, ...]]
    std_parts: ClassVar[tuple[str, ...]] = ()
    latent_frames_at_once: ClassVar[int] = 1

    def __init__(
        self,
        spec: ModelSpec,
        settings: VideoSettings,
        source: PipelineSource,
        device: str,
        options: ModelOptions,
    ) -> None:
        self.spec, self.settings, self.options = spec, settings, options
        self.device = torch.device(device)
        self._source = source
        self.pipeline: Any = _load(spec, source, self.device, vae_in_float32=self.vae_in_float32)
        self.pipeline.scheduler = self._scheduler(self.pipeline.scheduler)
        self.check_size(settings.frames, settings.height, settings.width)
        if settings.tiled_decode:
            self.pipeline.vae.enable_tiling()
        if self.device.type == "cuda":
            _choose_attention(settings.attention)
        self.placement = Placement(self.device, options.memory)
        self._texts: dict[str, Tensor] = {}
        self._clips: EncodedClips | None = None
        whole = self._whole_transformer()
        self._skeleton = without_weights(whole)
        self._config: Any = whole.config
        self._transformer: nn.Module | None = whole
        self._full: nn.Module | None = whole
        self._lent: Callable[[], nn.Module | None] = lambda: None
        self._attach(whole)
        self.placement.settle(whole, self.pipeline.text_encoder, self.pipeline.vae)
        self.build_device = self.placement.build_device(whole)

    # What the families differ in.

    @abstractmethod
    def _scheduler(self, loaded: Any) -> Any:
        """The sampler of the settings, from the folder's configuration."""

    @abstractmethod
    def _encode_text(self, prompt: str) -> Tensor:
        """Embedding [1, L, D]; the text encoder is on the device."""

    @abstractmethod
    def _family_arguments(self) -> dict[str, Any]:
        """Arguments of the pipeline's call that only this family has."""

    @abstractmethod
    def _decode(self, latents: Tensor) -> Tensor:
        """Frames [B, 3, T, H, W] in -1..1 of what the sampler returned."""

    @abstractmethod
    def encode_video(self, video: Tensor) -> Tensor:
        """Normalised latents [B, C, F, h, w], float32, of frames [B, 3, T, H, W] in -1..1.

        The distribution's mean, so that the same clip has the same latents; the autoencoder must be on
        the device (``with loaded.encoding():``).
        """

    @abstractmethod
    def noisy_batch(self, latents: Tensor, text: Tensor, generator: torch.Generator) -> TrainBatch:
        """Draw timesteps and noise for clean latents [B, C, F, h, w] and embeddings [B, L, D]."""

    @abstractmethod
    def step_inputs(self) -> dict[str, Any]:
        """Inputs of one transformer call at generation size."""

    # The contract.

    @property
    def transformer(self) -> nn.Module:
        if self._transformer is None:
            self.transformer = self.full_transformer()
        assert self._transformer is not None
        return self._transformer

    @transformer.setter
    def transformer(self, module: nn.Module) -> None:
        if self._full is not None and self._full is not module:
            self.placement.leave(self._full)
        self._hold(module)

    def full_transformer(self) -> nn.Module:
        """The full-precision transformer, in eval mode; kept until it is taken."""
        if self._full is None:
            self._full = self.read_transformer()
        return self._full

    def read_transformer(self) -> nn.Module:
        """Another full-precision transformer, on the host, in eval mode; the caller's alone."""
        gc.collect()  # modules refer to themselves (hooks, contexts): what is of no use must go first
        dtype = _working_dtype(self.device)
        experts = [self._source.transformer(name, dtype) for name in _PARTS[: self._experts]]
        return self._joined(experts).eval()

    def take_transformer(self) -> nn.Module:
        """The full-precision transformer, to be changed: the pipeline is without one until it is given one.

        Whatever it held else is let go before.
        """
        taken, self._full = self._full, None
        self._hold(None)
        if taken is None:
            return self.read_transformer()
        self.placement.forget(taken)
        return taken

    def let_go(self) -> None:
        """Hold no transformer but the full-precision one, if it is there: it is about to be asked for."""
        if self._transformer is not self._full:
            self._hold(None)

    def lend_teacher(self, teacher: nn.Module) -> None:
        """Full precision, of a training: ``--data teacher`` samples with it while it lives."""
        self._lent = weakref.ref(teacher)

    @contextmanager
    def using(self, transformer: nn.Module) -> Iterator[None]:
        """``transformer`` samples within the block; one in training is then ready to go on with it."""
        before = self._transformer
        if before is not None and before is not transformer:
            self.placement.leave(before)
        self._hold(transformer)
        try:
            yield
        finally:
            if transformer is self._full:
                self.placement.leave(transformer)
            elif self.placement.moves and not places_itself(transformer):
                move_(transformer, self.placement.device)
            self._hold(before)

    @contextmanager
    def at_work(self, part: nn.Module) -> Iterator[None]:
        """Within the block ``part``, of the pipeline, or a transformer, can be called on the device."""
        if part in (self.pipeline.text_encoder, self.pipeline.vae):
            with self.placement.turn(part, self._transformer):
                yield
            return
        try:
            with self.placement.at_work(part):
                yield
        finally:
            if part is self._transformer:
                self.placement.rest(part)

    def _hold(self, module: nn.Module | None) -> None:
        self._transformer = module
        self._attach(module)
        if module is not None:
            self.placement.rest(module)

    def skip_layers(self, preset: str) -> tuple[str, ...]:
        """``none`` quantizes every linear, as QVGen shipped; ``std`` spares embedders, modulation, output.

        Raises:
            ValueError: another preset.
        """
        if preset == "none":
            return ()
        if preset != "std":
            raise ValueError(f"skip preset {preset!r}: {self.spec.name} knows none and std")
        names = [name for name, part in self._skeleton.named_modules() if isinstance(part, nn.Linear)]
        return tuple(name for name in names if self._is_spared(name))

    def predict(self, transformer: nn.Module, batch: TrainBatch) -> Tensor:
        dtype = transformer.dtype if not torch.is_autocast_enabled(self.device.type) else None
        output: Tensor = transformer(**_moved(batch.inputs, self.device, dtype))[0]  # type: ignore[arg-type]
        return output

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        """Videos uint8 [B, T, H, W, 3]; the noise is drawn on the CPU, one generator a video."""
        with torch.inference_mode():
            latents = self._denoise(prompts, seeds)
            with self.placement.turn(self.pipeline.vae, self._transformer):
                videos = [self._frames(latent[None]) for latent in latents]
        return np.stack(videos)

    def calibration_runs(self, *, seed: int) -> Iterator[int]:
        """Samples captions that belong to no protocol."""
        noise = torch.Generator().manual_seed(seed)
        for number, caption in enumerate(captions(seed)):
            drawn = int(torch.randint(2**62, (1,), generator=noise))
            with torch.no_grad():
                self._denoise([caption], [drawn])
            yield number

    def trajectories(self, transformer: nn.Module, *, batch_size: int, seed: int) -> Iterator[TrainBatch]:
        """The states that ``transformer`` goes through while it samples captions; no clips are needed.

        A batch is one denoising step of ``batch_size // 2`` videos (at least one), each with and without
        its caption where there is guidance.
        """
        drawn = self._trajectories(transformer, batch_size, seed)
        yield from (self._on_device(batch) for batch in drawn)

    def _trajectories(self, transformer: nn.Module, batch_size: int, seed: int) -> Iterator[TrainBatch]:
        words = captions(seed)
        noise = torch.Generator().manual_seed(seed)
        count = max(1, batch_size // 2) if self.settings.guidance > 1 else batch_size
        while True:
            texts = list(itertools.islice(words, count))
            seeds = torch.randint(2**62, (count,), generator=noise).tolist()
            with self.using(transformer):
                steps = record_steps(transformer, lambda t=texts, s=seeds: self._denoise(t, s))  # type: ignore[misc]
            yield from steps

    def batches(self, *, batch_size: int, seed: int) -> Iterator[TrainBatch]:
        """Noised latents of the training data; with ``--data teacher`` the teacher's own states.

        Raises:
            ValueError: no training data was given.
        """
        drawn = self._drawn(batch_size, seed, held_out=False)
        for batch in same_side(drawn, self._skeleton, _processes()):
            yield self._on_device(batch)

    def few_batches(self, *, batch_size: int, seed: int) -> Iterator[TrainBatch]:
        """As ``batches``, of clips that are not trained on, for validation: each for all processes."""
        return (self._on_device(batch) for batch in self._drawn(batch_size, seed, held_out=True))

    def _drawn(self, batch_size: int, seed: int, *, held_out: bool) -> Iterator[TrainBatch]:
        """On the host."""
        if self.options.data is None:
            raise ValueError(
                f"model {self.spec.name} has nothing to train on: give --data DIR (made with evalharness "
                "data), or --data teacher to train along the full-precision model's own sampling"
            )
        if self.options.data == "teacher":
            teacher = self._lent() or self.full_transformer()
            drawn = self._trajectories(teacher, batch_size, seed)
        else:
            drawn = self._batches_of_clips(batch_size, seed, held_out=held_out)
        yield from drawn

    def _batches_of_clips(self, batch_size: int, seed: int, *, held_out: bool) -> Iterator[TrainBatch]:
        clips = self._encoded_clips()
        generator = torch.Generator().manual_seed(seed)
        stored = clips.empty_caption()
        empty = self.embed([""])[0] if stored is None else stored
        while True:
            latents, text = clips.draw(batch_size, generator, held_out=held_out)
            drop = torch.rand(batch_size, generator=generator) < CAPTION_DROPOUT
            text[drop] = empty.to(text.dtype)
            yield self.noisy_batch(latents.float(), text.float(), generator)

    # What data preparation and tests use beside it.

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings [B, L, D] on the host; each text is encoded once, alone."""
        new = [text for text in dict.fromkeys(prompts) if text not in self._texts]
        if new:
            with torch.no_grad(), self.placement.turn(self.pipeline.text_encoder, self._transformer):
                for text in new:
                    self._texts[text] = self._encode_text(text).to("cpu")
        return torch.cat([self._texts[text] for text in prompts])

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Within it ``encode_video`` can be called. Clips are encoded whole: tiles change latents."""
        vae = self.pipeline.vae
        vae.disable_tiling()
        try:
            with self.placement.turn(vae, self._transformer):
                yield
        finally:
            if self.settings.tiled_decode:
                vae.enable_tiling()

    # Inner parts.

    def _whole_transformer(self) -> nn.Module:
        first, second = self.pipeline.transformer, getattr(self.pipeline, "transformer_2", None)
        for part in (first, second, self.pipeline.vae, self.pipeline.text_encoder):
            if part is not None:
                part.eval()
        self._experts = 1 if second is None else 2
        return self._joined([first, second][: self._experts])

    def _joined(self, experts: Sequence[nn.Module]) -> nn.Module:
        if len(experts) == 1:
            return experts[0]
        boundary = self.pipeline.config.boundary_ratio or self.spec.boundary
        high, low = experts
        return TwoExperts(high, low, boundary * self.pipeline.scheduler.config.num_train_timesteps)

    def _attach(self, module: nn.Module | None) -> None:
        """``module``, or for want of one the names and sizes alone, which the pipeline looks at."""
        self.pipeline.transformer = attached = self._skeleton if module is None else module
        if self._experts == 2:
            self.pipeline.transformer_2 = attached  # a pair finds the expert by the timestep itself

    def _is_spared(self, name: str) -> bool:
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
        return name.startswith(self.std_prefixes) or any(part in name for part in self.std_parts)

    def _denoise(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        settings = self.settings
        transformer = self.transformer
        dtype: Any = transformer.dtype
        arguments = self._family_arguments()
        text = self.embed(prompts).to(self.device, dtype)
        if settings.guidance > 1:
            away = self.embed([settings.negative_prompt]).to(self.device, dtype)
            arguments["negative_prompt_embeds"] = away.expand_as(text)
        if settings.fixed_noise is not None:
            seeds = [settings.fixed_noise] * len(prompts)
        with self.placement.denoising(transformer):
            latents: Tensor = self.pipeline(
                prompt_embeds=text,
                height=settings.height,
                width=settings.width,
                num_frames=settings.frames,
                num_inference_steps=settings.steps,
                guidance_scale=settings.guidance,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                output_type="latent",
                max_sequence_length=settings.text_length,
                **arguments,
            ).frames
        return latents

    def _frames(self, latents: Tensor) -> np.ndarray:
        """uint8 [T, H, W, 3] of one video's latents."""
        video = self._decode(latents)[0].float().permute(1, 2, 3, 0).clamp(-1, 1)
        frames: np.ndarray = ((video + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
        return frames

    def _encoded_clips(self) -> EncodedClips:
        if self._clips is None:
            from evalharness.data.shards import EncodedClips

            assert self.options.data is not None
            self._clips = EncodedClips(Path(self.options.data))
        return self._clips

    def _on_device(self, batch: TrainBatch) -> TrainBatch:
        return TrainBatch(_moved(batch.inputs, self.device, None), batch.target.to(self.device))

    def check_size(self, frames: int, height: int, width: int) -> None:
        """Refuse what the pipeline would refuse, or silently change, later.

        Raises:
            UserError: names the number and what it must be a multiple of.
        """
        unit = self.spatial * self._patch()
        for name, value in (("height", height), ("width", width)):
            if value % unit:
                raise UserError(f"{name} {value}: model {self.spec.name} needs a multiple of {unit}")
        unit = self.temporal * self.latent_frames_at_once
        if (frames - 1) % unit:
            raise UserError(f"frames {frames}: model {self.spec.name} makes a multiple of {unit}, plus one")

    def _patch(self) -> int:
        size = self.pipeline.transformer.config.patch_size
        return int(size if isinstance(size, int) else size[-1])

    @property
    def spatial(self) -> int:
        """Pixels of a latent position along one side."""
        return int(self.pipeline.vae_scale_factor_spatial)

    @property
    def temporal(self) -> int:
        """Frames of a latent frame, but for the first."""
        return int(self.pipeline.vae_scale_factor_temporal)

    def latent_frames(self, frames: int) -> int:
        """Latent frames of that many frames."""
        return (frames - 1) // self.temporal + 1


def _load(spec: ModelSpec, source: PipelineSource, device: torch.device, *, vae_in_float32: bool) -> Any:
    import diffusers
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    low = _working_dtype(device)
    dtypes = {"default": low, "vae": torch.float32 if vae_in_float32 else low}
    plain = getattr(diffusers, spec.pipeline)
    # The parts may lie on the host while the pipeline computes on the device.
    cls: Any = type(spec.pipeline, (plain,), {"_execution_device": device})
    pipeline = source.pipeline(cls, dtypes)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _processes() -> int:
    """That train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def without_weights(module: nn.Module) -> nn.Module:
    """A copy whose tensors are on the meta device: names, classes and shapes."""
    tensors = (*module.parameters(), *module.buffers())
    return copy.deepcopy(module, {id(tensor): _meta(tensor) for tensor in tensors})


def _meta(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


def _working_dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _choose_attention(backend: str) -> None:
    """For this whole process, which is a worker: profiles must run what generation runs."""
    if backend == "sdpa":
        return
    torch.backends.cuda.enable_cudnn_sdp(backend == "cudnn")
    torch.backends.cuda.enable_flash_sdp(backend == "flash")
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_math_sdp(backend == "math")


def _moved(inputs: dict[str, Any], device: torch.device, dtype: torch.dtype | None) -> dict[str, Any]:
    """Tensors to the device; those of the data, not the rotary angles or times, to ``dtype``."""

    def one(name: str, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(one("", item) for item in value)
        if not isinstance(value, Tensor):
            return value
        cast = dtype if name in ("hidden_states", "encoder_hidden_states") else None
        return value.to(device=device, dtype=cast) if cast is not None else value.to(device)

    return {name: one(name, value) for name, value in inputs.items()}
