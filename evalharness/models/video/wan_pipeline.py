"""Wan in memory. Its latents have the layout [B, C, F, h, w]."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from evalharness.api import TrainBatch
from evalharness.models.video.experts import TwoExperts
from evalharness.models.video.pipeline import LoadedVideo

__all__ = ["LoadedWan"]


class LoadedWan(LoadedVideo):
    """Wan2.1 and Wan2.2; flow matching."""

    vae_in_float32: ClassVar[bool] = True
    std_prefixes: ClassVar[tuple[str, ...]] = ("condition_embedder.", "proj_out")

    def _scheduler(self, loaded: Any) -> Any:
        import diffusers

        # Wan2.2-5B gives every token its own time. Sampling from text alone they are all the same, so
        # one a sample says as much; and clips that depend on the timestep need it so.
        self.pipeline.register_to_config(expand_timesteps=False)
        cls = getattr(diffusers, self.settings.scheduler)
        shift = loaded.config.get("flow_shift", 1.0) if self.settings.shift is None else self.settings.shift
        return cls.from_config(
            loaded.config, flow_shift=shift, use_flow_sigmas=True, prediction_type="flow_prediction"
        )

    def _encode_text(self, prompt: str) -> Tensor:
        embedding: Tensor = self.pipeline._get_t5_prompt_embeds(
            prompt, max_sequence_length=self.settings.text_length, device=self.device
        )
        return embedding

    def _family_arguments(self) -> dict[str, Any]:
        if isinstance(self._skeleton, TwoExperts):
            return {"guidance_scale_2": self.settings.guidance_2}
        return {}

    def _statistics(self) -> tuple[Tensor, Tensor]:
        config = self.pipeline.vae.config
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=self.device).view(1, -1, 1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )
        return mean, std

    def _decode(self, latents: Tensor) -> Tensor:
        mean, std = self._statistics()
        vae = self.pipeline.vae
        frames: Tensor = vae.decode((latents.float() * std + mean).to(vae.dtype), return_dict=False)[0]
        return frames

    def encode_video(self, video: Tensor) -> Tensor:
        mean, std = self._statistics()
        vae = self.pipeline.vae
        with torch.no_grad():
            encoded = vae.encode(video.to(self.device, vae.dtype)).latent_dist.mean
        normalised: Tensor = (encoded.float() - mean) / std
        return normalised

    def noisy_batch(self, latents: Tensor, text: Tensor, generator: torch.Generator) -> TrainBatch:
        """Timesteps 1..1000, uniform (no shift), as QVGen trains; with two experts all of one side."""
        count = len(latents)
        timestep = torch.randint(1, 1001, (count,), generator=generator)
        if isinstance(self._skeleton, TwoExperts):
            edge = int(self._skeleton.boundary)
            low, high = (edge, 1001) if int(timestep[0]) >= edge else (1, edge)
            timestep[1:] = torch.randint(low, high, (count - 1,), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        sigma = (timestep.float() / 1000).view(-1, 1, 1, 1, 1)
        inputs = {
            "hidden_states": (1 - sigma) * latents + sigma * noise,
            "encoder_hidden_states": text,
            "timestep": timestep,
            "return_dict": False,
        }
        return TrainBatch(inputs, noise - latents)

    def step_inputs(self) -> dict[str, Any]:
        """One of the two calls of a guided step."""
        config, settings = self._config, self.settings
        shape = (1, config.in_channels, self.latent_frames(settings.frames))
        size = (settings.height // self.spatial, settings.width // self.spatial)
        generator = torch.Generator().manual_seed(0)
        dtype: Any = self.transformer.dtype
        text = torch.randn(1, settings.text_length, config.text_dim, generator=generator)
        return {
            "hidden_states": torch.randn(*shape, *size, generator=generator).to(self.device, dtype),
            "encoder_hidden_states": text.to(self.device, dtype),
            "timestep": torch.full((1,), 500, device=self.device),
            "return_dict": False,
        }
