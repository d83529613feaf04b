"""What each phase of one video takes: text encoder, transformer step, VAE decode, and all together.

It watches a pipeline of diffusers while that makes a video: the calls of ``text_encoder``,
``transformer`` and ``vae.decode`` are timed where they happen. What is over quickly is then called again
on the same inputs for a median.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from evalharness.memory import Peak, peak_within
from evalharness.timing import alternate, spread

__all__ = ["measure_phases"]

REPEATS = 5
REPEAT_SECONDS = 1.0
STEP_SECONDS = 60.0  # of transformer calls in the video; a large model's further ones are not run
LEAST_CALLS = REPEATS


@dataclass(slots=True)
class _Watch:
    """Times, memory and the first call of one phase; after ``most`` calls the last result is given again."""

    device: str
    most: int | None = None
    left_out: int = 0
    seconds: list[float] = field(default_factory=list)
    events: list[tuple[Any, Any]] = field(default_factory=list)
    peaks: list[Peak] = field(default_factory=list)
    first: Callable[[], object] | None = None
    result: Any = None

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.first is None:
            self.first = partial(function, *args, **kwargs)
        if self.most is not None and len(self.seconds) >= self.most:
            self.left_out += 1
            return self.result
        with peak_within(self.device) as peak:
            start = time.perf_counter()
            first = _event(self.device)
            result = function(*args, **kwargs)
            last = _event(self.device)
            self.seconds.append(time.perf_counter() - start)
        if first is not None:
            self.events.append((first, last))
        self.peaks.append(peak)
        self.result = result if self.most is not None else None
        return result

    def times(self) -> list[float]:
        """Seconds of each call; of events, which must have happened, where there are."""
        return [first.elapsed_time(last) / 1000 for first, last in self.events] or self.seconds


def measure_phases(
    loaded: Any, prompt: str, seed: int, device: str, step_seconds: float | None = None
) -> dict[str, Any] | None:
    """Make one video of ``prompt`` and tell what took how long; None for a model without a pipeline.

    Args:
        loaded: a ``LoadedModel`` with ``pipeline``, one of diffusers.
        prompt: what the text encoder reads.
        seed: of the noise.
        device: ``cpu`` or ``cuda``.
        step_seconds: of a call of the transformer, if known: calls beyond ``STEP_SECONDS`` are then left out
            and counted as the others took. What follows them is given the last call's result, of which
            no time depends.

    Returns:
        For each phase ``calls`` (in the video), ``ms``, ``p10_ms``, ``p90_ms`` (of a call), ``total_ms``
        (of all calls in the video) and the most memory in MB: ``allocated_mb`` and ``reserved_mb`` of
        the allocator on cuda, ``device_mb`` in use of the GPU by the driver's count, ``process_mb`` of the
        process. ``total`` has ``ms`` of the whole video, and
        ``calls_left_out`` says how many of the transformer's are an estimate in it.
    """
    pipeline = getattr(loaded, "pipeline", None)
    places = None if pipeline is None else _places(pipeline)
    if not places:
        return None
    watches = {name: _Watch(device) for name in places}
    if step_seconds and "transformer_step" in watches:
        watches["transformer_step"].most = max(LEAST_CALLS, int(STEP_SECONDS / step_seconds))
    with ExitStack() as stack:
        for name, (owner, attribute) in places.items():
            stack.enter_context(_replaced(owner, attribute, watches[name].call))
        # Nested peaks would reset each other: the whole is watched for its time alone.
        _synchronize(device)
        start = time.perf_counter()
        loaded.generate([prompt], [seed])
        _synchronize(device)
        total = (time.perf_counter() - start) * 1000
    record: dict[str, Any] = {}
    at_work = getattr(loaded, "at_work", lambda part: nullcontext())  # a model may keep parts elsewhere
    for name, watch in watches.items():
        if watch.seconds:
            record[name] = _record(watch, partial(at_work, places[name][0]))
    left_out = sum(watch.left_out for watch in watches.values())
    total += left_out * record.get("transformer_step", {}).get("ms", 0.0)
    seen = sum(phase["total_ms"] for phase in record.values())
    peaks = [peak for watch in watches.values() for peak in watch.peaks]
    record["total"] = {
        "ms": round(total, 3),
        "elsewhere_ms": round(total - seen, 3),
        "calls_left_out": left_out,
        **_largest(peaks),
    }
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


def _record(watch: _Watch, at_work: Callable[[], AbstractContextManager[object]]) -> dict[str, Any]:
    in_video = watch.times()
    seconds = in_video
    if len(in_video) < REPEATS and sum(in_video) < REPEAT_SECONDS and watch.first is not None:
        import torch

        with torch.inference_mode(), at_work():
            timed = alternate(
                {"": watch.first}, watch.device, most=REPEATS, most_seconds=REPEAT_SECONDS, warm_up=0
            )
        seconds = timed[""].seconds
    watch.first = watch.result = None
    times = spread(seconds)
    return {
        "calls": len(in_video) + watch.left_out,
        **times,
        "timed": len(seconds),
        "total_ms": round(sum(in_video) * 1000 + watch.left_out * times["ms"], 3),
        **_largest(watch.peaks),
    }


def _largest(peaks: list[Peak]) -> Mapping[str, float | None]:
    names = ("allocated", "reserved", "process", "device")
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
