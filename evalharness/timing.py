"""Times of calls: alone or in turns with others, by the device's own clock, with their spread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Times", "alternate", "elapsed", "percentile", "spread"]

WARM_UP = {"cpu": 2, "cuda": 10}  # a GPU loads its kernels one by one when first used


@dataclass(slots=True)
class Times:
    """Seconds of each timed call: by the device's own clock, and of processor time.

    On cpu the processor time leaves out the waiting for a core that other processes use.
    """

    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


def alternate(
    calls: Mapping[str, Callable[[], object]], device: str, *, most: int, most_seconds: float,
    warm_up: int | None = None,
) -> dict[str, Times]:  # fmt: skip
    """Time ``calls`` in turns, so that a drift of the clock rate or of other load meets all alike.

    Args:
        calls: what to time, by name.
        device: ``cpu`` or ``cuda``.
        most: turns at most; the first is always finished.
        most_seconds: no turn begins after so many timed seconds of the first of ``calls``.
        warm_up: calls of each before that; what the device needs if left out.
    """
    for call in calls.values():
        for _ in range(WARM_UP[device] if warm_up is None else warm_up):
            call()
    found = {name: Times() for name in calls}
    first = next(iter(found.values()))
    while not first.seconds or (len(first.seconds) < most and sum(first.seconds) < most_seconds):
        for name, call in calls.items():
            before = time.process_time()
            found[name].seconds.append(elapsed(call, device))
            found[name].processor.append(time.process_time() - before)
    return found


def elapsed(call: Callable[[], object], device: str) -> float:
    """Seconds of one call.

    On cuda between two events of the stream, which is empty before the first and waited for after
    the second.
    """
    if device != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    import torch

    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    call()
    last.record()
    torch.cuda.synchronize()
    milliseconds: float = first.elapsed_time(last)
    return milliseconds / 1000


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear between the two nearest of the sorted values, as NumPy's default."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def spread(seconds: Sequence[float], prefix: str = "") -> dict[str, Any]:
    """``ms`` (the median), ``p10_ms`` and ``p90_ms``, each with ``prefix``; None without a value."""
    points = (("ms", 50), ("p10_ms", 10), ("p90_ms", 90))
    return {
        f"{prefix}{name}": round(percentile(seconds, percent) * 1000, 3) if seconds else None
        for name, percent in points
    }
