"""CogVideoX-2B, CogVideoX1.5-5B, and any other text-to-video pipeline of diffusers' CogVideoX class.

Settings: QVGen's inference scripts (DDIM or DPM, trailing, 50 steps, guidance 6 that grows).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from evalharness.models.video.model import VideoModel
from evalharness.models.video.settings import VideoSettings
from evalharness.models.video.spec import ModelSpec, TransformerShape

__all__ = ["AnyCogVideoX", "CogVideoX2B", "CogVideoX15"]

_LOADED = "evalharness.models.video.cogvideox_pipeline:LoadedCogVideoX"
# Bytes that its decoder takes for a pixel, as an H100 measured it (`decodes` of
# results/benchmarks/generate-h100.json); 45,500 as tensors count.
_DECODER_PIXEL_BYTES = 45_600.0

_SMALL = VideoSettings(
    steps=50, guidance=6.0, frames=49, height=480, width=720, fps=8, scheduler="CogVideoXDDIMScheduler",
    dynamic_guidance=True, text_length=226,
)  # fmt: skip
_LARGE = dataclasses.replace(
    _SMALL, frames=81, height=768, width=1360, fps=16, scheduler="CogVideoXDPMScheduler", text_length=224
)


def _protocols(settings: VideoSettings) -> dict[str, VideoSettings]:
    return {
        "default": settings,
        "mlperf-t2v": dataclasses.replace(settings, fixed_noise=42),
        "smoke": dataclasses.replace(settings, steps=4, frames=9),
    }


class CogVideoX2B(VideoModel):
    """CogVideoX-2B."""

    name: ClassVar[str] = "cogvideox-2b"
    summary: ClassVar[str] = "CogVideoX-2B: 49 frames 480x720 at 8 fps"
    loaded_class: ClassVar[str] = _LOADED
    spec: ClassVar[ModelSpec] = ModelSpec(
        name="cogvideox-2b",
        pipeline="CogVideoXPipeline",
        transformer="CogVideoXTransformer3DModel",
        repo="zai-org/CogVideoX-2b",
        revision="1137dacfc2c9c012bed6a0793f4ecf2ca8e7ba01",
        stored_bytes=(2, 2, 4),
        licence="apache-2.0",
        settings=_protocols(_SMALL),
        text_parameters=4_762_310_656,
        decoder_parameters=215_583_907,
        decode_flops=18.6e6,
        decoder_pixel_bytes=_DECODER_PIXEL_BYTES,
        shape=TransformerShape(
            config={
                "num_attention_heads": 30, "attention_head_dim": 64, "in_channels": 16, "out_channels": 16,
                "time_embed_dim": 512, "text_embed_dim": 4096, "num_layers": 30, "patch_size": 2,
                "patch_size_t": None, "sample_width": 90, "sample_height": 60, "sample_frames": 49,
                "max_text_seq_length": 226, "use_rotary_positional_embeddings": False,
            },
            width=1920, hidden=7680, layers=30, text_tokens=226, joint_text=True, patch=(1, 2, 2),
            parameters=1_693_783_872, linears=245,
        ),
    )  # fmt: skip


class CogVideoX15(VideoModel):
    """CogVideoX1.5-5B."""

    name: ClassVar[str] = "cogvideox1.5-5b"
    summary: ClassVar[str] = "CogVideoX1.5-5B: 81 frames 768x1360 at 16 fps"
    loaded_class: ClassVar[str] = _LOADED
    spec: ClassVar[ModelSpec] = ModelSpec(
        name="cogvideox1.5-5b",
        pipeline="CogVideoXPipeline",
        transformer="CogVideoXTransformer3DModel",
        repo="zai-org/CogVideoX1.5-5B",
        revision="fdc5267c90b5c06492985b966e43aae984e189e0",
        stored_bytes=(4, 2, 4),
        licence="CogVideoX licence (other)",
        settings=_protocols(_LARGE),
        text_parameters=4_762_310_656,
        decoder_parameters=215_583_907,
        decode_flops=18.6e6,
        decoder_pixel_bytes=_DECODER_PIXEL_BYTES,
        shape=TransformerShape(
            config={
                "num_attention_heads": 48, "attention_head_dim": 64, "in_channels": 16, "out_channels": 16,
                "time_embed_dim": 512, "text_embed_dim": 4096, "num_layers": 42, "patch_size": 2,
                "patch_size_t": 2, "sample_width": 170, "sample_height": 96, "sample_frames": 81,
                "max_text_seq_length": 224, "use_rotary_positional_embeddings": True, "patch_bias": False,
            },
            width=3072, hidden=12288, layers=42, text_tokens=224, joint_text=True, patch=(2, 2, 2),
            parameters=5_570_676_352, linears=342,
        ),
    )  # fmt: skip


class AnyCogVideoX(VideoModel):
    """Of any size."""

    name: ClassVar[str] = "cogvideox"
    summary: ClassVar[str] = "any CogVideoX text-to-video folder: --weights DIR, settings by --generation"
    loaded_class: ClassVar[str] = _LOADED
    spec: ClassVar[ModelSpec] = ModelSpec(
        name="cogvideox",
        pipeline="CogVideoXPipeline",
        transformer="CogVideoXTransformer3DModel",
        settings=_protocols(_SMALL),
    )
