"""Video files, read back by other decoders."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections import deque
from pathlib import Path

import cv2
import numpy as np
import pytest

from evalharness.video import decode_video, encode_video, read_video, write_video


def clip(frames: int = 17, size: int = 48) -> np.ndarray:
    """A soft-edged bright blob that drifts over a gradient; uint8 [T, H, W, 3]."""
    y, x = np.mgrid[0:size, 0:size].astype(float)
    video = np.empty((frames, size, size, 3))
    for t in range(frames):
        blob = np.exp(-((x - 10 - t) ** 2 + (y - size / 2) ** 2) / 40)
        video[t] = np.stack([80 + 150 * blob, 60 + x * 2, 200 - y * 2], axis=-1)
    return video.clip(0, 255).astype(np.uint8)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


def test_round_trip_keeps_count_size_rate_and_picture(tmp_path: Path) -> None:
    frames = clip()
    write_video(tmp_path / "v.mp4", frames, 8)
    video = read_video(tmp_path / "v.mp4")
    assert video.frames.shape == frames.shape
    assert video.frames.dtype == np.uint8
    assert video.fps == 8.0
    assert psnr(video.frames, frames) > 40


def test_opencv_reads_the_same_frames(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", clip(), 8)
    capture = cv2.VideoCapture(str(tmp_path / "v.mp4"))
    assert capture.get(cv2.CAP_PROP_FPS) == 8.0
    seen = []
    while (step := capture.read())[0]:
        seen.append(cv2.cvtColor(step[1], cv2.COLOR_BGR2RGB))
    ours = read_video(tmp_path / "v.mp4").frames
    assert len(seen) == len(ours)
    # Builds of the converter may round differently.
    assert np.abs(np.stack(seen).astype(int) - ours).max() <= 3


@pytest.mark.parametrize("size", [32, 48])
def test_encoding_is_a_pure_function(size: int) -> None:
    """Also with a heap full of other things: x264's defaults fail this within a few dozen calls."""
    frames = clip(size=size) + np.random.default_rng(0).integers(0, 40, (17, size, size, 3), dtype=np.uint8)
    rng = np.random.default_rng(1)
    litter: deque[np.ndarray] = deque(maxlen=30)
    digests = set()
    for _ in range(120):
        litter.append(rng.random(rng.integers(1, 3000)))
        data = encode_video(frames, 8)
        digests.add(hashlib.sha256(data).hexdigest())
        decode_video(data)
    assert len(digests) == 1
    frames[3, 20:28, 20:28] = 0
    assert hashlib.sha256(encode_video(frames, 8)).hexdigest() not in digests


@pytest.mark.parametrize("keep", [0, 100, 0.5])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, keep: float) -> None:
    data = encode_video(clip(), 8)
    path = tmp_path / "0042-0.mp4"
    path.write_bytes(data[: int(keep * len(data) if keep < 1 else keep)])
    with pytest.raises(ValueError, match=r"0042-0\.mp4.*truncated"):
        read_video(path)


def test_a_file_that_is_no_video_is_refused() -> None:
    with pytest.raises(ValueError, match="no video"):
        decode_video(b"not a video at all" * 100)


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (np.zeros((0, 32, 32, 3), np.uint8), "uint8"),
        (np.zeros((4, 32, 32, 3), np.float32), "float32"),
        (np.zeros((4, 32, 32), np.uint8), "uint8"),
        (np.zeros((4, 33, 32, 3), np.uint8), "33x32"),
    ],
)
def test_frames_that_cannot_be_encoded_are_refused(frames: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        encode_video(frames, 8)


def test_no_frame_is_held_twice() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (40, 128, 128, 3), np.uint8)
    data = encode_video(frames, 8)
    decode_video(data)  # what is loaded once
    tracemalloc.start()
    try:
        video = decode_video(data)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert video.frames.nbytes == frames.nbytes
    assert most < 1.2 * frames.nbytes


def test_an_empty_file_is_called_that() -> None:
    with pytest.raises(ValueError, match=r"x\.mp4: cannot be decoded \(it is empty\)"):
        decode_video(b"", "x.mp4")
