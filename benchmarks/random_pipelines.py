"""Whole pipelines of full size with random weights, made on the device; nothing is read or downloaded."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from benchmarks.full_models import keep_wide
from evalharness.modeloptions import ModelOptions
from evalharness.models.video.cogvideox import CogVideoX2B
from evalharness.models.video.model import VideoModel
from evalharness.models.video.pipeline import LoadedVideo
from evalharness.models.video.settings import VideoSettings
from evalharness.models.video.spec import ModelSpec
from evalharness.models.video.wan import Wan21Large, Wan21Small

MODELS: dict[str, type[VideoModel]] = {
    "cog_2b": CogVideoX2B,
    "wan_1_3b": Wan21Small,
    "wan_14b": Wan21Large,
}
SMALL = {"frames": 9, "height": 32, "width": 32, "text_length": 8}
_TINY = {
    "CogVideoXTransformer3DModel": {
        "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4,
        "num_layers": 2, "time_embed_dim": 16, "text_embed_dim": 16, "sample_width": 4, "sample_height": 4,
        "sample_frames": 9, "max_text_seq_length": 8, "spatial_interpolation_scale": 1.0,
    },
    "WanTransformer3DModel": {
        "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4,
        "num_layers": 2, "text_dim": 16, "freq_dim": 16, "ffn_dim": 32, "rope_max_seq_len": 32,
    },
}  # fmt: skip
_ENCODER = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_heads": 64}
_TINY_ENCODER = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2}
_TINY_COG_VAE = {
    "block_out_channels": (8, 8, 8, 8),
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 2,
}
_TINY_WAN_VAE = {
    "base_dim": 4, "z_dim": 4, "dim_mult": [1] * 4, "num_res_blocks": 1, "latents_mean": [0.0] * 4,
    "latents_std": [1.0] * 4,
}  # fmt: skip


class RandomSource:
    """A ``PipelineSource``: weights are drawn anew each time, the same ones.

    Args:
        spec: which model.
        device: where weights are made; parts that rest on the host are moved there by the pipeline.
        tiny: modules of the same classes that a CPU runs in milliseconds.
        whole_text: the text encoder of full size; else it has one layer and knows a few letters.
    """

    def __init__(self, spec: ModelSpec, device: torch.device, tiny: bool, whole_text: bool = True) -> None:
        self.spec, self.device, self.tiny = spec, device, tiny
        self._whole_text = whole_text and not tiny

    def pipeline(self, cls: Any, dtypes: dict[str, torch.dtype]) -> Any:
        words = _tokenizer()
        parts: dict[str, Any] = {
            "tokenizer": words,
            "text_encoder": self._text_encoder(len(words), dtypes["default"]),
            "vae": self._vae(dtypes["vae"]),
            "transformer": self.transformer("transformer", dtypes["default"]),
            "scheduler": _scheduler(self._is_cog),
        }
        return cls(**parts)

    def transformer(self, name: str, dtype: torch.dtype) -> nn.Module:
        import diffusers

        assert self.spec.shape is not None
        config: Mapping[str, Any] = _TINY[self.spec.transformer] if self.tiny else self.spec.shape.config
        cls = getattr(diffusers, self.spec.transformer)
        made = self._made(cls, dtype, **config)
        buffers = {n: b for n, b in made.named_buffers() if b.is_floating_point()}
        if dtype != torch.float32:
            keep_wide(made)
        # Tables of positions are computed, not drawn, and stay float32: as of a model without blocks.
        for n, buffer in cls(**{**config, "num_layers": 0}).named_buffers():
            if n in buffers:
                parent, _, leaf = n.rpartition(".")
                made.get_submodule(parent)._buffers[leaf] = buffer.to(self.device)
        return made.eval()

    @property
    def _is_cog(self) -> bool:
        return self.spec.pipeline == "CogVideoXPipeline"

    def _made(self, cls: Any, dtype: torch.dtype, *args: Any, **kwargs: Any) -> nn.Module:
        torch.manual_seed(0)
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(self.device):
                made: nn.Module = cls(*args, **kwargs)
        finally:
            torch.set_default_dtype(default)
        return made.requires_grad_(False)

    def _text_encoder(self, words: int, dtype: torch.dtype) -> nn.Module:
        import transformers

        kind = "T5" if self._is_cog else "UMT5"
        vocabulary = {"T5": 32128, "UMT5": 256384}[kind] if self._whole_text else words
        sizes = _TINY_ENCODER if self.tiny else _ENCODER
        config = getattr(transformers, f"{kind}Config")(
            vocab_size=vocabulary,
            num_layers=24 if self._whole_text else 1,
            feed_forward_proj="gated-gelu",
            **sizes,
        )
        return self._made(getattr(transformers, f"{kind}EncoderModel"), dtype, config)

    def _vae(self, dtype: torch.dtype) -> nn.Module:
        import diffusers

        if self._is_cog:
            blocks = {
                "down_block_types": ("CogVideoXDownBlock3D",) * 4,
                "up_block_types": ("CogVideoXUpBlock3D",) * 4,
            }
            sizes: dict[str, Any] = {
                "scaling_factor": 1.15258426,
                **blocks,
                **(_TINY_COG_VAE if self.tiny else _COG_VAE),
            }
            return self._made(diffusers.AutoencoderKLCogVideoX, dtype, **sizes)
        return self._made(diffusers.AutoencoderKLWan, dtype, **(_TINY_WAN_VAE if self.tiny else {}))


_COG_VAE = {"block_out_channels": (128, 256, 256, 512), "latent_channels": 16, "layers_per_block": 3}


def open_model(
    name: str,
    device: torch.device,
    tiny: bool,
    *,
    memory: str,
    steps: int,
    whole_text: bool = True,
    **settings: Any,
) -> LoadedVideo:
    """The model ``name`` of ``MODELS`` at its default settings but for ``steps`` and ``settings``."""
    import importlib

    cls = MODELS[name]
    small = SMALL if tiny else {}
    options = ModelOptions(memory=memory, generation={"steps": steps, **settings, **small})
    model = cls(options)
    chosen: VideoSettings = model.settings
    spec = dataclasses.replace(model.spec)
    module, _, loaded = model.loaded_class.partition(":")
    source = RandomSource(spec, device, tiny, whole_text)
    opened: LoadedVideo = getattr(importlib.import_module(module), loaded)(
        spec, chosen, source, str(device), options
    )
    return opened


def _tokenizer() -> Any:
    """Words and letters enough for a caption; a real one's table is as large as its file."""
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(letter, -10.0) for letter in f"▁{string.ascii_letters}.,-"]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def _scheduler(is_cog: bool) -> Any:
    import diffusers

    if is_cog:
        return diffusers.CogVideoXDDIMScheduler(
            prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=3.0,
            beta_schedule="scaled_linear",
        )  # fmt: skip
    return diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, num_train_timesteps=1000
    )
