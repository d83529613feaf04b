"""tinyworld as a harness model: the bundled CogVideoX pipeline, its data and its checkpoints.

Weights are stored in bf16 and computed in float32 on every device, so that a CPU, which emulates
bf16 slowly, and a GPU run the same function.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from evalharness.api import Bits, GenerationSettings, TrainBatch

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from evalharness.tinyworld.training.text2video import Clips

ASSETS = Path(__file__).parent.parent / "tinyworld" / "assets"
PIPELINE = ASSETS / "pipeline"
CHECKPOINTS = ASSETS / "checkpoints"

SETTINGS = GenerationSettings(
    steps=20, guidance=3.0, frames=17, height=48, width=48, fps=8, scheduler="CogVideoXDDIMScheduler"
)

# Linears around the blocks: small, and fragile at few bits.
STD_SKIP = ("patch_embed.text_proj", "time_embedding.linear_1", "time_embedding.linear_2", "proj_out")

CLIPS_ON_CPU = 192
CLIPS_ON_GPU = 16384


class TinyWorld:
    """The embedded default; satisfies ``evalharness.api.Model``."""

    name: ClassVar[str] = "tinyworld"
    summary: ClassVar[str] = "5 M-parameter CogVideoX on a procedural world; ships with the package"
    default_protocol: ClassVar[str] = "tinyworld"
    settings: ClassVar[GenerationSettings] = SETTINGS

    # What --dry-run reckons with: one video, one training step of 8 clips, on one CPU core.
    video_seconds: ClassVar[float] = 1.5
    train_step_seconds: ClassVar[float] = 1.0

    def __init__(self, folder: Path = PIPELINE) -> None:
        self.folder = folder

    def training_clips(self, device: str) -> int:
        """How many rendered clips ``batches`` draws from; part of a trained cell's identity."""
        return CLIPS_ON_GPU if device == "cuda" else CLIPS_ON_CPU

    def fingerprint(self) -> str:
        """SHA-256 over names and bytes of the pipeline's files.

        Raises:
            ValueError: the assets are missing.
        """
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        if not files:
            raise ValueError(
                "model tinyworld: its weights are not in this installation; reinstall the package, or "
                "rebuild them with `make rebuild-tinyworld` in a checkout (needs a GPU)"
            )
        total = hashlib.sha256()
        for path in files:
            total.update(path.relative_to(self.folder).as_posix().encode() + b"\0")
            total.update(hashlib.sha256(path.read_bytes()).digest())
        return total.hexdigest()

    def checkpoint(self, method: str, bits: Bits) -> Path | None:
        folder = CHECKPOINTS / f"{method}-{bits.label}"
        return folder if folder.is_dir() else None

    def load(self, device: str) -> LoadedTinyWorld:
        return LoadedTinyWorld(device, self.folder, self.training_clips(device))


