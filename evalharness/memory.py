"""How much memory one call takes, measured so that it tells what the call does from what was there."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

__all__ = ["CallMemory", "Peak", "call_memory", "host_memory_left", "peak_within"]

CALLS = 3
_SELF = Path("/proc/self")
_MEMINFO = Path("/proc/meminfo")
_GROUPS = Path("/sys/fs/cgroup")  # a container sees its own group on top
# Of a control group: limit, use, and what of its statistics are files; version 2, then version 1.
_LIMITS = ("memory.max", "memory.current", ("active_file", "inactive_file"))
_OLD_LIMITS = (
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_active_file", "total_inactive_file"),
)
_SLACK = 1_000_000  # the kernel counts resident pages in batches


@dataclass(frozen=True, slots=True)
class CallMemory:
    """Bytes; None where they cannot be known.

    Attributes:
        taken: the most that a call took on top of what was held just before it.
        total: the most that was held while it ran: cpu, the resident size of the whole process; cuda,
            the allocator's tensors of the whole process.
    """

    taken: int | None
    total: int | None


@dataclass(slots=True)
class Peak:
    """The most bytes held at a time; None where it cannot be known.

    Attributes:
        allocated: of tensors, by the GPU's allocator.
        reserved: what that allocator kept from the GPU.
        process: resident size of the process.
        device: what was in use of the GPU when the block ended, as the driver says: this process with its
            context and its libraries' workspaces, and every other one on it.
    """

    allocated: int | None = None
    reserved: int | None = None
    process: int | None = None
    device: int | None = None


@contextmanager
def peak_within(device: str) -> Iterator[Peak]:
    """What is filled in when the block ends. Blocks must not be nested: each starts the count anew.

    It does not wait for a GPU: its allocator counts when tensors are made, not when they are used.
    """
    peak = Peak()
    is_reset = _reset_high_water()
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
    yield peak
    if device == "cuda":
        peak.allocated = torch.cuda.max_memory_allocated()
        peak.reserved = torch.cuda.max_memory_reserved()
        free, whole = torch.cuda.mem_get_info()
        peak.device = whole - free
    peak.process = _status().get("VmHWM") if is_reset else None


def call_memory(call: Callable[[], object], device: str) -> CallMemory:
    """Measure ``call``, which must have run before: first calls load kernels and libraries.

    On cuda the allocator counts exactly. On cpu it is the high-water mark of the resident size over
    the resident size before, after all free memory was given back to the system (otherwise a call
    would find room for itself in what the one before left behind). The largest of three calls
    counts; the kernel's count is good to about a megabyte. Needs Linux and the GNU C library.
    """
    measure = _on_cuda if device == "cuda" else _on_cpu
    found = [measure(call) for _ in range(CALLS)]
    return CallMemory(_largest(memory.taken for memory in found), _largest(memory.total for memory in found))


def host_memory_left() -> int | None:
    """Bytes that processes may still take, of the machine, their container or their job; None if unknown."""
    known = [left for left in (_left_on_machine(), *_left_in_groups()) if left is not None]
    return min(known, default=None)


def _left_on_machine() -> int | None:
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def _left_in_groups() -> Iterator[int | None]:
    """Of this process's group and of each around it, which may have the limit (a Slurm job's has)."""
    try:
        lines = (_SELF / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for controllers, _, path in (line.partition(":")[2].partition(":") for line in lines):
        if controllers in ("", "memory"):  # version 2 names none
            top, names = (_GROUPS / controllers, _OLD_LIMITS) if controllers else (_GROUPS, _LIMITS)
            group = PurePosixPath(path.lstrip("/"))
            yield from (_left_in_group(top / each, *names) for each in (group, *group.parents))


def _left_in_group(group: Path, limit: str, used: str, files: tuple[str, ...]) -> int | None:
    """Files in its page cache count as free: the kernel drops them first."""
    try:
        most = int((group / limit).read_text(encoding="ascii"))  # "max": none
        taken = int((group / used).read_text(encoding="ascii"))
        kinds = dict(
            line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines()
        )
        return max(0, most - taken + sum(int(kinds[name]) for name in files))
    except (OSError, ValueError, KeyError):
        return None


def _largest(sizes: Iterable[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return max(known, default=None)


def _on_cuda(call: Callable[[], object]) -> CallMemory:
    import torch

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    return CallMemory(taken=peak - before, total=peak)


def _on_cpu(call: Callable[[], object]) -> CallMemory:
    is_trimmed = _give_back()
    is_reset = _reset_high_water()
    before = _status()
    call()
    peak = _status().get("VmHWM")
    if peak is None or not is_reset or before["VmHWM"] - before["VmRSS"] > _SLACK:
        return CallMemory(None, None)
    return CallMemory(taken=max(0, peak - before["VmRSS"]) if is_trimmed else None, total=peak)


def _give_back() -> bool:
    """Return free memory to the system; False where the C library cannot."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return False
    return True


def _reset_high_water() -> bool:
    try:
        (_SELF / "clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _status() -> dict[str, int]:
    """Sizes of this process in bytes: ``VmRSS`` now, ``VmHWM`` at most since the reset."""
    try:
        lines = (_SELF / "status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines if line.startswith(("VmHWM:", "VmRSS:")))
    return {name.rstrip(":"): int(kilobytes) * 1024 for name, kilobytes, *_ in fields}
