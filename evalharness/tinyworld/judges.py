"""tinyworld's judges at work: one pass over a video, one record of all that was seen.

Float32, no gradients, no randomness. The metrics share the record through ``Video.memo``.

Shape legend: T frames, S = 8 shapes, C = 6 colours, D = 64 features, K tracked things.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from evalharness.tinyworld import judge_files, judge_nets, spec

if TYPE_CHECKING:
    from evalharness.api import Video

__all__ = ["Judges", "Reading", "load_judges", "read_video"]

TRACKED = 2
SURE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the judges saw; float32 arrays, probabilities in [0, 1].

    Attributes:
        presence: [T, S], a thing of this shape is in the frame.
        color: [T, S, C], its colour if it is.
        center: [T, S, 2], where; x right, y down, in [0, 1].
        count: [T, 3], 0, 1 or 2 things.
        scene: [T, 8].
        motion: [9], the motions and "none of these".
        severity: [T], of blur, noise and blocking.
        subject: [T, K * D], unit vectors: how the tracked things look, wherever they are.
        background: [T, D], unit vectors.
        agreement: [D], unit vector of the whole video, to compare with a caption's.
    """

    presence: np.ndarray
    color: np.ndarray
    center: np.ndarray
    count: np.ndarray
    scene: np.ndarray
    motion: np.ndarray
    severity: np.ndarray
    subject: np.ndarray
    background: np.ndarray
    agreement: np.ndarray


class Judges:
    """All four networks.

    Raises:
        ValueError: the folder's weights are missing, damaged or of another version.
    """

    def __init__(self, folder: Path) -> None:
        self.frame = judge_nets.FrameJudge()
        self.motion = judge_nets.MotionJudge()
        self.quality = judge_nets.QualityJudge()
        self.agreement = judge_nets.AgreementJudge()
        for part, module in self.parts().items():
            judge_files.load_weights(module, folder, part)
            module.eval().requires_grad_(False)

    def parts(self) -> dict[str, nn.Module]:
        """The networks by the name of their file."""
        modules: tuple[nn.Module, ...] = (self.frame, self.motion, self.quality, self.agreement)
        return dict(zip(judge_files.PARTS, modules, strict=True))

    @torch.inference_mode()
    def read(self, frames: np.ndarray) -> Reading:
        """Look at a video, uint8 [T, 48, 48, 3] RGB with T >= 2.

        Raises:
            ValueError: another size or too few frames.
        """
        if frames.ndim != 4 or frames.shape[1:] != (spec.SIZE, spec.SIZE, 3) or len(frames) < 2:
            raise ValueError(
                f"video of shape {tuple(frames.shape)}: tinyworld's judges read at least 2 RGB frames "
                f"of {spec.SIZE}x{spec.SIZE} pixels; score other videos with another protocol"
            )
        video = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255.0
        seen = self.frame(video)
        motion, feature = self.motion(video[None])
        present = seen.presence.sigmoid()
        tracked = _tracked(present)
        subject = torch.cat([self.frame.subject(seen.texture, seen.center[:, s]) for s in tracked], dim=1)
        vector = self.agreement.video(judge_nets.video_features(seen, motion, feature))
        return Reading(
            presence=_array(present),
            color=_array(seen.color.softmax(-1)),
            center=_array(seen.center),
            count=_array(seen.number.softmax(-1)),
            scene=_array(seen.scene.softmax(-1)),
            motion=_array(motion[0].softmax(-1)),
            severity=_array(self.quality(video).sigmoid()),
            subject=_array(subject / len(tracked) ** 0.5),
            background=_array(self.frame.background(seen.texture, present, seen.center)),
            agreement=_array(vector[0]),
        )

    @torch.inference_mode()
    def text(self, caption: str) -> np.ndarray:
        """Unit vector [D] of a caption.

        Raises:
            ValueError: the caption has no word.
        """
        if not caption.split():
            raise ValueError("empty caption: text-video agreement needs at least one word")
        return _array(self.agreement.text(judge_nets.word_ids([caption]))[0])


def _tracked(present: Tensor) -> list[int]:
    """The shapes to follow: the likeliest of the whole video, and the next if it is there too."""
    mean = present.mean(dim=0)
    order = mean.argsort(descending=True, stable=True)[:TRACKED].tolist()
    return [s for rank, s in enumerate(order) if rank == 0 or float(mean[s]) >= SURE]


def _array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.float().numpy()
    return array


@functools.lru_cache(maxsize=2)
def load_judges(folder: Path | None = None) -> Judges:
    """The package's judges, or those of ``folder``; loaded once for a process."""
    return Judges(folder or judge_files.default_folder())


def read_video(video: Video) -> Reading:
    """The shared record of a video, made at the first call."""
    return video.memo("tinyworld.judges", lambda v: load_judges().read(v.frames))
