"""CogVideoX in memory. Its latents have the layout [B, F, C, h, w] in the transformer."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from evalharness.api import TrainBatch
from evalharness.models.video.pipeline import LoadedVideo

__all__ = ["LoadedCogVideoX"]


class LoadedCogVideoX(LoadedVideo):
    """CogVideoX and CogVideoX1.5; v-prediction."""

    std_prefixes: ClassVar[tuple[str, ...]] = (
        "patch_embed.", "time_embedding.", "ofs_embedding.", "norm_out.", "proj_out",
    )  # fmt: skip
    std_parts: ClassVar[tuple[str, ...]] = (".norm1.linear", ".norm2.linear")
    # The decoder takes latent frames by twos and the odd one first: an even number would give more frames.
    latent_frames_at_once: ClassVar[int] = 2

    def _scheduler(self, loaded: Any) -> Any:
        import diffusers

        cls = getattr(diffusers, self.settings.scheduler)
        return cls.from_config(loaded.config, timestep_spacing="trailing")

    def _encode_text(self, prompt: str) -> Tensor:
        embedding: Tensor = self.pipeline._get_t5_prompt_embeds(
            prompt, max_sequence_length=self._text_length(), device=self.device
        )
        return embedding

    def _text_length(self) -> int:
        """CogVideoX's position table has room for exactly as many tokens as the transformer says."""
        return int(self._config.max_text_seq_length)

    def _family_arguments(self) -> dict[str, Any]:
        return {"use_dynamic_cfg": self.settings.dynamic_guidance}

    def _decode(self, latents: Tensor) -> Tensor:
        padding = latents.shape[1] - self.latent_frames(self.settings.frames)
        frames: Tensor = self.pipeline.decode_latents(latents[:, padding:].to(self.pipeline.vae.dtype))
        return frames

    def encode_video(self, video: Tensor) -> Tensor:
        vae = self.pipeline.vae
        with torch.no_grad():
            mean = vae.encode(video.to(self.device, vae.dtype)).latent_dist.mean
        scaled: Tensor = mean.float() * self.pipeline.vae_scaling_factor_image
        return scaled

    def noisy_batch(self, latents: Tensor, text: Tensor, generator: torch.Generator) -> TrainBatch:
        clean = self._padded(latents.permute(0, 2, 1, 3, 4))
        alphas = self.pipeline.scheduler.alphas_cumprod.float().cpu()
        noise = torch.randn(clean.shape, generator=generator)
        timestep = torch.randint(len(alphas), (len(clean),), generator=generator)
        signal = alphas[timestep].sqrt().view(-1, 1, 1, 1, 1)
        sigma = (1 - alphas[timestep]).sqrt().view(-1, 1, 1, 1, 1)
        inputs = self._inputs(signal * clean + sigma * noise, text, timestep)
        return TrainBatch(inputs, signal * noise - sigma * clean)

    def step_inputs(self) -> dict[str, Any]:
        """One guided step: two rows, with and without caption."""
        config, settings = self._config, self.settings
        shape = (2, self.latent_frames(settings.frames), config.in_channels)
        size = (settings.height // self.spatial, settings.width // self.spatial)
        generator = torch.Generator().manual_seed(0)
        latents = self._padded(torch.randn(*shape, *size, generator=generator))
        text = torch.randn(2, self._text_length(), config.text_embed_dim, generator=generator)
        dtype: Any = self.transformer.dtype
        inputs = self._inputs(latents.to(dtype), text.to(dtype), torch.full((2,), 500))
        return {name: _to(value, self.device) for name, value in inputs.items()}

    def _padded(self, latents: Tensor) -> Tensor:
        """[B, F, ...] with more of the first frame in front, as many as patches in time need."""
        unit = self._config.patch_size_t or 1
        missing = -latents.shape[1] % unit
        return torch.cat([latents[:, :1].expand(-1, missing, -1, -1, -1), latents], dim=1)

    def _inputs(self, latents: Tensor, text: Tensor, timestep: Tensor) -> dict[str, Any]:
        rotary = None
        if self._config.use_rotary_positional_embeddings:
            height, width = (size * self.spatial for size in latents.shape[3:])
            rotary = self.pipeline._prepare_rotary_positional_embeddings(
                height, width, latents.shape[1], torch.device("cpu")
            )
        return {
            "hidden_states": latents,
            "encoder_hidden_states": text,
            "timestep": timestep,
            "image_rotary_emb": rotary,
            "return_dict": False,
        }


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, tuple):
        return tuple(item.to(device) for item in value)
    return value.to(device) if isinstance(value, Tensor) else value
