"""The parts of tinyworld's CogVideoX pipeline, with fresh weights.

Real diffusers and transformers classes throughout; only the sizes are small. Training fills them
in (``evalharness.tinyworld.training``), the package ships the result.
"""

from __future__ import annotations

import string
from typing import Any

from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from evalharness.tinyworld import spec

TEXT_LENGTH = 24
TEXT_WIDTH = 128
SPATIAL_COMPRESSION = 4
TEMPORAL_COMPRESSION = 4
LATENT_SIZE = spec.SIZE // SPATIAL_COMPRESSION
LATENT_CHANNELS = 12


def build_tokenizer() -> Any:
    """One piece per word of the world, single letters for everything else."""
    words = {word for scene in spec.SCENES for word in scene.split()}
    words |= {word for motion in spec.MOTIONS for word in motion.split()}
    words |= {word for relation in spec.RELATIONS for word in relation.split()}
    words |= {*spec.SHAPES, *spec.COLORS, "a", "an", "and", "over"}
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{word}", -1.0) for word in sorted(words)]
    pieces += [(letter, -10.0) for letter in f"▁{string.ascii_lowercase}"]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def build_text_encoder(vocabulary: int) -> T5EncoderModel:
    """Two T5 layers for a vocabulary of that many pieces."""
    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=TEXT_WIDTH,
            d_kv=32,
            d_ff=256,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            is_encoder_decoder=False,
            use_cache=False,
        )
    )


def build_vae(latent_channels: int = LATENT_CHANNELS) -> AutoencoderKLCogVideoX:
    """A CogVideoX autoencoder: 4 x 4 in space, 4 in time."""
    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        block_out_channels=(16, 32, 64),
        latent_channels=latent_channels,
        layers_per_block=1,
        norm_num_groups=8,
        temporal_compression_ratio=TEMPORAL_COMPRESSION,
        sample_height=spec.SIZE,
        sample_width=spec.SIZE,
        scaling_factor=1.0,
    )


def build_transformer(latent_channels: int = LATENT_CHANNELS, heads: int = 6) -> CogVideoXTransformer3DModel:
    """Five CogVideoX blocks of width ``40 * heads``; the shipped model's is 240."""
    return CogVideoXTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=40,
        in_channels=latent_channels,
        out_channels=latent_channels,
        time_embed_dim=96,
        text_embed_dim=TEXT_WIDTH,
        num_layers=5,
        sample_width=LATENT_SIZE,
        sample_height=LATENT_SIZE,
        sample_frames=spec.FRAMES,
        patch_size=2,
        temporal_compression_ratio=TEMPORAL_COMPRESSION,
        max_text_seq_length=TEXT_LENGTH,
        spatial_interpolation_scale=1.0,
    )


def build_scheduler() -> CogVideoXDDIMScheduler:
    """CogVideoX-2B's schedule, but without its SNR shift: that is for large frames."""
    return CogVideoXDDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        snr_shift_scale=1.0,
        clip_sample=False,
        set_alpha_to_one=True,
    )


def tokenize(tokenizer: Any, captions: list[str]) -> Any:
    """Token ids, long [B, TEXT_LENGTH], padded as the pipeline pads them."""
    return tokenizer(
        captions,
        padding="max_length",
        max_length=TEXT_LENGTH,
        truncation=True,
        add_special_tokens=True,
        return_tensors="pt",
    ).input_ids
