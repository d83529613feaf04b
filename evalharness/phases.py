"""What each phase of one video takes: text encoder, transformer step, VAE decode, and all together.

It watches a pipeline of diffusers while that makes a video: the calls of ``text_encoder``,
``transformer`` and ``vae.decode`` are timed where they happen. What is over quickly is then called again
on the same inputs for a median.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from evalharness.memory import Peak, peak_within
from evalharness.timing import alternate, spread

__all__ = ["PHASES", "measure_phases"]

PHASES = ("text_encoder", "transformer_step", "vae_decode")
REPEATS = 5
REPEAT_SECONDS = 1.0


@dataclass(slots=True)
class _Watch:
    """Times, memory and the last call of one phase."""

    device: str
    seconds: list[float] = field(default_factory=list)
    events: list[tuple[Any, Any]] = field(default_factory=list)
    peaks: list[Peak] = field(default_factory=list)
    last: Callable[[], object] | None = None

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.last is None:
            self.last = partial(function, *args, **kwargs)
        with peak_within(self.device) as peak:
            start = time.perf_counter()
            first = _event(self.device)
            result = function(*args, **kwargs)
            last = _event(self.device)
            self.seconds.append(time.perf_counter() - start)
        if first is not None:
            self.events.append((first, last))
        self.peaks.append(peak)
        return result

    def times(self) -> list[float]:
        """Seconds of each call; of events, which must have happened, where there are."""
        return [first.elapsed_time(last) / 1000 for first, last in self.events] or self.seconds


def measure_phases(
    loaded: Any, prompt: str, seed: int, device: str, step: Callable[[], object] | None = None
) -> dict[str, Any] | None:
    """Make one video of ``prompt`` and tell what took how long; None for a model without a pipeline.

    Args:
        loaded: a ``LoadedModel`` with ``pipeline``, one of diffusers.
        prompt: what the text encoder reads.
        seed: of the noise.
        device: ``cpu`` or ``cuda``.
        step: called once before; to warm up.

    Returns:
        For each phase ``calls`` (in the video), ``ms``, ``p10_ms``, ``p90_ms`` (of a call), ``total_ms``
        (of all calls in the video) and the most memory in MB: ``allocated_mb`` and ``reserved_mb`` of
        the allocator on cuda, ``process_mb`` of the process. ``total`` has ``ms`` of the whole video.
    """
    pipeline = getattr(loaded, "pipeline", None)
    places = None if pipeline is None else _places(pipeline)
    if not places:
        return None
    if step is not None:
        step()
    watches = {name: _Watch(device) for name in places}
    with ExitStack() as stack:
        whole = _Watch(device)
        for name, (owner, attribute) in places.items():
            stack.enter_context(_replaced(owner, attribute, watches[name].call))
        # Nested peaks would reset each other: the whole is watched for its time alone.
        _synchronize(device)
        start = time.perf_counter()
        loaded.generate([prompt], [seed])
        _synchronize(device)
        whole.seconds.append(time.perf_counter() - start)
    record: dict[str, Any] = {name: _record(watch) for name, watch in watches.items() if watch.seconds}
    seen = sum(phase["total_ms"] for phase in record.values())
    total = whole.seconds[0] * 1000
    peaks = [peak for watch in watches.values() for peak in watch.peaks]
    record["total"] = {"ms": round(total, 3), "elsewhere_ms": round(total - seen, 3), **_largest(peaks)}
    return record


def _places(pipeline: Any) -> dict[str, tuple[Any, str]]:
    """Where the calls of each phase go through; parts that the pipeline lacks are left out."""
    found = {
        "text_encoder": (getattr(pipeline, "text_encoder", None), "forward"),
        "transformer_step": (getattr(pipeline, "transformer", None), "forward"),
        "vae_decode": (getattr(pipeline, "vae", None), "decode"),
    }
    return {name: place for name, place in found.items() if place[0] is not None}


@contextmanager
def _replaced(owner: Any, attribute: str, call: Callable[..., Any]) -> Iterator[None]:
    """Within, ``owner.attribute(...)`` is ``call(the original, ...)``."""
    before = vars(owner).get(attribute)
    setattr(owner, attribute, partial(call, getattr(owner, attribute)))
    try:
        yield
    finally:
        if before is None:
            delattr(owner, attribute)
        else:
            setattr(owner, attribute, before)


def _record(watch: _Watch) -> dict[str, Any]:
    in_video = watch.times()
    seconds = in_video
    if len(in_video) < REPEATS and sum(in_video) < REPEAT_SECONDS and watch.last is not None:
        import torch

        with torch.inference_mode():
            timed = alternate(
                {"": watch.last}, watch.device, most=REPEATS, most_seconds=REPEAT_SECONDS, warm_up=0
            )
        seconds = timed[""].seconds
    watch.last = None
    return {
        "calls": len(in_video),
        **spread(seconds),
        "timed": len(seconds),
        "total_ms": round(sum(in_video) * 1000, 3),
        **_largest(watch.peaks),
    }


def _largest(peaks: list[Peak]) -> Mapping[str, float | None]:
    names = ("allocated", "reserved", "process")
    found: dict[str, float | None] = {}
    for name in names:
        sizes = [size for peak in peaks if (size := getattr(peak, name)) is not None]
        found[f"{name}_mb"] = round(max(sizes) / 1e6, 3) if sizes else None
    return found


def _event(device: str) -> Any:
    if device != "cuda":
        return None
    import torch

    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _synchronize(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
