"""Stage 4: what a cell costs: times of a denoising step and of a video's phases, memory, bytes of weights.

The step is one call of the transformer on ``LoadedModel.step_inputs()``. On cpu it runs on one
thread, alone, and is timed by the wall clock; on cuda between two events of the stream. It is timed in
turns with the full-precision transformer of the same worker; ``step_speedup`` is the ratio of the
two. A ``fake``-quantized cell has none: its latency is that of its float emulation and says nothing
about low-bit kernels. ``phases`` are those of one video (``evalharness.phases``), ``conditions`` what
else decides a time.

``weights_mb`` is what the weights take as stored, ``executed_mb`` what all tensors of the transformer
take while it runs, ``step_mem_mb`` what a step takes on top of what was held before it, and
``peak_mem_mb`` the last two together: the transformer at work, without the other parts of the
pipeline and without what else the process holds, so that rows can be compared. ``process_mem_mb``
has all of that in it: on cpu the resident size of the worker process (Python and libraries too), on
cuda the allocator's peak (with the full-precision transformer that a worker keeps).

Beside what is measured stands what is counted: ``evalharness.cost``. With ``--peers`` the reference's record
has other libraries' forms of the transformer, each timed in turns with it (``evalharness.peers``).
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalharness.attention import choose_, chosen
from evalharness.cells import Cell
from evalharness.conditions import clocks, conditions, tokens_of
from evalharness.cost import cost_record
from evalharness.executor import Task
from evalharness.hashing import digest
from evalharness.memory import call_memory
from evalharness.peers import PEERS, AbsentError, build_peer, compiler_settings_kept, held_bytes
from evalharness.phases import measure_phases
from evalharness.records import read_prepare
from evalharness.runfolder import CellFolder
from evalharness.runlog import PROFILED
from evalharness.runstate import RunState, StageCount
from evalharness.session import Session
from evalharness.store import read_record
from evalharness.timing import Times, alternate, spread
from evalharness.versions import package_version

if TYPE_CHECKING:
    from torch import nn

    from evalharness.api import LoadedModel

__all__ = ["profile_hash", "run", "work"]

VERSION = 5
PHASE_SEED = 0
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
        record = read_record(files.profile) or {}
        if record.get("hash") == wanted and set(_peers(state, cell)) <= _measured_peers(record):
            kept += 1
        else:
            tasks.append(_task(state, cell, wanted))
    done = failed = 0
    if tasks:
        for outcome in state.run_tasks("profile", "cell", tasks, width=1):
            if outcome.failure is None:
                record = {"hash": outcome.task.payload["hash"], **outcome.value}
                cell = Cell.from_json(outcome.task.payload["cell"])
                path = state.folder.cell(cell.id).profile
                before = read_record(path) or {}
                if before.get("peers") and before.get("hash") == record["hash"]:
                    record["peers"] = {**before["peers"], **record.get("peers", {})}
                state.keep(PROFILED, cell, record)
                done += 1
            else:
                state.console.warn(f"{outcome.task.key}: could not be profiled: {outcome.error}")
                failed += 1
    return StageCount(done=done, kept=kept, failed=failed)


def profile_hash(identity: Mapping[str, Any], files: CellFolder) -> str | None:
    """Hash of all that a profile depends on; None when the cell is not prepared."""
    record = read_prepare(files)
    return None if record is None else digest(["profile", VERSION, dict(identity), record["hash"]])


def _measured_peers(record: Mapping[str, Any]) -> set[str]:
    """A library that was absent may have been installed since, or be another version now."""
    return {name for name, peer in record.get("peers", {}).items() if peer.get("library") == _library(name)}


def _library(name: str) -> str | None:
    """The version of a peer's library that is here."""
    library = PEERS[name].library if name in PEERS else ""
    return package_version(library) if library else None


def _peers(state: RunState, cell: Cell) -> tuple[str, ...]:
    """They stand beside the full-precision row of one seed."""
    first = next((one for one in state.cells if one.is_reference), None)
    return state.plan.peers if cell is first else ()


