"""The frame store: the same frames by three readers, VBench's sampling rules, bounded prefetch."""

from __future__ import annotations

import io
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalharness import frames as frames_module
from evalharness.frames import Ahead, Decoded, FrameStore, at_rate, decode, middle
from evalharness.video import decode_video, encode_video


def clip(count: int = 6, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """Waves that drift; uint8 [T, H, W, 3]."""
    y, x = np.mgrid[0:height, 0:width]
    shown = [
        np.stack([128 + 100 * np.sin(x / 9 + t), 128 + 90 * np.cos(y / 7 - t), (3 * x + 9 * t) % 256], -1)
        for t in range(seed, seed + count)
    ]
    return np.stack(shown).clip(0, 255).astype(np.uint8)


def h264(frames: np.ndarray, rate: Fraction, pixels: str) -> bytes:
    """As other programs write it: B frames, default settings, any pixel format."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("size", "rate", "pixels"),
    [
        ((9, 64, 96), Fraction(8), "yuv420p"),
        ((17, 480, 832), Fraction(16), "yuv420p"),
        ((4, 720, 1280), Fraction(24), "yuv420p"),
        ((9, 130, 98), Fraction(8), "yuv420p"),
        ((6, 66, 102), Fraction(30000, 1001), "yuv420p"),
        ((6, 65, 97), Fraction(25), "yuv444p"),
    ],
)
def test_both_readers_and_opencv_give_the_same_frames(
    tmp_path: Path, size: tuple[int, int, int], rate: Fraction, pixels: str
) -> None:
    pytest.importorskip("decord")
    data = h264(clip(*size), rate, pixels)
    ours, theirs = decode(data, "v"), decode(data, "v", reader="decord")
    assert ours.frames.shape == (*size, 3)
    assert np.array_equal(ours.frames, theirs.frames)
    assert ours.fps == pytest.approx(theirs.fps) == pytest.approx(float(rate))
    (tmp_path / "v.mp4").write_bytes(data)
    capture = cv2.VideoCapture(str(tmp_path / "v.mp4"))
    seen = []
    while (step := capture.read())[0]:
        seen.append(step[1][..., ::-1])
    # Builds of the converter may round differently.
    assert np.abs(np.stack(seen).astype(int) - ours.frames).max() <= 3


def test_middle_frames_are_vbench_s() -> None:
    assert middle(81, 16) == list(range(2, 78, 5))  # one of each bin of 5
    assert middle(16, 16) == list(range(16))
    assert middle(5, 8) == [0, 1, 2, 3, 4, 4, 4, 4]
    assert middle(1, 3) == [0, 0, 0]
    with pytest.raises(ValueError, match="at least 1"):
        middle(0, 8)


def test_middle_frames_repeat_vbench_s_rounding() -> None:
    """198 / 46 * 22 is 94.69..., but the 23rd edge, 198 * 23 / 46 = 99, comes out below it."""
    assert middle(198, 46)[22] == (94 + 98 - 1) // 2


@given(total=st.integers(1, 400), count=st.integers(1, 64))
def test_middle_frames_are_the_middles_of_equal_parts(total: int, count: int) -> None:
    parts = min(count, total)
    chosen = middle(total, count)
    assert len(chosen) == count
    assert chosen == sorted(chosen)
    assert chosen[parts:] == [chosen[parts - 1]] * (count - parts)
    for i, index in enumerate(chosen[:parts]):
        assert abs(index - (Fraction(total * (2 * i + 1), 2 * parts) - Fraction(1, 2))) <= Fraction(3, 2)


@pytest.mark.parametrize(
    ("total", "fps", "kept"), [(81, 16.0, 41), (49, 8.0, 49), (129, 24.0, 43), (9, 5.0, 9), (10, 30.0, 3)]
)
def test_frames_at_a_rate(total: int, fps: float, kept: int) -> None:
    """Counts of common clips; 30 per second is thinned by round(3.75) = 4."""
    assert len(at_rate(total, fps, 8.0)) == kept
    assert at_rate(total, fps, 8.0)[0] == 0


def files(folder: Path, count: int) -> list[Path]:
    paths = []
    for i in range(count):
        path = folder / f"{i}.mp4"
        path.write_bytes(encode_video(clip(seed=i), 8))
        paths.append(path)
    return paths


def test_the_stream_keeps_order_and_bytes(tmp_path: Path) -> None:
    paths = files(tmp_path, 4)
    for path, item in zip(paths, FrameStore().stream(paths), strict=True):
        assert item.path == path
        assert item.error is None
        assert item.video is not None
        assert np.array_equal(item.video.frames, decode_video(path.read_bytes()).frames)


def test_bad_files_are_one_error_each(tmp_path: Path) -> None:
    good = files(tmp_path, 2)
    bad = [tmp_path / name for name in ("empty.mp4", "words.mp4", "cut.mp4", "gone.mp4")]
    bad[0].write_bytes(b"")
    bad[1].write_text("no video at all")
    bad[2].write_bytes(good[0].read_bytes()[:400])
    items = list(FrameStore().stream([good[0], *bad, good[1]]))
    assert [item.error is None for item in items] == [True, False, False, False, False, True]
    for item in items[1:5]:
        assert item.error is not None
        assert item.path.name in item.error
        assert item.video is None


@pytest.mark.parametrize("reader", ["pyav", "decord"])
def test_a_huge_video_is_refused(tmp_path: Path, reader: str) -> None:
    if reader == "decord":
        pytest.importorskip("decord")
    [path] = files(tmp_path, 1)
    size = 6 * 48 * 64 * 3
    assert FrameStore(reader=reader, limit=size).read(path).error is None
    error = FrameStore(reader=reader, limit=size - 1).read(path).error
    assert error is not None
    assert "too large" in error


@pytest.mark.parametrize("reader", ["pyav", "decord"])
def test_the_content_counts_not_the_suffix(tmp_path: Path, reader: str) -> None:
    if reader == "decord":
        pytest.importorskip("decord")
    [path] = files(tmp_path, 1)
    other = path.rename(tmp_path / "A.MP4.txt")
    assert FrameStore(reader=reader).read(other).error is None


def test_no_more_than_the_budget_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight videos, room for two: when the caller holds the first, two wait and one is in the making."""
    paths = files(tmp_path, 8)
    decoded: list[str] = []
    plain = FrameStore.read
    monkeypatch.setattr(FrameStore, "read", lambda s, p: (plain(s, p), decoded.append(p.name))[0])
    stream = FrameStore(budget=2 * 6 * 48 * 64 * 3).stream(paths)
    first = next(stream)
    deadline = time.monotonic() + 300
    while len(decoded) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert first.path == paths[0]
    assert decoded == ["0.mp4", "1.mp4", "2.mp4", "3.mp4"]
    assert [item.path for item in stream] == paths[1:]


def test_one_video_above_the_budget_still_passes(tmp_path: Path) -> None:
    paths = files(tmp_path, 3)
    assert [item.error for item in FrameStore(budget=1).stream(paths)] == [None] * 3


def test_a_caller_who_stops_leaves_no_thread(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    stream = FrameStore(budget=1).stream(files(tmp_path, 5))
    next(stream)
    stream.close()
    assert set(threading.enumerate()) <= before


def test_an_unknown_reader_is_named() -> None:
    with pytest.raises(ValueError, match="pyav"):
        FrameStore(reader="opencv")
    with pytest.raises(ValueError, match="pyav"):
        decode(b"", "v", reader="opencv")


def test_missing_files_have_a_hash_of_nothing(tmp_path: Path) -> None:
    item = FrameStore().read(tmp_path / "gone.mp4")
    assert item == Decoded(
        path=tmp_path / "gone.mp4", sha256=frames_module.hashlib.sha256().hexdigest(), error=item.error
    )


def test_a_wrong_guess_costs_a_decoding_and_no_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = files(tmp_path, 3)
    read: list[str] = []
    plain = FrameStore.read
    monkeypatch.setattr(FrameStore, "read", lambda s, p: (read.append(p.name), plain(s, p))[1])
    ahead = Ahead(FrameStore())
    ahead.start(paths[1])
    assert ahead.take(paths[1]).path == paths[1]
    assert read == ["1.mp4"]  # not read twice
    ahead.start(paths[0])
    assert ahead.take(paths[2]).path == paths[2]
    assert ahead.take(paths[0]).path == paths[0]
    assert read == ["1.mp4", "0.mp4", "2.mp4", "0.mp4"]
