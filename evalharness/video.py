"""Video files: one fixed codec setting for all, so that scores of two runs can be compared.

Encoding is a pure function of the frames: one encoder thread, no dates and no library versions in
the container. The scorer reads the file, so codec losses are part of every score alike.
"""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalharness.api import Video
from evalharness.store import atomic_write_bytes

if TYPE_CHECKING:
    import numpy as np

__all__ = ["CODEC", "LIMIT_BYTES", "decode_video", "encode_video", "read_video", "write_video"]

LIMIT_BYTES = 2 << 30  # of decoded frames: 776 of 720 x 1280

# The encoder's lookahead reads memory that was never written when frames are small (seen at 32 and
# 48 pixels: up to half of the files differed from call to call), so everything that uses it is off.
CODEC: dict[str, Any] = {
    "codec": "libx264",
    "pixel_format": "yuv420p",
    "crf": 10,
    "preset": "medium",
    "x264_params": "bframes=0:mbtree=0:rc-lookahead=0:scenecut=0:weightp=0",
    "threads": 1,
    "container": "mp4",
}


def encode_video(frames: np.ndarray, fps: int) -> bytes:
    """Encode frames, uint8 [T, H, W, 3] RGB with even H and W, as an MP4 file's bytes.

    Raises:
        ValueError: another dtype, shape or size, or no frame.
    """
    import av

    _check_frames(frames)
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format=CODEC["container"], options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(CODEC["codec"], rate=Fraction(fps))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = CODEC["pixel_format"]
        stream.options = {
            "crf": str(CODEC["crf"]),
            "preset": CODEC["preset"],
            "x264-params": CODEC["x264_params"],
        }
        stream.codec_context.thread_count = CODEC["threads"]
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def write_video(path: Path, frames: np.ndarray, fps: int) -> None:
    """Encode (see ``encode_video``) and write atomically."""
    atomic_write_bytes(path, encode_video(frames, fps))


def decode_video(data: bytes, name: str = "video", *, limit: int = LIMIT_BYTES) -> Video:
    """All frames of a video file's bytes. The suffix of ``name`` tells nothing: the content does.

    Raises:
        ValueError: not a video, truncated, empty, or more than ``limit`` bytes of frames; names the file.
    """
    import av

    try:
        with av.open(io.BytesIO(data), mode="r") as container:
            stream = container.streams.video[0]
            rate = stream.average_rate
            expected = stream.frames
            frames = _Frames(name, expected, limit)
            for frame in container.decode(stream):
                frames.check(frame.width, frame.height)
                frames.add(frame.to_ndarray(format="rgb24"))
    except (av.FFmpegError, IndexError) as error:
        told = error if data else "it is empty"
        raise ValueError(f"{name}: cannot be decoded ({told}); the file is truncated or no video") from error
    if not frames.count or rate is None or (expected and frames.count != expected):
        raise ValueError(f"{name}: {frames.count} frames of {expected} decoded; the file is truncated")
    return Video(frames.stacked(), float(rate))


class _Frames:
    """Frames, in one array from the start where the file tells their number: none is held twice."""

    def __init__(self, name: str, expected: int, limit: int) -> None:
        self._name, self._expected, self._limit = name, expected, limit
        self._whole: np.ndarray | None = None
        self._images: list[np.ndarray] = []
        self._shape: tuple[int, ...] = ()
        self.count = 0

    def check(self, width: int, height: int) -> None:
        if (self.count + 1) * width * height * 3 > self._limit:
            raise ValueError(
                f"{self._name}: too large, frame {self.count} of {width}x{height} passes the "
                f"limit of {self._limit} bytes; cut the video or make it smaller"
            )

    def add(self, image: np.ndarray) -> None:
        import numpy as np

        if self.count == 0:
            self._shape = image.shape
            if 0 < self._expected * image.nbytes <= self._limit:
                self._whole = np.empty((self._expected, *image.shape), np.uint8)
        if image.shape != self._shape:
            raise ValueError(f"{self._name}: its frames differ in size; encode it anew")
        if self._whole is None:
            self._images.append(image)
        elif self.count < self._expected:
            self._whole[self.count] = image
        self.count += 1

    def stacked(self) -> np.ndarray:
        """uint8 [T, H, W, 3]."""
        import numpy as np

        return np.stack(self._images) if self._whole is None else self._whole


def read_video(path: Path) -> Video:
    """``decode_video`` of a file."""
    return decode_video(Path(path).read_bytes(), str(path))


def _check_frames(frames: np.ndarray) -> None:
    if str(frames.dtype) != "uint8" or frames.ndim != 4 or frames.shape[3] != 3 or len(frames) == 0:
        raise ValueError(f"frames: expected uint8 [T, H, W, 3], got {frames.dtype} {list(frames.shape)}")
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"frames: yuv420p needs an even height and width, got {height}x{width}")
