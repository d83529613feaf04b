"""The frame store: a video is decoded once, ahead of time, and every dimension takes its frames from there.

VBench decodes a video once for each dimension, with three readers. Here one decoding serves all: the
sampling rules below pick frames as VBench's loaders do, and two readers give the same frames.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from evalharness.api import Video
from evalharness.errors import UserError, is_storage_error, one_line, unknown
from evalharness.video import LIMIT_BYTES, decode_video

if TYPE_CHECKING:
    import numpy as np

__all__ = ["READERS", "Ahead", "Decoded", "FrameStore", "at_rate", "decode", "middle"]

READERS = ("pyav", "decord")
IN_FLIGHT_BYTES = 768 << 20  # three videos of 81 frames of 720 x 1280


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """One file as the store hands it out: its hash, and the video or why there is none.

    ``refused`` is the disk's refusal, if that is the reason: it says nothing about the video.
    """

    path: Path
    sha256: str
    video: Video | None = None
    error: str | None = None
    refused: OSError | None = field(default=None, compare=False)


def decode(data: bytes, name: str, *, reader: str = "pyav", limit: int = LIMIT_BYTES) -> Video:
    """All frames of a video file's bytes, uint8 [T, H, W, 3] RGB.

    Args:
        data: the file.
        name: for messages.
        reader: ``pyav``, or ``decord`` (an optional package), which VBench uses; both give the same bytes.
        limit: bytes of frames above which the video is refused.

    Raises:
        ValueError: not a video, truncated, empty, too large, or no such reader.
    """
    if reader == "pyav":
        return decode_video(data, name, limit=limit)
    if reader != "decord":
        raise unknown("reader", reader, READERS)
    return _decord(data, name, limit)


def middle(total: int, count: int) -> list[int]:
    """VBench's choice of ``count`` of ``total`` frames: the middle of each of ``count`` equal intervals.

    With fewer frames than asked the last index is repeated. 81 frames, 16 asked: 2, 7, ..., 77.

    Raises:
        ValueError: a number below 1.
    """
    if total < 1 or count < 1:
        raise ValueError(f"middle frames: {count} of {total} asked; both must be at least 1")
    import numpy as np

    parts = min(count, total)
    # VBench truncates NumPy's linspace, whose rounding sometimes falls below the whole number.
    edges = [int(edge) for edge in np.linspace(0, total, parts + 1)]
    chosen = [(low + high - 1) // 2 for low, high in itertools.pairwise(edges)]
    return chosen + chosen[-1:] * (count - parts)


def at_rate(total: int, fps: float, wanted: float) -> list[int]:
    """Every ``max(1, round(fps / wanted))``-th of ``total`` frames, the first included."""
    return list(range(0, total, max(1, round(fps / wanted))))


class FrameStore:
    """Decodes files in a thread while the caller works on those before.

    Never more than ``budget`` bytes of decoded frames are waiting, plus the video that the caller
    holds and the one being decoded. A file that cannot be decoded is handed out with its error.

    Args:
        reader: see ``decode``.
        budget: bytes of frames that may wait; one video may always wait, whatever its size.
        limit: bytes of frames above which one video is refused.
    """

    def __init__(
        self, *, reader: str = "pyav", budget: int = IN_FLIGHT_BYTES, limit: int = LIMIT_BYTES
    ) -> None:
        if reader not in READERS:
            raise unknown("reader", reader, READERS)
        self._reader = reader
        self._budget = budget
        self._limit = limit

    def read(self, path: Path) -> Decoded:
        """One file, decoded now."""
        data = b""
        try:
            data = path.read_bytes()
            sha256 = hashlib.sha256(data).hexdigest()
            video = decode(data, path.name, reader=self._reader, limit=self._limit)
        except Exception as error:
            text = str(error) if isinstance(error, ValueError) else one_line(error)
            refused = error if isinstance(error, OSError) and is_storage_error(error) else None
            sha256 = hashlib.sha256(data).hexdigest()
            return Decoded(path=path, sha256=sha256, error=text, refused=refused)
        return Decoded(path=path, sha256=sha256, video=video)

    def stream(self, paths: Iterable[Path]) -> Iterator[Decoded]:
        """The files in the order given, each decoded while those before are worked on."""
        shelf = _Shelf(self._budget)
        thread = threading.Thread(target=self._fill, args=(list(paths), shelf), daemon=True)
        thread.start()
        try:
            yield from shelf
        finally:
            shelf.close()
            thread.join()

    def _fill(self, paths: list[Path], shelf: _Shelf) -> None:
        for path in paths:
            if not shelf.put(self.read(path)):
                return
        shelf.finish()


class Ahead:
    """One file decoded in a thread while the caller is busy with another; for who is told one at a time."""

    def __init__(self, store: FrameStore) -> None:
        self._store = store
        self._path: Path | None = None
        self._found: list[Decoded] = []
        self._thread: threading.Thread | None = None

    def start(self, path: Path) -> None:
        """Begin with ``path``; what was begun before and not taken is dropped."""
        self._finish()
        self._path, self._found = path, []
        self._thread = threading.Thread(
            target=lambda found: found.append(self._store.read(path)), args=(self._found,), daemon=True
        )
        self._thread.start()

    def take(self, path: Path) -> Decoded:
        """The file, from the thread if it was begun, else decoded now."""
        ready = self._path == path
        self._finish()
        found, self._path, self._found = self._found, None, []
        return found[0] if ready and found else self._store.read(path)

    def _finish(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None


class _Shelf:
    """A queue between two threads, bounded by bytes rather than by number."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._waiting: deque[Decoded] = deque()
        self._changed = threading.Condition()
        self._finished = False
        self._closed = False

    def put(self, item: Decoded) -> bool:
        """Wait for room; False when nobody will take it."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._fits(item))
            if self._closed:
                return False
            self._waiting.append(item)
            self._changed.notify_all()
            return True

    def finish(self) -> None:
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Decoded]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._finished)
                if not self._waiting:
                    return
                item = self._waiting.popleft()
                self._changed.notify_all()
            yield item

    def _fits(self, item: Decoded) -> bool:
        held = sum(_size(waiting) for waiting in self._waiting)
        return not self._waiting or held + _size(item) <= self._budget


def _size(item: Decoded) -> int:
    return 0 if item.video is None else int(item.video.frames.nbytes)


def _decord(data: bytes, name: str, limit: int) -> Video:
    import numpy as np

    try:
        import decord
    except ImportError as error:
        raise UserError("reader 'decord' is not installed; pip install decord, or use pyav") from error
    try:
        reader = decord.VideoReader(io.BytesIO(data), num_threads=1)
        total = len(reader)
        first: np.ndarray = reader[0].asnumpy()
        if total * first.nbytes > limit:
            raise UserError(
                f"{name}: too large, {total} frames of {first.nbytes} bytes; the limit is {limit}"
            )
        frames: np.ndarray = reader.get_batch(range(total)).asnumpy()
    except UserError:
        raise
    except Exception as error:  # decord raises its own error, RuntimeError or IndexError
        raise ValueError(f"{name}: cannot be decoded ({one_line(error)}); truncated or no video") from error
    return Video(np.ascontiguousarray(frames), float(reader.get_avg_fps()))
