"""Several trainings at once on one device, each in a thread with a CUDA stream of its own.

A model this small leaves most of a GPU idle; processes beside each other would take turns on it, streams
of one process share it. Python runs one thread at a time, which is enough for steps recorded as graphs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from evalharness.device import synchronize

__all__ = ["run_lanes"]


def run_lanes(count: int, device: str, work: Callable[[threading.Event], None]) -> None:
    """Call ``work`` in ``count`` threads and wait for all of them.

    Args:
        count: from 1; 1 takes the calling thread.
        device: ``cpu`` or ``cuda``.
        work: is given an event: once set, begin nothing new. It is set when a thread has failed and when
            the waiting one is interrupted.

    Raises:
        BaseException: the first that a thread raised, or the interruption.
    """
    assert count > 0, "no lane, no work"
    stop = threading.Event()
    if count == 1:
        work(stop)
        return
    failures: list[BaseException] = []
    synchronize(device)  # what the lanes share was made on this thread's stream

    def lane() -> None:
        try:
            with _stream(device):
                work(stop)
        except BaseException as failure:  # raised again by the waiting thread
            failures.append(failure)
            stop.set()

    threads = [threading.Thread(target=lane, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        stop.set()
        raise
    if failures:
        raise failures[0]


def _stream(device: str) -> AbstractContextManager[None]:
    if device == "cpu":
        return nullcontext()
    import torch

    own: AbstractContextManager[None] = torch.cuda.stream(torch.cuda.Stream())
    return own