def work(session: Session, payload: Mapping[str, Any]) -> dict[str, Any]:
    """In a worker: measure one cell."""
    import torch

    cell = Cell.from_json(payload["cell"])
    folder = None if payload["checkpoint"] is None else Path(payload["checkpoint"])
    execution = payload.get("execution", "real" if folder is None else "fake")
    loaded = session.activate(cell, folder, payload["key"])
    inputs, device = loaded.step_inputs(), session.spec.device
    settings = getattr(session.model, "settings", None)
    surroundings = conditions(device, chosen(loaded.transformer), getattr(settings, "steps", None))

    def step() -> object:
        return loaded.transformer(**inputs)

    with torch.inference_mode(), session.at_work(loaded.transformer):
        times = None
        if folder is not None:
            with contextlib.suppress(torch.OutOfMemoryError):  # of two transformers; only one is asked for
                times = _timed(session, step, session.beside(), inputs)
        times = times or _timed(session, step, None, inputs)
        surroundings["clocks"] = clocks(device)
        memory = call_memory(step, device)
        counted = cost_record(loaded.transformer, step)
        surroundings["tokens"] = tokens_of(loaded.transformer, step)
    executed = _tensor_bytes(loaded.transformer)
    prompt = next(iter(session.prompts.values()))
    peers = {name: _peer(name, session, inputs, execution) for name in payload.get("peers", ())}
    return {
        **_step_times(times, device, execution),
        **({"peers": peers} if peers else {}),
        "peak_mem_mb": None if memory.taken is None else _megabytes(executed + memory.taken),
        "step_mem_mb": _megabytes(memory.taken),
        "process_mem_mb": _megabytes(memory.total),
        "weights_mb": _megabytes(_stored_bytes(loaded.transformer, folder)),
        "executed_mb": _megabytes(executed),
        "checkpoint_mb": None if folder is None else _megabytes(_folder_bytes(folder)),
        "device": _device_name(device),
        "execution": execution,
        **counted,
        "phases": measure_phases(
            loaded, prompt.text, PHASE_SEED, device, statistics.median(times["cell"].seconds)
        ),
        "conditions": surroundings,
    }


@compiler_settings_kept()
def _peer(name: str, session: Session, inputs: Mapping[str, Any], execution: str) -> dict[str, Any]:
    """Times of another library's form of the transformer, in turns with full precision; or why not."""
    import torch

    loaded, device = session.full_precision(), session.spec.device
    pristine = loaded.transformer
    facts = {"summary": PEERS[name].summary, "bits": PEERS[name].bits, "library": _library(name)}
    try:
        built = choose_(build_peer(name, pristine, _linears(session, loaded)), session.spec.attention)
        calls: dict[str, Callable[[], object]] = {
            "cell": lambda: built(**inputs),
            "reference": lambda: pristine(**inputs),
        }
        with torch.inference_mode(), session.at_work(pristine), session.at_work(built):
            calls["cell"]()  # what a library or a compiler does at the first call belongs to no step
            times = alternate(calls, device, most=MAX_STEPS, most_seconds=MAX_SECONDS)
    except AbsentError as error:
        return {**facts, "absent": str(error)}
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        return {**facts, "absent": f"{name} failed when it was called: {type(error).__name__}: {first}"}
    return {
        **facts,
        **_step_times(times, device, execution),
        "executed_mb": _megabytes(held_bytes(built)),
    }


def _linears(session: Session, loaded: LoadedModel) -> list[str]:
    """Names of the linears that every method of this run quantizes."""
    from torch import nn

    skipped = set(loaded.skip_layers(session.spec.skip_layers))
    return [
        name
        for name, part in loaded.transformer.named_modules()
        if type(part) is nn.Linear and name not in skipped
    ]


def _timed(
    session: Session, step: Callable[[], object], reference: nn.Module | None, inputs: Mapping[str, Any]
) -> dict[str, Times]:
    """Of the cell, and in turns with it of full precision."""
    calls = {"cell": step}
    device = session.spec.device
    if reference is None:
        return alternate(calls, device, most=MAX_STEPS, most_seconds=MAX_SECONDS)
    with session.at_work(reference):
        calls["reference"] = lambda: reference(**inputs)
        return alternate(calls, device, most=MAX_STEPS, most_seconds=MAX_SECONDS)


def _step_times(times: Mapping[str, Times], device: str, execution: str) -> dict[str, Any]:
    """Of the cell's step, and of full precision in the same turns; no ratio for a simulation."""
    cell, reference = times["cell"], times.get("reference")
    record = {
        **spread(cell.seconds, "step_"),
        "step_cpu_ms": round(statistics.median(cell.processor) * 1000, 3) if device == "cpu" else None,
        "steps_timed": len(cell.seconds),
        **spread([] if reference is None else reference.seconds, "reference_step_"),
    }
    told = reference is not None and execution != "fake"
    return {
        **record,
        "step_speedup": round(record["reference_step_ms"] / record["step_ms"], 4) if told else None,
    }


def _task(state: RunState, cell: Cell, wanted: str | None) -> Task:
    prepared = state.prepared[cell.id]
    record = read_prepare(state.folder.cell(cell.id)) or {}
    payload = {
        "cell": cell.to_json(),
        "checkpoint": None if prepared.checkpoint is None else str(prepared.checkpoint),
        "key": prepared.key,
        "hash": wanted,
        "execution": record.get("execution", "fake"),
        "peers": list(_peers(state, cell)),
    }
    return Task(kind="profile", key=cell.id, payload=payload)


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
