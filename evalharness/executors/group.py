"""A task that all ranks of a ``torchrun`` do together: they are one process group while it lasts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from evalharness.errors import StorageError, UserError, is_storage_error, one_line
from evalharness.executor import failed_reply

if TYPE_CHECKING:
    from evalharness.executors.torchrun import Store

__all__ = ["PeerError", "Readiness", "is_first", "ready", "tell_failure", "together", "told_failure"]


class PeerError(RuntimeError):
    """Another rank of the group failed before the work of all could begin."""


def is_first(payload: Mapping[str, Any]) -> bool:
    """Whether this process writes what the task makes: always, but for the others of a group."""
    group = payload.get("group")
    return group is None or group["rank"] == 0


class Readiness:
    """Ranks tell each other through ``store`` whether they have all that they need."""

    def __init__(self, store: Store, rank: int, world: int) -> None:
        self._store, self._rank, self._world = store, rank, world

    def tell(self, problem: Exception | None) -> None:
        """Once for each rank."""
        said = None
        if problem is not None:
            kind = "user" if isinstance(problem, ValueError) else "other"
            kind = "storage" if is_storage_error(problem) else kind
            said = [kind, str(problem) if kind == "user" else one_line(problem)]
        self._store.set(f"ready/{self._rank}", json.dumps(said))

    def wait(self) -> None:
        """Until all have told; raises what the first of the others said that failed.

        Raises:
            UserError: a user's mistake.
            StorageError: of its disk.
            PeerError: anything else.
        """
        for number in range(self._world):
            said = json.loads(self._store.get(f"ready/{number}"))
            if said is not None:
                kinds: dict[str, type[Exception]] = {"user": UserError, "storage": StorageError}
                raise kinds.get(said[0], PeerError)(said[1])


@contextmanager
def ready(payload: Mapping[str, Any]) -> Iterator[None]:
    """What each rank of a group does alone before all work together: it fails in all if it fails in one.

    Raises:
        Exception: what went wrong here, else as ``Readiness.wait``.
    """
    group = payload.get("group")
    if group is None:
        yield
        return
    readiness = Readiness(_store_of(group), group["rank"], group["world"])
    try:
        yield
    except Exception as error:
        readiness.tell(error)
        raise
    readiness.tell(None)
    readiness.wait()


@contextmanager
def together(payload: Mapping[str, Any], device: str) -> Iterator[None]:
    """``torch.distributed`` runs within the block where the task has a group, else nothing happens.

    An error is told to rank 0 before anything is taken down: what the others wait for may never come, and
    taking a group down that has work under way may wait, too.
    """
    group = payload.get("group")
    if group is None:
        yield
        return
    from torch import distributed

    store = _store_of(group)
    distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo", store=store, rank=group["rank"], world_size=group["world"]
    )
    try:
        yield
    except Exception as error:
        tell_failure(store, group["rank"], error)
        raise
    finally:
        distributed.destroy_process_group()


def tell_failure(store: Store, rank: int, error: Exception) -> None:
    """Of several that fail, the first one counts: others lose it and fail for that."""
    if store.add("failures", 1) == 1:
        store.set("failed", json.dumps({"rank": rank, "reply": failed_reply(error)}))


def told_failure(store: Store, name: str) -> tuple[int, dict[str, str]] | None:
    """Rank and answer of the first that failed in the group ``name``; of the job's ``store``."""
    key = f"group/{name}/failed"
    if not store.check([key]):
        return None
    said = json.loads(store.get(key))
    return said["rank"], said["reply"]


def _store_of(group: Mapping[str, Any]) -> Any:
    from torch import distributed

    from evalharness.executors.torchrun import connect

    whole: Any = connect(master=False)
    return distributed.PrefixStore(f"group/{group['name']}", whole)  # type: ignore[attr-defined]
