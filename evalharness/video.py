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
    import numpy as np

    try:
        with av.open(io.BytesIO(data), mode="r") as container:
            stream = container.streams.video[0]
            rate = stream.average_rate
            expected = stream.frames
            images: list[np.ndarray] = []
            for frame in container.decode(stream):
                if (len(images) + 1) * frame.width * frame.height * 3 > limit:
                    raise ValueError(
                        f"{name}: too large, frame {len(images)} of {frame.width}x{frame.height} passes the "
                        f"limit of {limit} bytes; cut the video or make it smaller"
                    )
                images.append(frame.to_ndarray(format="rgb24"))
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"{name}: cannot be decoded ({error}); the file is truncated or no video") from error
    if not images or rate is None or (expected and len(images) != expected):
        raise ValueError(f"{name}: {len(images)} frames of {expected} decoded; the file is truncated")
    if any(image.shape != images[0].shape for image in images):
        raise ValueError(f"{name}: its frames differ in size; encode it anew")
    return Video(np.stack(images), float(rate))


def read_video(path: Path) -> Video:
    """``decode_video`` of a file."""
    return decode_video(Path(path).read_bytes(), str(path))


def _check_frames(frames: np.ndarray) -> None:
    if str(frames.dtype) != "uint8" or frames.ndim != 4 or frames.shape[3] != 3 or len(frames) == 0:
        raise ValueError(f"frames: expected uint8 [T, H, W, 3], got {frames.dtype} {list(frames.shape)}")
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"frames: yuv420p needs an even height and width, got {height}x{width}")
