"""What the native scorers share: declared facts, where they run, and their networks, loaded once."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from evalharness.api import MetricInfo, Skip, Video
from evalharness.errors import unknown
from evalharness.native import weights as weight_files

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from evalharness.native.inputs import Frames
    from evalharness.native.tokens import ClipTokens

__all__ = ["PRECISIONS", "SPECS", "NativeMetric", "at_least"]

BPE = "clip-bpe"
ON_GPU_BYTES = 1 << 29  # of a video's frames, two videos of 81 of 720 x 1280
PRECISIONS = ("float32", "float16", "bfloat16")

# Sizes of the published networks; weights of any other are refused.
SPECS: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "dino-vitb16": {"width": 768, "depth": 12, "heads": 12, "patch": 16, "grid": 14},
        "clip-vit-b32": {"width": 768, "depth": 12, "heads": 12, "patch": 32, "embedding": 512},
        "clip-vit-b32-text": {"width": 512, "depth": 12, "heads": 8, "embedding": 512},
        "clip-vit-l14": {"width": 1024, "depth": 24, "heads": 16, "patch": 14, "embedding": 768},
        "raft-things": {},
        "aesthetic-linear": {"in_features": 768, "out_features": 1},
        "viclip-l14": {"width": 1024, "depth": 24, "heads": 16, "patch": 14, "embedding": 768},
        "musiq-spaq": {"width": 384, "depth": 14, "heads": 6, "hidden": 1152, "stem": 64},
        "umt-l16": {"width": 1024, "depth": 24, "heads": 16, "patch": 16, "classes": 400},
    }
)


class NativeMetric:
    """A VBench dimension. Results do not depend on ``batch``, beyond the last digits of float32.

    Args:
        device: where the networks run; the score stage sets it to the run's.
        precision: of the networks' weights and activations. Anything but float32 is said in ``info``,
            and scores of two precisions never pass for each other.
        batch: frames, or pairs of frames, that go through a network at a time.
        compiled: whether ``torch.compile`` fuses the image networks' kernels; said in ``info`` too.
        folder: of the weights; None for ``weights_folder()``.
    """

    name: ClassVar[str]
    dimension: ClassVar[str]
    summary: ClassVar[str]
    weights: ClassVar[tuple[str, ...]] = ()
    cost_ms: ClassVar[float] = 100.0
    low: ClassVar[float] = 0.0  # -1 for a cosine that VBench does not cut at 0
    version: ClassVar[int] = 1

    def __init__(
        self,
        *,
        device: str = "cpu",
        precision: str = "float32",
        batch: int = 16,
        compiled: bool = False,
        folder: Path | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise unknown("precision", precision, PRECISIONS)
        if batch < 1:
            raise ValueError(f"batch {batch}: at least 1 frame goes through a network at a time")
        self.device = device
        self.precision = precision
        self.batch = batch
        self.compiled = compiled
        self.folder = folder or weight_files.weights_folder()
        self.info = MetricInfo(
            low=self.low,
            version=self.version,
            cost_ms=self.cost_ms,
            faithful_to=", ".join(["vbench", *_said(precision, compiled)]),
            weights=weight_files.declared(self.weights, self.folder),
        )

    @property
    def missing(self) -> list[str]:
        """Names of weights that are not in the folder."""
        return weight_files.missing(self.weights, self.folder)

    def network(self, name: str, precision: str = "") -> nn.Module:
        """A network in eval mode on this metric's device, shared by all metrics that use it.

        Args:
            name: in the catalogue.
            precision: other than this metric's.

        Raises:
            Skip: its weights are not there.
            ValueError: they are not those that were converted, or of another network.
        """
        if weight_files.missing([name], self.folder):
            weight_files.tensors(name, self.folder)  # raises Skip with the way to get them
        [declared] = weight_files.declared([name], self.folder)
        # What runs in another precision than its metric is a small head: nothing to fuse.
        compiled = self.compiled and not precision
        return _network(
            name, self.folder, declared.sha256, self.device, precision or self.precision, compiled
        )

    def dtype(self) -> torch.dtype:
        import torch

        dtype: torch.dtype = getattr(torch, self.precision)
        return dtype

    def tokens(self, text: str, context: int) -> Tensor:
        """CLIP's tokens of one text, int64 [1, context], on this metric's device.

        Raises:
            Skip: the list of merges is not there, or a text beyond ASCII needs ftfy.
        """
        import torch

        if weight_files.missing([BPE], self.folder):
            weight_files.tensors(BPE, self.folder)  # raises Skip with the way to get it
        [declared] = weight_files.declared([BPE], self.folder)
        row = _tokenizer(self.folder, declared.sha256).row(text, context)
        return torch.tensor([row], device=self.device)

    def memo_key(self, what: str) -> str:
        """Key of a feature shared over ``Video.memo``: other precisions and weights have their own."""
        return f"vbench.{what}.{self.precision}.{self.compiled}.{self.device}.{self.folder}"

    def frames(self, video: Video) -> Frames:
        """All frames, uint8 [T, H, W, 3]; if not too many, sent to a GPU once for all metrics."""
        import torch

        if torch.device(self.device).type == "cpu" or video.frames.nbytes > ON_GPU_BYTES:
            return video.frames
        sent: Tensor = video.memo(
            f"vbench.frames.{self.device}", lambda video: torch.from_numpy(video.frames).to(self.device)
        )
        return sent

    def clip_features(self, video: Video, name: str) -> np.ndarray:
        """CLIP's image features of all frames, float32 [T, D], not normalised."""
        from evalharness.native.inputs import clip_input

        return self._features(video, name, clip_input)

    def dino_features(self, video: Video) -> np.ndarray:
        """DINO's class-token features of all frames, float32 [T, 768], not normalised."""
        from evalharness.native.inputs import dino_input

        return self._features(video, "dino-vitb16", dino_input)

    def _features(self, video: Video, name: str, prepare: Any) -> np.ndarray:
        from evalharness.native.inputs import in_batches

        def compute(video: Video) -> np.ndarray:
            network, dtype = self.network(name), self.dtype()

            def one(images: Tensor) -> Tensor:
                features: Tensor = network(prepare(images).to(dtype))
                return features

            features: np.ndarray = in_batches(self.frames(video), self.batch, self.device, one).numpy()
            return features

        return video.memo(self.memo_key(name), compute)


