"""Times, memory and surroundings of a benchmark; the same calls on a GPU and on a CPU."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from qvgen import fused

ROOT = Path(__file__).resolve().parents[1]
WARMUP = 3


class Deadline:
    """So many seconds from now; looked at between measurements, it interrupts none."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def passed(self) -> bool:
        return time.monotonic() > self._end

    @property
    def left(self) -> float:
        """Seconds until then, negative after it."""
        return self._end - time.monotonic()


class Stopped(BaseException):
    """Something took longer than it was given; no ``Exception``, lest a library takes it for its own."""


@contextmanager
def stopped_after(limit_s: float) -> Iterator[None]:
    """Raise ``Stopped`` where the main thread is after so many seconds, as in a compiler that takes minutes.

    Whatever runs outside of Python is not interrupted, but what follows it is. Twice a minute it is raised
    again, should somebody have swallowed it.
    """

    def stop(*_: object) -> None:
        raise Stopped(f"not ready after {limit_s:.0f} s")

    if limit_s == float("inf"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(limit_s, 0.001), 30.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def elapsed_ms(action: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of ``action``: between two events of the stream, or by the clock on a CPU."""
    if device.type != "cuda":
        start = time.perf_counter()
        action()
        return (time.perf_counter() - start) * 1e3
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    wait(device)
    first.record()
    action()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last))


def enqueue_ms(action: Callable[[], object], device: torch.device) -> float:
    """Milliseconds until the host is through with ``action``; if near its whole time, the device waits."""
    wait(device)
    start = time.perf_counter()
    action()
    took = (time.perf_counter() - start) * 1e3
    wait(device)
    return took


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """Seconds by the clock, waiting for the device before and after."""
    wait(device)
    start = time.perf_counter()
    action()
    wait(device)
    return time.perf_counter() - start


def compare(
    variants: Mapping[str, Callable[[], object]], device: torch.device, repeats: int, deadline: Deadline
) -> dict[str, dict[str, float | int]]:
    """Time all variants in turns, so that a drift of the clock rate meets all of them alike.

    Each is warmed up ``WARMUP`` times. After the deadline no further turn begins; the first is
    always finished.

    Returns:
        For each variant: median, least and largest milliseconds, and the number of them.
    """
    times = in_turns(variants, device, repeats, deadline, dict.fromkeys(variants, WARMUP))
    return {name: summary(values) for name, values in times.items()}


def in_turns(
    variants: Mapping[str, Callable[[], object]],
    device: torch.device,
    repeats: int,
    deadline: Deadline,
    warm_ups: Mapping[str, int],
) -> dict[str, list[float]]:
    """As ``compare``, but milliseconds of each turn, and how often each is called before."""
    for name, action in variants.items():
        for _ in range(warm_ups[name]):
            action()
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(repeats):
        if turn and deadline.passed:
            break
        for name, action in variants.items():
            times[name].append(elapsed_ms(action, device))
    return times


def summary(times: list[float]) -> dict[str, float | int]:
    """Median, least, largest and count."""
    return {
        "median_ms": statistics.median(times),
        "min_ms": min(times),
        "max_ms": max(times),
        "n": len(times),
    }


def recorded(actions: Sequence[Callable[[], object]], device: torch.device) -> Callable[[], None]:
    """All ``actions`` one after the other, on CUDA as one graph, which costs no launches.

    For kernels that are shorter than starting them from Python takes.
    """

    def run() -> None:
        for action in actions:
            action()

    if device.type != "cuda":
        return run
    stream, graph = torch.cuda.Stream(device), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream(device).wait_stream(stream)
    with torch.cuda.graph(graph, stream=stream):
        run()
    return graph.replay


def peak_mb(action: Callable[[], object], device: torch.device) -> float | None:
    """Most memory, MB of 10^6 bytes, that the allocator held while ``action`` ran; None on a CPU."""
    if device.type != "cuda":
        return None
    wait(device)
    torch.cuda.reset_peak_memory_stats(device)
    action()
    wait(device)
    return torch.cuda.max_memory_allocated(device) / 1e6


def held_mb(device: torch.device) -> float | None:
    """What the allocator holds now; None on a CPU."""
    return torch.cuda.memory_allocated(device) / 1e6 if device.type == "cuda" else None


def ratio(value: float | int | None, base: float | int | None) -> float | None:
    """``value / base`` to four digits."""
    return None if value is None or not base else float(f"{value / base:.4g}")


def unfused(on: bool) -> AbstractContextManager[None]:
    """Within, the plain reference if ``on``; else whatever the library takes by itself."""
    return fused.disabled() if on else nullcontext()


def surroundings(device: torch.device) -> dict[str, Any]:
    """Device, versions and commit."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {
        "device": name,
        "fused_kernels": fused.AVAILABLE and device.type == "cuda",
        "versions": {
            "python": platform.python_version(),
            "cuda": torch.version.cuda,
            **{package: version(package) for package in ("torch", "triton", "diffusers")},
        },
        "commit": commit(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def version(package: str) -> str | None:
    """Of an installed package; None if it is not."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """Of the checkout, with ``+`` behind it where files differ; None outside of one."""
    git = shutil.which("git")
    if git is None:
        return None
    done = subprocess.run(
        [git, "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip() or None


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Replace ``path`` by ``data`` in one step."""
    temporary = path.with_name(f"{path.name}.part")
    with temporary.open("w") as file:
        json.dump(data, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
