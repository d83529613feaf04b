"""An error of one of two processes ends both, at once and by the same words."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from torch import distributed

from qvgen.diverged import DivergedError
from qvgen.training import agreement
from qvgen.training.agreement import all_or_none
from tests.qvgen import failing_training
from tests.qvgen.test_parallel import torchrun

FULL = ("system", "[Errno 28] No space left on device: 'there/x'")
NAN = "layer blocks.0.net.2: a weight to quantize holds NaN or infinity; the model itself is broken"
EXPECTED = {
    "nan": ("value", NAN),  # the second process' layer
    "prepare": FULL,
    "teacher": ("system", "[Errno 2] No such file: 'part-2'"),
    "validation": ("other", "'clips'"),
    "both": ("value", "of rank 0"),
    "memory": ("other", "CUDA out of memory"),
    "batches": ("value", "shard 3 is missing"),
    "rewind": FULL,
    "unreadable": ("system", "[Errno 5] Input/output error"),
    "save": FULL,
    "save, no disk's error": ("other", "bad tensor"),
    "save in the background": FULL,
    "saved long ago": FULL,
    "no thread": ("other", "can't start new thread"),
    "nothing": (None, None),
}


@pytest.mark.slow
def test_one_process_fails_and_both_say_so(tmp_path: Path) -> None:
    """Seventeen times in one process group: a process left behind would spoil the next training.

    By the same words: had one waited for the group's ten minutes, its words would be of that.
    """
    done = torchrun(tmp_path, script=failing_training.__file__, seconds=600)
    told = [json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in (0, 1)]
    assert done.returncode == 0, done.stderr
    assert told[0].keys() == told[1].keys() == {*EXPECTED, "damaged", "log"}
    for name, (kind, text) in told[0].items():
        assert told[1][name] == [kind, text], name
        if name in EXPECTED:
            assert (kind, text) == EXPECTED[name]
    assert told[0]["damaged"][0] == "value" and "no readable training state" in told[0]["damaged"][1]
    lines = (tmp_path / "save4" / "log.jsonl").read_text().splitlines()
    assert 20 <= len(lines) < 30, "at a line, not at the end"
    assert "No such file or directory" in told[0]["log"][1]


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no such layer"),
        DivergedError("NaN"),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a/b"),
        OSError("no number"),
        MemoryError("host"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_what_another_process_is_told(error: Exception) -> None:
    made = agreement._made(json.loads(agreement._told(error)))
    assert str(made) == str(error)
    for kind in (ValueError, DivergedError, OSError, MemoryError, RuntimeError):
        assert isinstance(made, kind) == isinstance(error, kind)
    if isinstance(error, OSError):
        assert isinstance(made, OSError) and made.errno == error.errno


def test_of_one_process_nothing_changes() -> None:
    error = KeyError("own")
    with pytest.raises(KeyError) as caught, all_or_none():
        raise error
    assert caught.value is error
    with all_or_none():
        pass


class Store(dict[str, bytes]):
    """Of a process whose other is beyond reach."""

    def add(self, key: str, amount: int) -> int:
        return amount

    def set(self, key: str, value: str) -> None:
        self[key] = value.encode()

    def check(self, keys: list[str]) -> bool:
        return all(key in self for key in keys)


def test_who_fails_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process may hang in what both should have done."""
    monkeypatch.setattr(agreement, "world_size", lambda: 2)
    monkeypatch.setattr(agreement, "_GRACE_S", 0.1)
    monkeypatch.setattr(torch.distributed.distributed_c10d, "_get_default_store", Store)
    with pytest.raises(ValueError, match="own"), all_or_none():
        raise ValueError("own")


def test_a_process_that_was_killed_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else knows: the one that never came is named once the others have waited long enough."""
    store = distributed.HashStore()
    monkeypatch.setattr(distributed.distributed_c10d, "_get_default_store", lambda: store)
    monkeypatch.setattr(agreement, "rank", lambda: 0)
    monkeypatch.setattr(agreement, "world_size", lambda: 3)
    monkeypatch.setattr(agreement, "_SILENCE_S", 0.2)
    store.set("qvgen/agreed/1/2", "")
    with pytest.raises(RuntimeError, match="process 1 has said nothing"):
        agreement.raise_first(None)
