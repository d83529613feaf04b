"""Memory of a call: against blocks of known size, and where the system does not tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evalharness import memory
from evalharness.memory import CallMemory, call_memory

BLOCK = 40_000_000
CLOSE = 4_000_000


def touch(size: int) -> np.ndarray:
    return np.ones(size, np.uint8)


@pytest.mark.parametrize("size", [BLOCK, 2 * BLOCK])
def test_a_block_that_is_freed_again_counts_whole(size: int) -> None:
    touch(size)  # warm: what it leaves behind must not hide the next one
    found = call_memory(lambda: touch(size), "cpu")
    assert found.taken == pytest.approx(size, abs=CLOSE)
    assert found.total is not None and found.taken is not None
    assert found.total > found.taken


def test_many_small_blocks_count_too() -> None:
    """They come from the heap, which keeps what is freed."""
    found = call_memory(lambda: [touch(2000) for _ in range(BLOCK // 2000)], "cpu")
    assert found.taken == pytest.approx(BLOCK, rel=0.2)


def test_what_was_held_before_does_not_count() -> None:
    held = touch(BLOCK)
    found = call_memory(lambda: held.sum(), "cpu")
    assert found.taken is not None and found.taken < CLOSE
    assert found.total is not None and found.total > BLOCK


def test_a_peak_before_the_call_does_not_count() -> None:
    touch(5 * BLOCK)
    found = call_memory(lambda: touch(BLOCK), "cpu")
    assert found.taken == pytest.approx(BLOCK, abs=CLOSE)


def test_without_procfs_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_SELF", tmp_path / "nothing")
    assert call_memory(lambda: None, "cpu") == CallMemory(None, None)


def test_a_mark_that_cannot_be_reset_is_no_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system takes the request and does nothing: the mark stays where it was."""
    (tmp_path / "status").write_text("Name: x\nVmHWM:   900000 kB\nVmRSS:   300000 kB\n")
    monkeypatch.setattr(memory, "_SELF", tmp_path)
    assert call_memory(lambda: None, "cpu") == CallMemory(None, None)


def test_where_free_memory_cannot_be_given_back_only_the_total_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "_give_back", lambda: False)
    found = call_memory(lambda: touch(BLOCK), "cpu")
    assert found.taken is None
    assert found.total is not None and found.total > BLOCK