def at_least(video: Video, frames: int, what: str) -> None:
    """Skip a video that is too short for ``what``.

    Raises:
        Skip: fewer than ``frames`` frames.
    """
    if len(video.frames) < frames:
        raise Skip(f"{what} needs at least {frames} frames, the video has {len(video.frames)}")


def _said(precision: str, compiled: bool) -> list[str]:
    """What sets a mode apart from VBench's own."""
    return [*([f"in {precision}"] if precision != "float32" else []), *(["compiled"] if compiled else [])]


def _build(name: str) -> nn.Module:
    from torch import nn

    from evalharness.native.musiq import Musiq
    from evalharness.native.raft import Raft
    from evalharness.native.text import ClipText
    from evalharness.native.umt import Umt
    from evalharness.native.viclip import ViClip
    from evalharness.native.vit import ClipImage, Dino

    classes = {"dino-vitb16": Dino, "clip-vit-b32": ClipImage, "clip-vit-l14": ClipImage}
    classes |= {"raft-things": Raft, "aesthetic-linear": nn.Linear}
    classes |= {"clip-vit-b32-text": ClipText, "viclip-l14": ViClip, "umt-l16": Umt}
    classes["musiq-spaq"] = Musiq
    module: nn.Module = classes[name](**SPECS[name])
    return module


@functools.lru_cache(maxsize=2)
def _tokenizer(folder: Path, sha256: str) -> ClipTokens:
    from evalharness.native.tokens import ClipTokens

    del sha256  # part of the key
    return ClipTokens(weight_files.tensors(BPE, folder)["bytes"].numpy().tobytes())


@functools.lru_cache(maxsize=12)
def _network(name: str, folder: Path, sha256: str, device: str, precision: str, compiled: bool) -> nn.Module:
    import torch

    del sha256  # part of the key: other weights, another network
    module = weight_files.fill(_build(name), weight_files.tensors(name, folder), name)
    module = module.to(device, getattr(torch, precision))
    if compiled:
        getattr(module, "video", module).compile()  # in place; of ViCLIP the half that sees
    return module
