"""What a cell's records say, held as arrays: some 50 bytes a video, however long the lines are.

A video is known by its place: its number in the order in which the protocol names all videos.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, Protocol

from evalharness.api import Prompt, Sample
from evalharness.hash_memory import HashMemory
from evalharness.hashing import plain_digest
from evalharness.records import each_sample, each_score
from evalharness.runfolder import CellFolder
from evalharness.sampling import Videos
from evalharness.stages.samples import cell_hash

__all__ = ["CURRENT", "LEFT_OUT", "THERE", "VALUE", "Made", "PromptHashes", "Scored", "is_whole", "scored"]

_MARK = 32
_NOTHING = bytes(_MARK)

THERE, CURRENT, VALUE, LEFT_OUT = 1, 2, 4, 8
"""Of a score: a row is there; it is about this very video by the present metric; it has a value; its
dimension drops the video by rule."""


class PromptHashes(Protocol):
    """``stages.score.MetricHashes``."""

    def of(self, metric: str, prompt: Prompt) -> str: ...


class Made:
    """The latest attempt at each video of a cell.

    Attributes:
        failed: how many of the latest attempts failed, those at videos that are not asked for included.
    """

    def __init__(self, identity: Mapping[str, Any], files: CellFolder, videos: Videos) -> None:
        self._files = files
        self._shared = cell_hash(identity, files)
        count = len(videos)
        self._is_ok = bytearray(count)
        self._hashes, self._sha256 = bytearray(_MARK * count), bytearray(_MARK * count)
        self._lines = array("q", bytes(8 * count))
        has_failed, others = bytearray(count), {}
        for line, record in each_sample(files):
            _, place = videos.find(record["sample"])
            is_failed = record["status"] == "failed"
            if place < 0:
                others[record["sample"]] = is_failed
                continue
            has_failed[place] = is_failed
            self._is_ok[place] = record["status"] == "ok"
            self._lines[place] = line
            spot = slice(_MARK * place, _MARK * (place + 1))
            self._hashes[spot], self._sha256[spot] = _mark(record["hash"]), _mark(record["sha256"])
        self.failed = sum(has_failed) + sum(others.values())

    def is_valid(self, place: int, sample: Sample) -> bool:
        """Whether the video was made as the cell says now."""
        if self._shared is None or not self._is_ok[place]:
            return False
        wanted = plain_digest([self._shared, sample.prompt.text, sample.id, sample.seed])
        return self._hashes[_MARK * place : _MARK * (place + 1)] == wanted

    def is_about(self, place: int, video_sha256: str) -> bool:
        """Whether a file with this hash is the one that was made."""
        return self._sha256[_MARK * place : _MARK * (place + 1)] == _mark(video_sha256)

    def record(self, place: int) -> dict[str, Any]:
        """The line itself, read again."""
        [record] = self._files.samples.at([self._lines[place]])
        return record


class Scored:
    """The latest score of each video in each dimension.

    Attributes:
        is_tidy: whether the file has one row for each, by name.
        flags: of each dimension, in its order, one byte of flags for each place.
        values: raw scores by place, where there is one.
    """

    def __init__(self, dimensions: Sequence[str], count: int, *, with_values: bool) -> None:
        self.is_tidy = True
        self.flags = {name: bytearray(count) for name in dimensions}
        self.values = {name: array("d", bytes(8 * count)) for name in dimensions} if with_values else {}


def is_whole(path: str, place: int, made: Made, memory: HashMemory) -> bool:
    """Whether the video's file is the one that was made."""
    try:
        return made.is_about(place, memory.sha256(path))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return False


def scored(
    files: CellFolder,
    videos: Videos,
    made: Made,
    metrics: Mapping[str, str],
    hashes: PromptHashes,
    *,
    with_values: bool = False,
) -> Scored:
    """Read ``scores.jsonl``.

    Args:
        files: of the cell.
        videos: all that are asked for.
        made: their files.
        metrics: dimension -> metric whose rows are current.
        hashes: what each metric's rows must say they depend on.
        with_values: whether to keep the values, too.
    """
    found = Scored(tuple(metrics), len(videos), with_values=with_values)
    before = ("", "")
    for _, row in each_score(files):
        sample, dimension = row["sample"], row["dimension"]
        found.is_tidy = found.is_tidy and before < (sample, dimension)
        before = (sample, dimension)
        metric = metrics.get(dimension)
        number, place = videos.find(sample) if metric is not None else (-1, -1)
        if metric is None or place < 0:
            continue
        value = row["value"]
        flags = THERE | (VALUE if value is not None else 0) | (LEFT_OUT if row.get("left_out") else 0)
        if (
            row["metric_hash"] == hashes.of(metric, videos.prompts[number])
            and row.get("error") is None
            and made.is_about(place, row["video_sha256"])
        ):
            flags |= CURRENT
        found.flags[dimension][place] = flags
        if with_values and value is not None:
            found.values[dimension][place] = value
    return found


def _mark(text: str | None) -> bytes:
    """32 bytes that stand for a hash, or for whatever else stands in its place."""
    if text is None:
        return _NOTHING
    try:
        mark = bytes.fromhex(text)
    except ValueError:
        mark = b""
    if len(mark) == _MARK and mark.hex() == text:
        return mark
    return sha256(b"not a hash: " + text.encode("utf-8", "surrogatepass")).digest()
