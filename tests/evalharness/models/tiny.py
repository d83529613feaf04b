"""Pipelines of the real classes and layout, with random weights and a few thousand parameters.

python tests/evalharness/models/tiny.py wan2.2-pair FOLDER
"""

from __future__ import annotations

import string
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import T5Config, T5EncoderModel, T5Tokenizer, UMT5Config, UMT5EncoderModel

TEXT_LENGTH = 8
TEXT_WIDTH = 16
WIDE = {"d_model": TEXT_WIDTH, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}

# Two steps; with Wan's shift of 3 their times are 999 and 750, on both sides of a boundary of 0.8.
COG = {"steps": 2, "frames": 9, "height": 32, "width": 32, "text_length": TEXT_LENGTH}
WAN = {"steps": 2, "frames": 5, "height": 32, "width": 32, "text_length": TEXT_LENGTH, "shift": 3.0}


def tokenizer() -> Any:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{word}", -1.0) for word in ("a", "the", "boat", "river", "red", "goat")]
    pieces += [(letter, -10.0) for letter in f"▁{string.ascii_letters}.,-"]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def t5(vocabulary: int) -> Any:
    return T5EncoderModel(T5Config(vocab_size=vocabulary, feed_forward_proj="gated-gelu", **WIDE))


def umt5(vocabulary: int) -> Any:
    return UMT5EncoderModel(UMT5Config(vocab_size=vocabulary, feed_forward_proj="gated-gelu", **WIDE))


def cog_vae() -> Any:
    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
        temporal_compression_ratio=4, scaling_factor=0.7,
    )  # fmt: skip


def cog_transformer(**changes: Any) -> Any:
    sizes: dict[str, Any] = {
        "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4,
        "time_embed_dim": 16, "text_embed_dim": TEXT_WIDTH, "num_layers": 1, "sample_width": 4,
        "sample_height": 4, "sample_frames": 5, "patch_size": 2, "temporal_compression_ratio": 4,
        "max_text_seq_length": TEXT_LENGTH, "spatial_interpolation_scale": 1.0,
    }  # fmt: skip
    return CogVideoXTransformer3DModel(**(sizes | changes))


def wan_vae(**changes: Any) -> Any:
    sizes: dict[str, Any] = {
        "base_dim": 4, "z_dim": 4, "dim_mult": [1] * 4, "num_res_blocks": 1,
        "temperal_downsample": [False, True, True], "latents_mean": [0.1, -0.2, 0.3, 0.05],
        "latents_std": [1.5, 0.5, 2.0, 1.1],
    }  # fmt: skip
    return AutoencoderKLWan(**(sizes | changes))


def wan_transformer(channels: int = 4) -> Any:
    return WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=channels, out_channels=channels,
        text_dim=TEXT_WIDTH, freq_dim=16, ffn_dim=40, num_layers=1, rope_max_seq_len=32,
    )  # fmt: skip


def unipc() -> Any:
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, num_train_timesteps=1000
    )


def cogvideox_2b() -> Any:
    words = tokenizer()
    return CogVideoXPipeline(
        words, t5(len(words)), cog_vae(), cog_transformer(),
        CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True),
    )  # fmt: skip


def cogvideox_15() -> Any:
    words = tokenizer()
    transformer = cog_transformer(patch_size_t=2, use_rotary_positional_embeddings=True, patch_bias=False)
    return CogVideoXPipeline(
        words, t5(len(words)), cog_vae(), transformer,
        CogVideoXDPMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True),
    )  # fmt: skip


def wan21() -> Any:
    words = tokenizer()
    return WanPipeline(
        tokenizer=words, text_encoder=umt5(len(words)), vae=wan_vae(), scheduler=unipc(),
        transformer=wan_transformer(),
    )  # fmt: skip


def wan22_pair() -> Any:
    words = tokenizer()
    return WanPipeline(
        tokenizer=words, text_encoder=umt5(len(words)), vae=wan_vae(), scheduler=unipc(),
        transformer=wan_transformer(), transformer_2=wan_transformer(), boundary_ratio=0.8,
    )  # fmt: skip


def wan22_5b() -> Any:
    words = tokenizer()
    vae = wan_vae(
        is_residual=True, in_channels=12, out_channels=12, patch_size=2, scale_factor_spatial=16,
        decoder_base_dim=4,
    )  # fmt: skip
    return WanPipeline(
        tokenizer=words, text_encoder=umt5(len(words)), vae=vae, scheduler=unipc(),
        transformer=wan_transformer(), expand_timesteps=True,
    )  # fmt: skip


# Kind -> pipeline, name of the general model plugin, generation settings.
KINDS: dict[str, tuple[Callable[[], Any], str, dict[str, Any]]] = {
    "cogvideox-2b": (cogvideox_2b, "cogvideox", COG),
    "cogvideox1.5": (cogvideox_15, "cogvideox", COG),
    "wan2.1": (wan21, "wan", WAN),
    "wan2.2-pair": (wan22_pair, "wan-pair", WAN),
}


def save(kind: str, folder: Path) -> Path:
    """Build with fixed random weights and save as diffusers does."""
    build = {**{name: row[0] for name, row in KINDS.items()}, "wan2.2-5b": wan22_5b}[kind]
    with torch.random.fork_rng():
        torch.manual_seed(7)
        pipeline = build()
    pipeline.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    save(sys.argv[1], Path(sys.argv[2]))
