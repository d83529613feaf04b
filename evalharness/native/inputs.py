"""Frames as VBench feeds them to its networks: float32, 0..255, resized before anything else.

Resizing is without antialiasing, which is what VBench asks of torchvision, but where Pillow does it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from evalharness.native.antialias import antialiased

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "Frames",
    "action_input",
    "clip_antialiased_input",
    "clip_bytes_input",
    "clip_input",
    "dino_input",
    "in_batches",
    "musiq_input",
    "planes",
]

Frames: TypeAlias = "np.ndarray | Tensor"  # of bytes, on any device
SIDE = 224
LONGEST = 512
ACTION_SIDE = 256
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def planes(frames: Frames, device: str | torch.device = "cpu") -> Tensor:
    """uint8 [T, H, W, 3] as float32 [T, 3, H, W], 0..255; the copy to ``device`` is of bytes."""
    return torch.as_tensor(frames).to(device).permute(0, 3, 1, 2).float()


def in_batches(
    frames: Frames, size: int, device: str | torch.device, compute: Callable[[Tensor], Tensor]
) -> Tensor:
    """``compute`` over ``planes`` of at most ``size`` frames at a time; results joined, float32, on the CPU.

    So a clip is never float32 as a whole: 81 frames of 720 x 1280 would be 0.9 GB. Results come to the CPU
    together: fetching each would make a GPU wait for the next.
    """
    with torch.inference_mode():
        parts = [
            compute(planes(frames[start : start + size], device)).float()
            for start in range(0, len(frames), size)
        ]
        return torch.cat(parts).cpu()


def dino_input(images: Tensor) -> Tensor:
    """[T, 3, H, W] with the shorter side at 224, bilinear, not cropped, normalised as ImageNet."""
    return _normal(_shorter_side(images, "bilinear"), IMAGENET_MEAN, IMAGENET_STD)


def clip_input(images: Tensor) -> Tensor:
    """[T, 3, 224, 224]: the centre after a bicubic resize whose overshoot is kept, normalised as CLIP."""
    return _normal(_centre(_shorter_side(images, "bicubic")), CLIP_MEAN, CLIP_STD)


def clip_bytes_input(images: Tensor) -> Tensor:
    """As ``clip_input``, of pictures that VBench resizes as bytes: rounded and within 0..255."""
    resized = _shorter_side(images, "bicubic").clamp(0.0, 255.0).round()
    return _normal(_centre(resized), CLIP_MEAN, CLIP_STD)


def clip_antialiased_input(frames: Frames, device: str | torch.device = "cpu") -> Tensor:
    """uint8 [T, H, W, 3] as [T, 3, 224, 224] on ``device``, resized by Pillow, which does antialias.

    Frames for a GPU are resized there, to the same bytes.
    """
    size = _size(*frames.shape[1:3])
    on_gpu = torch.device(device).type == "cuda"
    made = antialiased(torch.as_tensor(frames).to(device), size) if on_gpu else None
    pictures = _by_pillow(frames, size) if made is None else made
    return _normal(_centre(planes(pictures, device)), CLIP_MEAN, CLIP_STD)


def _by_pillow(frames: Frames, size: tuple[int, int]) -> np.ndarray:
    import numpy as np
    from PIL import Image

    def resized(frame: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(frame).resize(size[::-1], Image.Resampling.BICUBIC))

    # Pillow lets other threads run meanwhile.
    with ThreadPoolExecutor(min(len(frames), torch.get_num_threads())) as pool:
        return np.stack(list(pool.map(resized, torch.as_tensor(frames).numpy(force=True))))


def action_input(frames: np.ndarray, device: str | torch.device = "cpu") -> Tensor:
    """uint8 [T, H, W, 3] as [T, 3, 224, 224]: the centre of 256 on the shorter side, by OpenCV's bilinear."""
    import cv2
    import numpy as np

    height, width = _size(frames.shape[1], frames.shape[2], ACTION_SIDE)
    resized = np.stack([cv2.resize(frame, (width, height)) for frame in frames])
    return _normal(_centre(planes(resized, device)), IMAGENET_MEAN, IMAGENET_STD)


def musiq_input(images: Tensor) -> Tensor:
    """[T, 3, H, W], 0..1, made smaller if the longer side passes 512 (VBench's mode "longer")."""
    height, width = images.shape[-2:]
    if max(height, width) > LONGEST:
        scale = LONGEST / max(height, width)
        images = _resize(images, (int(scale * height), int(scale * width)), "bilinear")
    return images / 255.0


def _shorter_side(images: Tensor, mode: str) -> Tensor:
    return _resize(images, _size(*images.shape[-2:]), mode)


def _size(height: int, width: int, shorter: int = SIDE) -> tuple[int, int]:
    longer = int(shorter * max(height, width) / min(height, width))
    return (shorter, longer) if height <= width else (longer, shorter)


def _centre(images: Tensor) -> Tensor:
    top, left = (round((side - SIDE) / 2.0) for side in images.shape[-2:])
    return images[..., top : top + SIDE, left : left + SIDE]


def _resize(images: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    if tuple(images.shape[-2:]) == size:
        return images
    return functional.interpolate(images, size=size, mode=mode, align_corners=False)


def _normal(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    mean_, std_ = (_constant(tuple(values), images.device, images.dtype) for values in (mean, std))
    return (images.div(255.0) - mean_) / std_


@functools.lru_cache(maxsize=32)
def _constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """[3, 1, 1]; made once, as a GPU's queue is waited for to send it."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device, dtype=dtype).view(-1, 1, 1)
