"""A task that all ranks of a ``torchrun`` do together: they are one process group while it lasts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

__all__ = ["is_first", "together"]


def is_first(payload: Mapping[str, Any]) -> bool:
    """Whether this process writes what the task makes: always, but for the others of a group."""
    group = payload.get("group")
    return group is None or group["rank"] == 0


@contextmanager
def together(payload: Mapping[str, Any], device: str) -> Iterator[None]:
    """``torch.distributed`` runs within the block where the task has a group, else nothing happens."""
    group = payload.get("group")
    if group is None:
        yield
        return
    from torch import distributed

    from evalharness.executors.torchrun import connect

    whole: Any = connect(master=False)
    store = distributed.PrefixStore(f"group/{group['name']}", whole)  # type: ignore[attr-defined]
    distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo", store=store, rank=group["rank"], world_size=group["world"]
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()
