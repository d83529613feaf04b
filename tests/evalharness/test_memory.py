"""Memory of a call: against blocks of known size, and where the system does not tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evalharness import memory
from evalharness.memory import CallMemory, call_memory, host_memory_left

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


def test_memory_left_is_the_machine_s_or_the_container_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit of 1 GiB, of which 700 MiB are used, 200 of them by files that the kernel would drop."""
    meminfo, mib = tmp_path / "meminfo", 1 << 20
    monkeypatch.setattr(memory, "_MEMINFO", meminfo)
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    monkeypatch.setattr(memory, "_SELF", tmp_path)
    (tmp_path / "cgroup").write_text("0::/\n")
    assert host_memory_left() is None
    meminfo.write_text("MemTotal: 9000000 kB\nMemAvailable:  2097152 kB\n")
    assert host_memory_left() == 2048 * mib
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text(f"{700 * mib}\n")
    stat = f"anon 1\nactive_file {50 * mib}\ninactive_file {150 * mib}\n"
    (tmp_path / "memory.stat").write_text(stat)
    assert host_memory_left() == 2048 * mib
    (tmp_path / "memory.max").write_text(f"{1024 * mib}\n")
    assert host_memory_left() == 524 * mib
    (tmp_path / "memory.stat").write_text("anon 1\n")
    assert host_memory_left() == 2048 * mib
    (tmp_path / "cgroup").unlink()
    assert host_memory_left() == 2048 * mib


@pytest.mark.parametrize(
    ("top", "lines", "limit", "used", "prefix"),
    [
        (".", "0::/slurm/job_7/step_0\n", "memory.max", "memory.current", ""),
        (
            "memory", "5:cpu,cpuacct:/slurm\n4:memory:/slurm/job_7/step_0\n0::/\n",
            "memory.limit_in_bytes", "memory.usage_in_bytes", "total_",
        ),
    ],
)  # fmt: skip
def test_the_limit_of_a_job_counts_for_its_steps(
    top: str, lines: str, limit: str, used: str, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 GiB for the job, of which 3 are used; its step and the machine have none. Both versions of groups."""
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    monkeypatch.setattr(memory, "_SELF", tmp_path)
    (tmp_path / "meminfo").write_text(f"MemAvailable: {64 << 20} kB\n")
    (tmp_path / "cgroup").write_text(lines)
    step = tmp_path / top / "slurm" / "job_7" / "step_0"
    step.mkdir(parents=True)
    none = "max" if top == "." else "9223372036854771712"
    for group, most, taken in ((step, none, 1 << 30), (step.parent, str(8 << 30), 3 << 30)):
        (group / limit).write_text(most)
        (group / used).write_text(str(taken))
        (group / "memory.stat").write_text(f"{prefix}active_file 0\n{prefix}inactive_file {1 << 30}\n")
    assert host_memory_left() == 6 << 30
