"""What is known of a model before its weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evalharness.models.video.settings import VideoSettings

__all__ = ["ModelSpec", "TransformerShape"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerShape:
    """The sizes that decide a transformer's cost.

    Attributes:
        config: arguments of its diffusers class; what a folder's ``config.json`` is held against.
        width: channels of a token.
        hidden: channels within the feed-forward part.
        layers: blocks.
        text_tokens: of a prompt.
        joint_text: text tokens are part of the sequence (CogVideoX) or attended to across (Wan).
        patch: pixels of the latent in a token: frames, rows, columns.
        parameters: of one transformer, counted on the meta device by a test.
        linears: ``nn.Linear`` modules of one transformer, counted there too.
    """

    config: Mapping[str, Any]
    width: int
    hidden: int
    layers: int
    text_tokens: int
    joint_text: bool
    patch: tuple[int, int, int]
    parameters: int
    linears: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One model.

    Attributes:
        name: of the plugin.
        pipeline: class name in ``model_index.json``.
        transformer: class name in ``transformer/config.json``.
        repo: hub id; empty for a model that always comes from a folder.
        revision: pinned commit of ``repo``; None: ``fetch`` takes the newest once, records which one it was,
            and stays with it.
        stored_bytes: of a number of text encoder, transformers and autoencoder in the repository's files.
        licence: as the hub states it.
        shape: sizes; None for a model of any size.
        experts: transformers that share the steps.
        boundary: share of the timesteps from which on the first expert works; None with one.
        settings: generation settings by protocol; ``default`` stands for every other protocol.
        text_parameters: of the text encoder.
        decoder_parameters: of the autoencoder.
        decode_flops: floating-point operations for a pixel of a decoded frame, counted on the meta device.
        decoder_bytes: of a number in the autoencoder on a GPU.
        decoder_pixel_bytes: working memory of a decode for a pixel of a frame, beside its result.
        spatial: pixels of a latent position along one side.
        temporal: frames of a latent frame, but for the first.
        latent_channels: channels of a latent position.
    """

    name: str
    pipeline: str
    transformer: str
    settings: Mapping[str, VideoSettings]
    repo: str = ""
    revision: str | None = None
    stored_bytes: tuple[int, int, int] = (2, 2, 2)
    licence: str = ""
    shape: TransformerShape | None = None
    experts: int = 1
    boundary: float | None = None
    text_parameters: int = 0
    decoder_parameters: int = 0
    decode_flops: float = 0.0
    decoder_bytes: int = 2
    decoder_pixel_bytes: float = 0.0
    spatial: int = 8
    temporal: int = 4
    latent_channels: int = 16

    def settings_for(self, protocol: str) -> VideoSettings:
        """The settings of ``protocol``, or the default ones."""
        return self.settings.get(protocol, self.settings["default"])
