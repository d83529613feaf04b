"""Stage 4: what a cell costs: time of a denoising step, memory, bytes of weights.

The step is one call of the transformer on ``LoadedModel.step_inputs()``. On cpu it runs on one
thread, alone, and ``peak_mem_mb`` is the highest resident size of the whole worker process (Python,
libraries and pipeline included) during the steps; on cuda it is the allocator's peak. Latency of a
``fake``-quantized cell is that of its float emulation and says nothing about low-bit kernels.
``weights_mb`` is what the weights take as stored, ``executed_mb`` what they take while running.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalharness.cells import Cell
from evalharness.executor import Task
from evalharness.hashing import digest
from evalharness.records import read_prepare
from evalharness.runfolder import CellFolder
from evalharness.runstate import RunState, StageCount
from evalharness.session import Session
from evalharness.store import atomic_write_json, read_json

if TYPE_CHECKING:
    from torch import nn

__all__ = ["profile_hash", "run", "work"]

VERSION = 2
WARM_UP_STEPS = 2
MAX_STEPS = 15
MAX_SECONDS = 1.5
_MEGABYTE = 1e6


def run(state: RunState) -> StageCount:
    """Measure the cells that have no current ``profile.json``, one at a time."""
    if not state.plan.profile:
        return StageCount()
    tasks, kept = [], 0
    for cell in state.cells:
        files = state.folder.cell(cell.id)
        wanted = profile_hash(state.identity, files)
        if (read_json(files.profile) or {}).get("hash") == wanted:
            kept += 1
        else:
            tasks.append(_task(state, cell, wanted))
    done = failed = 0
    if tasks:
        for outcome in state.run_tasks("profile", "cell", tasks, width=1):
            if outcome.failure is None:
                record = {"hash": outcome.task.payload["hash"], **outcome.value}
                atomic_write_json(state.folder.cell(outcome.task.key).profile, record)
                done += 1
            else:
                state.console.warn(f"{outcome.task.key}: could not be profiled: {outcome.error}")
                failed += 1
    return StageCount(done=done, kept=kept, failed=failed)


def profile_hash(identity: Mapping[str, Any], files: CellFolder) -> str | None:
    """Hash of all that a profile depends on; None when the cell is not prepared."""
    record = read_prepare(files)
    return None if record is None else digest(["profile", VERSION, dict(identity), record["hash"]])


def work(session: Session, payload: Mapping[str, Any]) -> dict[str, Any]:
    """In a worker: measure one cell."""
    import torch

    cell = Cell.from_json(payload["cell"])
    folder = None if payload["checkpoint"] is None else Path(payload["checkpoint"])
    loaded = session.activate(cell, folder, payload["key"])
    inputs = loaded.step_inputs()
    with torch.inference_mode():
        times, peak = _measure(lambda: loaded.transformer(**inputs), session.spec.device)
    return {
        "step_ms": round(statistics.median(times) * 1000, 3),
        "steps_timed": len(times),
        "peak_mem_mb": None if peak is None else round(peak / _MEGABYTE, 1),
        "weights_mb": round(_stored_bytes(loaded.transformer, folder) / _MEGABYTE, 3),
        "executed_mb": round(_tensor_bytes(loaded.transformer) / _MEGABYTE, 3),
        "checkpoint_mb": None if folder is None else round(_folder_bytes(folder) / _MEGABYTE, 3),
        "device": _device_name(session.spec.device),
    }


def _task(state: RunState, cell: Cell, wanted: str | None) -> Task:
    prepared = state.prepared[cell.id]
    payload = {
        "cell": cell.to_json(),
        "checkpoint": None if prepared.checkpoint is None else str(prepared.checkpoint),
        "key": prepared.key,
        "hash": wanted,
    }
    return Task(kind="profile", key=cell.id, payload=payload)


def _measure(step: Callable[[], object], device: str) -> tuple[list[float], int | None]:
    """Seconds of each timed step, and the peak memory in bytes where it can be known."""
    synchronize = _synchronizer(device)
    for _ in range(WARM_UP_STEPS):
        step()
    synchronize()
    _reset_peak(device)
    times: list[float] = []
    while len(times) < MAX_STEPS and sum(times) < MAX_SECONDS:
        start = time.perf_counter()
        step()
        synchronize()
        times.append(time.perf_counter() - start)
    return times, _peak(device)


def _synchronizer(device: str) -> Callable[[], object]:
    import torch

    return torch.cuda.synchronize if device == "cuda" else lambda: None


def _reset_peak(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM


def _peak(device: str) -> int | None:
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def _tensor_bytes(module: nn.Module) -> int:
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _stored_bytes(module: nn.Module, folder: Path | None) -> int:
    """Weights on disk: the checkpoint's safetensors; at full precision two bytes a number."""
    if folder is None:
        return 2 * sum(tensor.numel() for tensor in module.parameters())
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _device_name(device: str) -> str:
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    return "cpu, 1 thread"
