"""Wan2.1 and Wan2.2 text-to-video, and any other pipeline of diffusers' Wan class.

Settings: for Wan2.1 QVGen's inference scripts (UniPC, 50 steps, guidance 5, shift 3 or 5, no negative
prompt); for Wan2.2 those of the models' own repository; for MLPerf its reference
implementation (20 steps, guidance 4 and 3, the folder's own schedule).
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from evalharness.models.video.model import VideoModel
from evalharness.models.video.settings import VideoSettings
from evalharness.models.video.spec import ModelSpec, TransformerShape

__all__ = ["AnyWan", "AnyWanPair", "Wan21Large", "Wan21Small", "Wan22Pair", "Wan22Small"]

_LOADED = "evalharness.models.video.wan_pipeline:LoadedWan"
_UMT5 = 5_680_910_336
# Bytes that Wan2.1's decoder takes for a pixel, as an H100 measured it (`decodes` of
# results/benchmarks/generate-h100.json), and as tensors count on the meta device, where no convolution has a
# workspace. Wan2.2-5B's is another network, counted there alone: what workspaces add is taken to be alike.
_MEASURED, _COUNTED, _COUNTED_22 = 22_600.0, 19_480.0, 21_570.0

_480P = VideoSettings(
    steps=50, guidance=5.0, frames=81, height=480, width=832, fps=16, scheduler="UniPCMultistepScheduler",
    shift=3.0, text_length=512,
)  # fmt: skip
_720P = dataclasses.replace(_480P, height=720, width=1280, shift=5.0)
_22_5B = dataclasses.replace(_480P, frames=121, height=704, width=1280, fps=24, shift=5.0)
_PAIR = dataclasses.replace(_720P, steps=40, guidance=4.0, guidance_2=3.0, shift=12.0)


def _protocols(settings: VideoSettings, mlperf: VideoSettings | None = None) -> dict[str, VideoSettings]:
    return {
        "default": settings,
        "mlperf-t2v": dataclasses.replace(mlperf or settings, fixed_noise=42),
        "smoke": dataclasses.replace(settings, steps=4, frames=9),
    }


def _shape(
    heads: int, hidden: int, layers: int, parameters: int, linears: int, channels: int = 16
) -> TransformerShape:
    config: dict[str, Any] = {
        "num_attention_heads": heads, "attention_head_dim": 128, "in_channels": channels,
        "out_channels": channels, "text_dim": 4096, "freq_dim": 256, "ffn_dim": hidden, "num_layers": layers,
    }  # fmt: skip
    return TransformerShape(
        config=config, width=heads * 128, hidden=hidden, layers=layers, text_tokens=512, joint_text=False,
        patch=(1, 2, 2), parameters=parameters, linears=linears,
    )  # fmt: skip


def _spec(name: str, **rest: Any) -> ModelSpec:
    common: dict[str, Any] = {
        "name": name,
        "pipeline": "WanPipeline",
        "transformer": "WanTransformer3DModel",
        "text_parameters": _UMT5,
        "decoder_parameters": 126_892_531,
        "decode_flops": 8.5e6,
        "decoder_bytes": 4,
        "decoder_pixel_bytes": _MEASURED,
    }
    return ModelSpec(**{**common, **rest})


class Wan21Small(VideoModel):
    """Wan2.1 1.3B."""

    name: ClassVar[str] = "wan2.1-1.3b"
    summary: ClassVar[str] = "Wan2.1 1.3B: 81 frames 480x832 at 16 fps"
    loaded_class: ClassVar[str] = _LOADED
    spec: ClassVar[ModelSpec] = _spec(
        "wan2.1-1.3b",
        repo="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        revision="0fad780a534b6463e45facd96134c9f345acfa5b",
        stored_bytes=(4, 4, 4),
        licence="apache-2.0",
        settings=_protocols(_480P),
        shape=_shape(12, 8960, 30, 1_418_996_800, 306),
    )


class Wan21Large(VideoModel):
    """Wan2.1 14B."""

    name: ClassVar[str] = "wan2.1-14b"
    summary: ClassVar[str] = "Wan2.1 14B: 81 frames 720x1280 at 16 fps"
    loaded_class: ClassVar[str] = _LOADED
    spec: ClassVar[ModelSpec] = _spec(
        "wan2.1-14b",
        repo="Wan-AI/Wan2.1-T2V-14B-Diffusers",
        revision="38ec498cb3208fb688890f8cc7e94ede2cbd7f68",
        stored_bytes=(4, 4, 4),
        licence="apache-2.0",
        settings=_protocols(_720P),
        shape=_shape(40, 13824, 40, 14_288_491_584, 406),
    )


class Wan22Small(VideoModel):
    """Wan2.2 TI2V 5B."""

    name: ClassVar[str] = "wan2.2-5b"
    summary: ClassVar[str] = "Wan2.2 TI2V 5B, from text: 121 frames 704x1280 at 24 fps"
    loaded_class: ClassVar[str] = _LOADED
    spec: ClassVar[ModelSpec] = _spec(
        "wan2.2-5b",
        repo="Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        revision="b8fff7315c768468a5333511427288870b2e9635",
        stored_bytes=(2, 4, 4),
        licence="apache-2.0",
        settings=_protocols(_22_5B),
        shape=_shape(24, 14336, 30, 4_999_787_712, 306, channels=48),
        spatial=16,
        latent_channels=48,
        decoder_parameters=704_688_668,
        decode_flops=18.5e6,
        decoder_pixel_bytes=_MEASURED * _COUNTED_22 / _COUNTED,
    )


class Wan22Pair(VideoModel):
    """Wan2.2 A14B."""

    name: ClassVar[str] = "wan2.2-a14b"
    summary: ClassVar[str] = "Wan2.2 A14B, two 14B experts: 81 frames 720x1280 at 16 fps"
    loaded_class: ClassVar[str] = _LOADED
    spec: ClassVar[ModelSpec] = _spec(
        "wan2.2-a14b",
        repo="Wan-AI/Wan2.2-T2V-A14B-Diffusers",
        revision="5be7df9619b54f4e2667b2755bc6a756675b5cd7",
        stored_bytes=(2, 4, 4),
        licence="apache-2.0",
        settings=_protocols(_PAIR, dataclasses.replace(_PAIR, steps=20, shift=None)),
        shape=_shape(40, 13824, 40, 14_288_491_584, 406),
        experts=2,
        boundary=0.875,
    )


class AnyWan(VideoModel):
    """Of any size."""

    name: ClassVar[str] = "wan"
    summary: ClassVar[str] = "any Wan text-to-video folder: --weights DIR, settings by --generation"
    loaded_class: ClassVar[str] = _LOADED
    spec: ClassVar[ModelSpec] = _spec("wan", settings=_protocols(_480P))


class AnyWanPair(VideoModel):
    """Of any size."""

    name: ClassVar[str] = "wan-pair"
    summary: ClassVar[str] = "any Wan folder with two transformers: --weights DIR"
    loaded_class: ClassVar[str] = _LOADED
    spec: ClassVar[ModelSpec] = _spec("wan-pair", settings=_protocols(_PAIR), experts=2, boundary=0.875)