class LoadedTinyWorld:
    """The pipeline in memory; satisfies ``evalharness.api.LoadedModel``.

    Attributes:
        training_clips: how many clips ``batches`` renders and encodes for each seed.
    """

    def __init__(self, device: str, folder: Path, training_clips: int) -> None:
        import torch
        from diffusers import CogVideoXPipeline
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

        diffusers_logging.disable_progress_bar()
        diffusers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        self.device = torch.device(device)
        self.pipeline = CogVideoXPipeline.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        ).to(self.device)
        self.pipeline.set_progress_bar_config(disable=True)
        for part in (self.pipeline.transformer, self.pipeline.vae, self.pipeline.text_encoder):
            part.eval()
        self.training_clips = training_clips
        self._clips: dict[int, Clips] = {}

    @property
    def transformer(self) -> nn.Module:
        module: nn.Module = self.pipeline.transformer
        return module

    @transformer.setter
    def transformer(self, module: nn.Module) -> None:
        self.pipeline.transformer = module

    def skip_layers(self, preset: str) -> tuple[str, ...]:
        """``none`` quantizes every linear; ``std`` spares embedders, modulation and the output.

        Raises:
            ValueError: another preset.
        """
        from torch import nn

        if preset == "none":
            return ()
        if preset == "std":
            linears = [name for name, part in self.transformer.named_modules() if isinstance(part, nn.Linear)]
            modulation = [n for n in linears if ".norm1." in n or ".norm2." in n or n.startswith("norm_out.")]
            return tuple(sorted({*STD_SKIP, *modulation} & set(linears)))
        raise ValueError(f"skip preset {preset!r}: tinyworld knows none and std")

    def batches(self, *, batch_size: int, seed: int) -> Iterator[TrainBatch]:
        """Noised latents of rendered training clips, 10 % without caption; target: v."""
        return self._batches(self._training_clips(seed), batch_size, seed)

    def few_batches(self, *, batch_size: int, seed: int) -> Iterator[TrainBatch]:
        """As ``batches``, from no more clips than one batch has: for a fixed validation batch."""
        return self._batches(self._render_clips(seed, batch_size), batch_size, seed)

    def _batches(self, clips: Clips, batch_size: int, seed: int) -> Iterator[TrainBatch]:
        import torch

        from evalharness.tinyworld.components import tokenize
        from evalharness.tinyworld.training.text2video import v_prediction_batch

        alphas = self.pipeline.scheduler.alphas_cumprod.float().to(self.device)
        empty = tokenize(self.pipeline.tokenizer, [""]).to(self.device)
        generator = torch.Generator(self.device).manual_seed(seed)
        while True:
            drawn = v_prediction_batch(clips, alphas, empty, batch_size, generator)
            with torch.no_grad():
                text = self.pipeline.text_encoder(drawn.ids)[0]
            inputs = {
                "hidden_states": drawn.noisy,
                "encoder_hidden_states": text,
                "timestep": drawn.timestep,
                "return_dict": False,
            }
            yield TrainBatch(inputs=inputs, target=drawn.target)

    def trajectories(self, transformer: nn.Module, *, batch_size: int, seed: int) -> Iterator[TrainBatch]:
        """States that ``transformer`` goes through while it samples training captions; no clips.

        A batch is one denoising step of ``batch_size // 2`` videos (at least one), each in two rows:
        without and with its caption. The target is the transformer's own prediction. One run of the
        sampler follows another.
        """
        import torch

        from evalharness.tinyworld import spec, world
        from evalharness.tinyworld.components import tokenize

        count = max(1, batch_size // 2)
        scheduler = type(self.pipeline.scheduler).from_config(self.pipeline.scheduler.config)
        shape = self.step_inputs()["hidden_states"].shape[1:]
        generator = torch.Generator().manual_seed(seed)
        while True:
            clips = world.decode_clips(world.random_batch(count, generator))
            ids = tokenize(self.pipeline.tokenizer, [""] * count + [spec.caption(clip) for clip in clips])
            latents = torch.randn(count, *shape, generator=generator).to(self.device)
            with torch.no_grad():
                text = self.pipeline.text_encoder(ids.to(self.device))[0]
            scheduler.set_timesteps(SETTINGS.steps, device=self.device)
            for time in scheduler.timesteps:
                inputs = {
                    "hidden_states": torch.cat([latents, latents]),
                    "encoder_hidden_states": text,
                    "timestep": time.expand(2 * count),
                    "return_dict": False,
                }
                with torch.no_grad():
                    prediction = transformer(**inputs)[0].float()
                plain, captioned = prediction.chunk(2)
                guided = plain + SETTINGS.guidance * (captioned - plain)
                yield TrainBatch(inputs=inputs, target=prediction)
                latents = scheduler.step(guided, time, latents, return_dict=False)[0]

    def predict(self, transformer: nn.Module, batch: TrainBatch) -> torch.Tensor:
        output: torch.Tensor = transformer(**batch.inputs)[0]
        return output

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        """Videos uint8 [B, T, H, W, 3]; the noise is drawn on the CPU, one generator per video."""
        import numpy as np
        import torch

        from evalharness.tinyworld.components import TEXT_LENGTH

        with torch.inference_mode():
            frames = self.pipeline(
                prompt=list(prompts),
                height=SETTINGS.height,
                width=SETTINGS.width,
                num_frames=SETTINGS.frames,
                num_inference_steps=SETTINGS.steps,
                guidance_scale=SETTINGS.guidance,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                max_sequence_length=TEXT_LENGTH,
                output_type="np",
            ).frames
        return np.asarray(np.round(np.clip(frames, 0.0, 1.0) * 255.0), dtype=np.uint8)

    def calibration_runs(self, *, seed: int) -> Iterator[int]:
        """Sample captions of the training split, singles and pairs by turns, without decoding them."""
        import itertools
        import random

        import torch

        from evalharness.tinyworld import spec
        from evalharness.tinyworld.components import TEXT_LENGTH

        rng = random.Random(seed)  # noqa: S311 - draws captions, no secrets
        for number in itertools.count():
            clip = spec.random_clip(rng, held_out=False, pair=number % 2 == 1)
            noise = torch.Generator().manual_seed(rng.getrandbits(63))
            with torch.no_grad():
                self.pipeline(
                    prompt=spec.caption(clip),
                    height=SETTINGS.height,
                    width=SETTINGS.width,
                    num_frames=SETTINGS.frames,
                    num_inference_steps=SETTINGS.steps,
                    guidance_scale=SETTINGS.guidance,
                    generator=noise,
                    max_sequence_length=TEXT_LENGTH,
                    output_type="latent",
                )
            yield number

    def step_inputs(self) -> dict[str, Any]:
        """One guided step: two rows, with and without caption."""
        import torch

        config = self.pipeline.transformer.config
        frames = (config.sample_frames - 1) // config.temporal_compression_ratio + 1
        shape = (2, frames, config.in_channels, config.sample_height, config.sample_width)
        generator = torch.Generator().manual_seed(0)
        text = torch.randn(2, config.max_text_seq_length, config.text_embed_dim, generator=generator)
        return {
            "hidden_states": torch.randn(shape, generator=generator).to(self.device),
            "encoder_hidden_states": text.to(self.device),
            "timestep": torch.full((2,), 500, device=self.device),
            "return_dict": False,
        }

    def latents(self, frames: np.ndarray) -> np.ndarray:
        """A video's place in latent space: float32 [T', C, H', W'] of frames uint8 [T, H, W, 3]."""
        import torch

        video = torch.from_numpy(frames).to(self.device).permute(3, 0, 1, 2)[None].float() / 127.5 - 1.0
        vae = self.pipeline.vae
        with torch.no_grad():
            mean = vae.encode(video).latent_dist.mean[0] * vae.config.scaling_factor
        found: np.ndarray = mean.permute(1, 0, 2, 3).float().cpu().numpy()
        return found

    def _training_clips(self, seed: int) -> Clips:
        """One seed's clips, kept until another seed's are asked for."""
        if seed not in self._clips:
            self._clips.clear()
            self._clips[seed] = self._render_clips(seed, self.training_clips)
        return self._clips[seed]

    def _render_clips(self, seed: int, count: int) -> Clips:
        """Latents and token ids of ``count`` training clips, rendered and encoded."""
        import torch

        from evalharness.tinyworld.training.text2video import encode_clips

        generator = torch.Generator().manual_seed(seed)
        pipeline = self.pipeline
        return encode_clips(pipeline.vae, pipeline.tokenizer, count, generator, self.device, weigh=False)
