"""What both halves of the int8 backend's tuner need: compiling side by side, and timing one way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import torch


def compile_all(calls: Sequence[Any]) -> None:
    """Compile kernels side by side, which only saves time; those that fail are found when they are timed.

    Calls have a ``kernel``, ``programs``, ``operands`` and ``constants`` by name.
    """
    with suppress(Exception):
        from triton.runtime._async_compile import AsyncCompileMode

        with ThreadPoolExecutor(8) as pool, AsyncCompileMode(pool, ignore_errors=True):
            for call in calls:
                call.kernel.warmup(*call.operands, grid=(call.programs,), **call.constants)


def timed(actions: Sequence[Callable[[], object]], device: torch.device, repeats: int) -> float:
    """Median milliseconds of one of ``actions``, which run as one graph."""
    from benchmarks.measuring import Deadline, compare, recorded

    found = compare({"it": recorded([*actions] * 3, device)}, device, repeats, Deadline(30))
    return float(found["it"]["median_ms"]) / (3 * len(actions))
