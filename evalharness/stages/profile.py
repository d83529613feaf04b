"""Stage 4: what a cell costs: time of a denoising step, memory, bytes of weights.

The step is one call of the transformer on ``LoadedModel.step_inputs()``. On cpu it runs on one
thread, alone, and is timed by the wall clock; on cuda between two events of the stream. Latency of a
``fake``-quantized cell is that of its float emulation and says nothing about low-bit kernels.

``weights_mb`` is what the weights take as stored, ``executed_mb`` what all tensors of the transformer
take while it runs, ``step_mem_mb`` what a step takes on top of what was held before it, and
``peak_mem_mb`` the last two together: the transformer at work, without the other parts of the
pipeline and without what else the process holds, so that rows can be compared. ``process_mem_mb``
has all of that in it: on cpu the resident size of the worker process (Python and libraries too), on
cuda the allocator's peak (with the full-precision transformer that a worker keeps).

Beside what is measured stands what is counted: ``evalharness.cost``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalharness.cells import Cell
from evalharness.cost import cost_record
from evalharness.executor import Task
from evalharness.hashing import digest
from evalharness.memory import call_memory
from evalharness.records import read_prepare
from evalharness.runfolder import CellFolder
from evalharness.runstate import RunState, StageCount
from evalharness.session import Session
from evalharness.store import atomic_write_json, read_json

if TYPE_CHECKING:
    from torch import nn

__all__ = ["profile_hash", "run", "work"]

VERSION = 4
WARM_UP_STEPS = {"cpu": 2, "cuda": 10}  # a GPU loads its kernels one by one when first used
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
    device = session.spec.device
    with torch.inference_mode():
        times, processor = _seconds(lambda: loaded.transformer(**inputs), device)
        memory = call_memory(lambda: loaded.transformer(**inputs), device)
        counted = cost_record(loaded.transformer, lambda: loaded.transformer(**inputs))
    executed = _tensor_bytes(loaded.transformer)
    return {
        "step_ms": round(statistics.median(times) * 1000, 3),
        "step_cpu_ms": round(statistics.median(processor) * 1000, 3) if device == "cpu" else None,
        "steps_timed": len(times),
        "peak_mem_mb": None if memory.taken is None else _megabytes(executed + memory.taken),
        "step_mem_mb": _megabytes(memory.taken),
        "process_mem_mb": _megabytes(memory.total),
        "weights_mb": _megabytes(_stored_bytes(loaded.transformer, folder)),
        "executed_mb": _megabytes(executed),
        "checkpoint_mb": None if folder is None else _megabytes(_folder_bytes(folder)),
        "device": _device_name(device),
        **counted,
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


def _seconds(step: Callable[[], object], device: str) -> tuple[list[float], list[float]]:
    """Of each timed step, after the warm-up: by the device's own clock, and of processor time.

    On cpu the processor time leaves out the waiting for a core that other processes use.
    """
    for _ in range(WARM_UP_STEPS[device]):
        step()
    once = _once_on_cuda if device == "cuda" else _once_on_cpu
    times: list[float] = []
    processor: list[float] = []
    while len(times) < MAX_STEPS and sum(times) < MAX_SECONDS:
        before = time.process_time()
        times.append(once(step))
        processor.append(time.process_time() - before)
    return times, processor


def _once_on_cpu(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _once_on_cuda(step: Callable[[], object]) -> float:
    """Between two events of the stream, which is empty before the first and waited for after the second."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    step()
    end.record()
    torch.cuda.synchronize()
    milliseconds: float = start.elapsed_time(end)
    return milliseconds / 1000


def _megabytes(size: int | None) -> float | None:
    return None if size is None else round(size / _MEGABYTE, 3)


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
