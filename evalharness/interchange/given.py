"""Scores a folder of videos that anyone made: it becomes a run folder with one cell, which is scored.

The videos stay where they are; the run folder holds links to them. Doing it again scores what is
new or changed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evalharness.api import Bits, EvalProtocol, GenerationSettings, Sample
from evalharness.cells import GIVEN, Cell
from evalharness.config import RunConfig, comma_list
from evalharness.console import Console
from evalharness.device import resolve_device
from evalharness.errors import UserError
from evalharness.executor import build_executor
from evalharness.hash_memory import HashMemory
from evalharness.hashing import digest
from evalharness.interchange.found import Found, by_manifest, by_name
from evalharness.names import check_name
from evalharness.plan import RunPlan, chosen_metrics, installed_metrics, select_dimensions, worker_count
from evalharness.planfile import record_cells
from evalharness.records import read_prepare
from evalharness.recovery import recover
from evalharness.registry import Registry
from evalharness.runfolder import CellFolder, RunFolder
from evalharness.runlog import PREPARED, keep
from evalharness.runner import Summary, run_stages, worker_spec
from evalharness.runstate import Prepared, RunState
from evalharness.sampling import samples_by_dimension, samples_of
from evalharness.stages.samples import cell_hash, latest_samples, sample_hash

__all__ = ["score_given"]

# What is not known of such videos; a plan must have it.
_UNKNOWN = GenerationSettings(steps=0, guidance=0.0, frames=0, height=0, width=0, fps=0, scheduler="unknown")


def score_given(
    folder: Path,
    config: RunConfig,
    registry: Registry,
    console: Console,
    *,
    name: str,
    manifest: Path | None = None,
    follow_links: bool = False,
) -> Summary:
    """Recognise, score and report.

    Args:
        folder: of the videos.
        config: of it ``protocol``, ``output``, ``dimensions``, ``metric``, ``device``, ``workers``,
            ``executor`` and ``plugin`` count.
        registry: the plugins.
        console: for what is missing or left out, one line each, and progress.
        name: of the row in the tables.
        manifest: a table that says which file is which; by default the files' names do.
        follow_links: whether files of the manifest may be links to outside of the folder.

    Raises:
        UserError: an unknown protocol or dimension, no metric for it, or no video of it in ``folder``.
    """
    assert config.protocol is not None and config.output is not None
    check_name(name, "--name")
    protocol: EvalProtocol = registry.get("protocols", config.protocol)()
    plan = _plan(protocol, config, registry, name)
    [cell] = plan.cells
    everything = samples_of(
        plan.protocol_prompts, cell.seed, plan.samples_per_prompt, plan.samples_by_dimension
    )
    if manifest is None:
        found = by_name(folder, everything)
    else:
        found = by_manifest(folder, manifest, everything, follow_links=follow_links)
    for note in found.notes():
        console.warn(note)
    if not found.files:
        how = "the manifest" if manifest else "{prompt}-{number}.mp4, {sample id}.mp4"
        raise UserError(f"{folder}: no video of protocol {config.protocol} is there (names: {how})")
    if plan.unscored:
        console.warn(f"no metric is installed for {', '.join(plan.unscored)}: not scored")
    return _score(RunFolder(plan.output), plan, registry, console, found, everything)


def _plan(protocol: EvalProtocol, config: RunConfig, registry: Registry, name: str) -> RunPlan:
    wanted = select_dimensions(protocol, comma_list(config.dimensions))
    chosen = chosen_metrics(protocol, config.metric, registry)
    metrics = installed_metrics(protocol, wanted, registry, chosen)
    if not metrics:
        raise UserError(
            f"protocol {config.protocol}: no metric is installed for {', '.join(wanted)}; "
            "see: evalharness ls metrics"
        )
    prompts = tuple(protocol.prompts())
    return RunPlan(
        model=name,
        model_fingerprint=GIVEN,
        protocol=str(config.protocol),
        protocol_prompts=prompts,
        prompts=prompts,
        samples_per_prompt=protocol.samples_per_prompt,
        metrics=metrics,
        chosen_metrics=chosen,
        settings=_UNKNOWN,
        cells=(Cell(model=name, method=GIVEN, label=name, bits=Bits(0, 0), seed=0),),
        device=resolve_device(config.device),
        batch_size=1,
        skip_layers="none",
        workers=worker_count(config),
        executor=config.executor,
        load="never",
        train=False,
        profile=False,
        output=Path(str(config.output)),
        plugin_files=tuple(config.plugin),
        unscored=tuple(dimension for dimension in wanted if dimension not in metrics),
        samples_by_dimension=samples_by_dimension(protocol),
    )


def _score(
    run: RunFolder,
    plan: RunPlan,
    registry: Registry,
    console: Console,
    found: Found,
    everything: Sequence[Sample],
) -> Summary:
    identity = {
        "model": plan.model,
        "model_fingerprint": plan.model_fingerprint,
        "protocol": plan.protocol,
        "prompts_sha256": digest(plan.protocol_prompts),
        "samples_per_prompt": plan.samples_per_prompt,
        "skip_layers": plan.skip_layers,
        "device": "unknown",
    }
    [cell] = plan.cells
    with run.lock():
        record_cells(run, identity, plan.cells, console)
        recover(run, console)
        files = run.cell(cell.id)
        _prepare(run, cell)
        _take_in(files, identity, found, everything, run.hashes)
        state = RunState(
            plan=plan,
            registry=registry,
            folder=run,
            executor=build_executor(plan.executor, worker_spec(plan), plan.workers),
            console=console,
            identity=identity,
            config=plan.record(),
            prepared={cell.id: Prepared(checkpoint=None, key="")},
        )
        return run_stages(state, ("score", "aggregate"))


def _prepare(run: RunFolder, cell: Cell) -> None:
    record: dict[str, Any] = {
        "hash": GIVEN,
        "method": GIVEN,
        "source": "given",
        "execution": "unknown",
        "config": {},
        "checkpoint": None,
        "checkpoint_sha256": None,
        "train_minutes": None,
    }
    known = None
    with contextlib.suppress(UserError):  # damaged, and the log has no copy
        known = read_prepare(run.cell(cell.id))
    if known != record:
        keep(run, PREPARED, cell.id, record)


def _take_in(
    files: CellFolder, identity: Mapping[str, Any], found: Found, everything: Sequence[Sample], hashes: Path
) -> None:
    """Link the videos into the cell and record each; one that is gone becomes missing."""
    shared = cell_hash(identity, files)
    assert shared is not None, "it was prepared just now"
    known = latest_samples(files)
    fresh = []
    memory = HashMemory(hashes)
    files.videos.mkdir(parents=True, exist_ok=True)
    for sample in everything:
        path, link = found.files.get(sample.id), files.video(sample.id)
        if path is not None:
            _link(link, path.resolve())
        line = _record(sample, None if path is None else link, sample_hash(shared, sample), memory)
        if line != known.get(sample.id) and (path is not None or sample.id in known):
            fresh.append(line)
    memory.save()
    files.samples.append(fresh)


def _record(sample: Sample, path: Path | None, wanted: str, memory: HashMemory) -> dict[str, Any]:
    return {
        "sample": sample.id,
        "prompt_id": sample.prompt.id,
        "index": sample.index,
        "seed": sample.seed,
        "hash": wanted,
        "status": "failed" if path is None else "ok",
        "error": "the file is gone" if path is None else None,
        "sha256": None if path is None else memory.sha256(path),
        "bytes": None if path is None else path.stat().st_size,
        "ms": None,
    }


def _link(link: Path, target: Path) -> None:
    if link.is_symlink() and link.readlink() == target:
        return
    link.unlink(missing_ok=True)
    link.symlink_to(target)
