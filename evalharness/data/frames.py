"""A clip's frames as a model wants them: so many, at its rate, of its size.

Frames are taken by time: frame k of the result is what a viewer sees at k / fps seconds. So files of
any or varying rate show their motion at its true speed; none is stretched to fill the number.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evalharness.data.sources import MEMBER_LIMIT, Clip

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Bucket", "Dropped", "choose_bucket", "pick_frames", "read_clip"]

_SLACK = 1e-6
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """A size that clips are brought to: frames, rows, columns."""

    frames: int
    height: int
    width: int

    @classmethod
    def parse(cls, text: str) -> Bucket:
        """Read ``49x480x720``.

        Raises:
            ValueError: another form.
        """
        parts = text.lower().split("x")
        if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise ValueError(f"bucket {text!r}: expected FRAMESxHEIGHTxWIDTH, e.g. 49x480x720")
        return cls(*map(int, parts))

    @property
    def label(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


class Dropped(Exception):  # noqa: N818 - not an error: a clip that is left out, with its reason
    """``kind`` is a short name that is counted; the message says more."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


def choose_bucket(height: int, width: int, seconds: float, fps: float, buckets: list[Bucket]) -> Bucket:
    """The bucket that loses least: of those the clip is long and large enough for, the nearest in shape.

    Raises:
        Dropped: too short, or too small, for every bucket.
    """
    long_enough = [b for b in buckets if (b.frames - 1) / fps <= seconds + _SLACK]
    if not long_enough:
        needed = min((b.frames - 1) / fps for b in buckets)
        raise Dropped("too short", f"{seconds:.2f} s, the shortest bucket needs {needed:.2f} s")
    large_enough = [b for b in long_enough if b.height <= height and b.width <= width]
    if not large_enough:
        raise Dropped("too small", f"{height}x{width} pixels, smaller than every bucket")

    def loss(bucket: Bucket) -> tuple[float, int, int]:
        scale = max(bucket.height / height, bucket.width / width)
        kept = bucket.height * bucket.width / (height * scale * width * scale)
        return (round(1 - kept, 6), -bucket.frames, -bucket.height * bucket.width)

    return min(large_enough, key=loss)


def pick_frames(times: list[float], count: int, fps: float) -> list[int]:
    """Indices of the frames on show at 0, 1 / fps, 2 / fps ... seconds after the first.

    Args:
        times: when each frame appears, seconds, rising.
        count: how many to pick.
        fps: of the result.
    """
    return [bisect_right(times, times[0] + k / fps + _SLACK) - 1 for k in range(count)]


def read_clip(
    clip: Clip, fps: float, buckets: list[Bucket], *, least_words: int = 1
) -> tuple[Bucket, np.ndarray]:
    """Bucket and frames, uint8 [T, H, W, 3], of one clip: first frames, middle of the picture.

    Two passes over the file: packets for the times, then only the frames that are needed are kept.

    Raises:
        Dropped: with the reason.
    """
    import av
    import numpy as np

    if len(clip.caption.split()) < least_words:
        raise Dropped(
            "no caption", "its caption is empty" if not clip.caption else "its caption is too short"
        )
    if not clip.path.is_file():
        raise Dropped("missing", "the file is not there")
    if clip.place is not None and clip.place[1] > MEMBER_LIMIT:
        raise Dropped("too large", f"{clip.place[1] / 1e9:.1f} GB within a shard, which is read whole")
    try:
        file = clip.opened()
        with _open(file) as container:
            if not container.streams.video:
                raise Dropped("no video", "the file has no picture")
            times, end = _times(container)
        with _open(file) as container:
            turns, height, width = _first_frame(container)
        bucket = choose_bucket(height, width, end - times[0], fps, buckets)
        wanted = pick_frames(times, bucket.frames, fps)
        with _open(file) as container:
            kept = _decode(container, times, set(wanted))
    except (av.FFmpegError, OSError, IndexError, ValueError, StopIteration) as error:
        raise Dropped("damaged", " ".join(str(error).split())[:200] or type(error).__name__) from error
    if any(index not in kept for index in wanted):
        raise Dropped("damaged", f"{len(kept)} of {len(set(wanted))} needed frames could be decoded")
    turned = [np.rot90(kept[index], k=turns) for index in wanted]
    return bucket, np.stack([fit(frame, bucket.height, bucket.width) for frame in turned])


def _open(file: str | io.BytesIO) -> Any:
    """As one of the containers that clips come in: a playlist would make FFmpeg read what it names."""
    import av

    if isinstance(file, io.BytesIO):
        file.seek(0)
    return av.open(file, options={"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"})


def _times(container: Any) -> tuple[list[float], float]:
    """When each frame appears, and when the last one ends."""
    stream = container.streams.video[0]
    starts, longest = [], 0.0
    for packet in container.demux(stream):
        if packet.pts is not None:
            starts.append(float(packet.pts * packet.time_base))
            longest = float((packet.duration or 0) * packet.time_base)
    starts = sorted(set(starts))
    if not starts:
        raise Dropped("damaged", "no frame has a time")
    if longest <= 0 and stream.average_rate:
        longest = 1 / float(stream.average_rate)
    return starts, starts[-1] + longest


def _first_frame(container: Any) -> tuple[int, int, int]:
    """Quarter turns to the left that set the picture upright; its height and width then."""
    frame = next(container.decode(container.streams.video[0]))
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return (turns, frame.width, frame.height) if turns % 2 else (turns, frame.height, frame.width)


def _decode(container: Any, times: list[float], wanted: set[int]) -> dict[int, np.ndarray]:
    """Frames by their place in ``times``; a frame that cannot be decoded is not there."""
    frames: dict[int, np.ndarray] = {}
    last = max(wanted)
    for frame in container.decode(container.streams.video[0]):
        number = bisect_right(times, float(frame.pts * frame.time_base) + _SLACK) - 1
        if number in wanted:
            frames[number] = frame.to_ndarray(format="rgb24")
        if number >= last:
            break
    return frames


def fit(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Shrink a picture, uint8 [H, W, 3], until one side fits, and cut the other around its middle."""
    import cv2
    import numpy as np

    scale = max(height / frame.shape[0], width / frame.shape[1])
    size = (max(width, round(frame.shape[1] * scale)), max(height, round(frame.shape[0] * scale)))
    if size != (frame.shape[1], frame.shape[0]):
        frame = cv2.resize(np.ascontiguousarray(frame), size, interpolation=cv2.INTER_AREA)
    top, left = (frame.shape[0] - height) // 2, (frame.shape[1] - width) // 2
    return np.ascontiguousarray(frame[top : top + height, left : left + width])
