"""An error of one process becomes the error of all, before the others wait for that one in vain.

What is said goes through the key-value store of ``torch.distributed``, beside the tensors: whoever
failed can say so whatever the others are waiting for.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import distributed

from qvgen.diverged import DivergedError
from qvgen.training.parallel import rank, world_size

_GRACE_S = 60.0  # what a process that failed waits for others, which may be beyond reach
_SILENCE_S = 3600.0  # what any process waits for one that says nothing, as one that was killed
_POLL_S = (0.001, 0.2)
# The first that an error is one of names its kind to the others.
_KINDS: dict[str, type[Exception]] = {
    "diverged": DivergedError, "value": ValueError, "memory": MemoryError, "system": OSError,
}  # fmt: skip


@contextmanager
def all_or_none() -> Iterator[None]:
    """A block that no process leaves alone: if it fails in one, all raise that error.

    Within it no process may wait for another. Of several errors the one of the first process counts.

    Raises:
        Exception: of any process; of another one as ``ValueError``, ``OSError``, ``MemoryError``,
            ``DivergedError`` or else ``RuntimeError``, with the same text.
    """
    problem: Exception | None = None
    try:
        yield
    except Exception as error:
        problem = error
    raise_first(problem)


def raise_first(problem: Exception | None) -> None:
    """Raise the first process' ``problem``, if any has one; every process must call.

    Raises:
        Exception: as ``all_or_none``.
    """
    if world_size() == 1:
        if problem is not None:
            raise problem
        return
    for number, said in enumerate(_exchanged("" if problem is None else _told(problem), problem)):
        if said and number == rank():
            assert problem is not None
            raise problem
        if said:
            raise _made(json.loads(said)) from problem


def _exchanged(text: str, problem: Exception | None) -> list[str]:
    """What each process says, in their order; of this meeting alone, as they are numbered."""
    store: Any = distributed.distributed_c10d._get_default_store()
    meeting = f"qvgen/agreed/{store.add(f'qvgen/agreed/{rank()}', 1)}"
    store.set(f"{meeting}/{rank()}", text)
    keys = [f"{meeting}/{number}" for number in range(world_size())]
    begun = time.monotonic()
    # Asked again and again: a wait would hold the store's one connection, which NCCL's watchdog needs too.
    while not store.check(keys):
        waited = time.monotonic() - begun
        if problem is not None and waited > _GRACE_S:
            raise problem
        if waited > _SILENCE_S:
            silent = [str(number) for number, key in enumerate(keys) if not store.check([key])]
            raise RuntimeError(f"process {', '.join(silent)} has said nothing for {waited / 60:.0f} minutes")
        time.sleep(min(max(waited / 20, _POLL_S[0]), _POLL_S[1]))
    return [store.get(key).decode() for key in keys]


def _told(problem: Exception) -> str:
    kind = next((name for name, cls in _KINDS.items() if isinstance(problem, cls)), "other")
    if isinstance(problem, OSError) and problem.errno is not None:
        name = None if problem.filename is None else str(problem.filename)
        return json.dumps([kind, problem.errno, problem.strerror, name])
    text = str(problem) or type(problem).__name__
    return json.dumps([kind, text])


def _made(told: list[Any]) -> Exception:
    kind, *arguments = told
    return _KINDS.get(kind, RuntimeError)(*arguments)
