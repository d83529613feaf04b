"""Seconds of both sides of ``vbench_speed``: in rounds of one clip of each size, told after each dimension.

A dimension that fails is named with its reason and left out of what follows; the others go on. Where time
does not do for all clips, fewer are taken, and that is told too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.vbench_clips import Clips

__all__ = ["Side", "Timed", "seconds_of", "time_native", "time_upstream", "told"]


@dataclass
class Timed:
    """What is known of one side: seconds by dimension and size, values by dimension and file."""

    seconds: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    values: dict[str, dict[str, float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    cut_short: str = ""

    def add(self, dimension: str, size: str, path: Path, seconds: float, value: float | None) -> None:
        self.seconds.setdefault(dimension, {}).setdefault(size, []).append(seconds)
        if value is not None:
            self.values.setdefault(dimension, {})[path.name] = value

    def count(self, dimension: str, size: str) -> int:
        return len(self.seconds.get(dimension, {}).get(size, ()))

    def typical(self, dimension: str, size: str) -> float | None:
        """The median over clips: sides may have taken different numbers of them."""
        times = self.seconds.get(dimension, {}).get(size)
        return statistics.median(times) if times else None

    def spent(self, dimension: str) -> float:
        return sum(sum(times) for times in self.seconds.get(dimension, {}).values())

    def fail(self, dimension: str, error: Exception) -> None:
        """Without the dimension from here on; what was timed with it does not count as together."""
        self.failed[dimension] = f"{type(error).__name__}: {error}"[:400]
        self.seconds.pop(dimension, None)
        self.values.pop(dimension, None)
        self.seconds.pop("together", None)
        print(f"  {dimension} failed: {self.failed[dimension]}", flush=True)


@dataclass(frozen=True, kw_only=True)
class Side:
    """How one side is timed.

    Attributes:
        clips: in turns of the sizes.
        warm: short clips that are judged before anything is timed: networks are loaded, kernels chosen.
        device: where networks are.
        clock: ``wall``, or ``cpu`` for this process alone.
        limit_s: for a dimension; past it, the dimension takes no further clip.
        end: of this step, by ``time.monotonic``; no round is begun that would pass it, but the first.
    """

    clips: Clips
    warm: Clips
    device: str
    clock: str
    limit_s: float
    end: float

    @property
    def sizes(self) -> int:
        return len({size for size, _ in self.clips})

    def rounds(self, timed: Timed, spent: Callable[[], float]) -> Iterator[Clips]:
        """One clip of each size at a time, as long as another such round would end in time."""
        for number in range(-(-len(self.clips) // self.sizes)):
            left, each = self.end - time.monotonic(), spent() / max(number, 1)
            if number and left < each:
                done = number * self.sizes
                timed.cut_short = (
                    f"{done} of {len(self.clips)} clips: {max(left, 0):.0f} s were left for this side, "
                    f"{self.sizes} clips take {each:.0f} s"
                )
                print(f"  {timed.cut_short}", flush=True)
                return
            yield self.clips[number * self.sizes : (number + 1) * self.sizes]


def time_upstream(
    judges: Mapping[str, Callable[[], Callable[[Path], float]]], side: Side, timed: Timed
) -> Iterator[str]:
    """Each dimension as upstream runs it, which decodes the clip for itself.

    Args:
        judges: by dimension what makes its judge of a file.
        side: how.
        timed: filled.

    Yields:
        Each dimension when it is through with a round.
    """
    made: dict[str, Callable[[Path], float]] = {}
    for name, make in judges.items():
        try:
            made[name] = make()
            for _, path in side.warm:
                made[name](path)  # kernels are chosen
        except Exception as error:  # one dimension is not the end of the others
            made.pop(name, None)
            timed.fail(name, error)
    began = time.monotonic()
    for clips in side.rounds(timed, lambda: time.monotonic() - began):
        for name in list(made):
            if timed.spent(name) > side.limit_s:
                continue
            try:
                _one(made[name], name, clips, side, timed)
            except Exception as error:
                del made[name]
                timed.fail(name, error)
            yield name


def _one(judge: Callable[[Path], float], name: str, clips: Clips, side: Side, timed: Timed) -> None:
    for size, path in clips:
        took, value = seconds_of(lambda: judge(path), side)  # noqa: B023
        timed.add(name, size, path, took, value)


def time_native(judges: Mapping[str, Callable[[Any], float]], side: Side, timed: Timed) -> Iterator[str]:
    """All dimensions of a clip together, decoded once; on a GPU the next is decoded meanwhile.

    Args:
        judges: by dimension its judge of a decoded video.
        side: how.
        timed: filled; ``decoding`` is the wait for the clip's frames.

    Yields:
        ``together`` after each round.
    """
    from evalharness.frames import Ahead, FrameStore

    made, ahead = dict(judges), Ahead(FrameStore())
    for _, path in side.warm:
        video = _video(ahead, path)
        for name in list(made):
            _try(made, name, video, side, timed)
    order = [path for _, path in side.clips]
    began = time.monotonic()
    for clips in side.rounds(timed, lambda: time.monotonic() - began):
        for size, path in clips:
            clock = _clock(side)
            start = clock()
            video = _video(ahead, path)
            timed.add("decoding", size, path, clock() - start, None)
            following = order[order.index(path) + 1 :]
            if side.device != "cpu" and following:
                ahead.start(following[0])
            whole = True
            for name in list(made):
                found = _try(made, name, video, side, timed)
                if found is None:
                    whole = False
                else:
                    timed.add(name, size, path, *found)
            if whole:
                timed.add("together", size, path, clock() - start, None)
        yield "together"


def _try(
    made: dict[str, Callable[[Any], float]], name: str, video: Any, side: Side, timed: Timed
) -> tuple[float, float] | None:
    try:
        return seconds_of(lambda: made[name](video), side)
    except Exception as error:
        del made[name]
        timed.fail(name, error)
        return None


def _video(ahead: Any, path: Path) -> Any:
    read = ahead.take(path)
    assert read.video is not None, read.error
    return read.video


def _clock(side: Side) -> Callable[[], float]:
    return time.process_time if side.clock == "cpu" else time.perf_counter


def seconds_of(action: Callable[[], float], side: Side) -> tuple[float, float]:
    """How long, and what it returned; the device is waited for before and after."""
    from benchmarks.measuring import wait

    device, clock = torch.device(side.device), _clock(side)
    wait(device)
    start = clock()
    value = action()
    wait(device)
    return clock() - start, value


def told(timed: Timed, dimensions: Sequence[str]) -> str:
    """One line of the sum of the typical seconds, by size."""
    sizes = list(dict.fromkeys(size for name in dimensions for size in timed.seconds.get(name, {})))
    sums = {size: sum(timed.typical(name, size) or 0.0 for name in dimensions) for size in sizes}
    return ", ".join(f"{size} {value:.3f} s" for size, value in sums.items())
