"""What ``run --dry-run`` prints: the work that the command would do, and about how long it takes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from evalharness.api import Method, Model, Needs
from evalharness.cells import Cell, build_method
from evalharness.checkpoints import display_path, find_checkpoints
from evalharness.console import Console
from evalharness.hashing import jsonable
from evalharness.modeloptions import build_model
from evalharness.plan import RunPlan
from evalharness.planfile import check_identity, read_plan_file
from evalharness.registry import Registry
from evalharness.runfolder import RunFolder
from evalharness.runlog import warn_of_damage
from evalharness.stages.samples import latest_samples, valid_samples

__all__ = ["describe", "training_steps"]

# Where a model does not say better (optional attributes ``video_seconds``, ``train_step_seconds``, or
# ``predicted_seconds(device)``).
_DEFAULT_VIDEO_SECONDS = 5.0
_DEFAULT_STEP_SECONDS = 1.0
_SAMPLES_A_STEP = 8  # that ``train_step_seconds`` is for


def describe(plan: RunPlan, registry: Registry) -> str:
    """The plan as text. Reads the run folder if there is one; writes nothing.

    Raises:
        UserError: the folder belongs to a different run or holds other things, or ``--load`` lacks a
            checkpoint.
    """
    published = find_checkpoints(plan, registry)
    folder = RunFolder(plan.output)
    folder.refuse_foreign()
    if folder.is_run:
        check_identity(folder, read_plan_file(folder).identity, plan.identity())
        warn_of_damage(folder, Console())
    model = build_model(registry, plan.model, plan.model_options)
    lines = [f"{plan.model}, protocol {plan.protocol}, device {plan.device}, into {plan.output}", ""]
    videos = scores = steps = seen = 0
    width = max(24, *(len(cell.id) for cell in plan.cells))
    for cell in plan.cells:
        source, cell_steps, cell_seen = _source(cell, plan, registry, published)
        due, due_scores = _due(plan, folder, cell)
        done = folder.cell(cell.id).prepare.exists()
        steps += 0 if done else cell_steps
        seen += 0 if done else cell_seen
        videos += due
        scores += due_scores
        lines.append(f"  {cell.id:<{width}} {source:<40} {due} videos")
    seconds = (
        videos * _video_seconds(folder, plan, model) / plan.model_workers
        + seen * _sample_seconds(plan, model)
        + _score_seconds(plan, registry, videos) / max(1, plan.workers)
    )
    lines += [
        "",
        f"{len(plan.cells)} cells, {videos} videos to make, {scores} scores, {steps} training steps",
        f"estimated time: {_duration(seconds)} with {plan.workers} workers",
    ]
    return "\n".join(lines)


def training_steps(method: Method) -> tuple[int, int]:
    """Steps, and samples seen in all, as a method's options (or a part of them) tell; else 0, 0."""
    config: Mapping[str, Any] = jsonable(method)
    for options in [config, *(value for value in config.values() if isinstance(value, Mapping))]:
        steps = options.get("steps")
        if isinstance(steps, int):
            each = options.get("batch_size", _SAMPLES_A_STEP) * options.get("accumulate", 1)
            return steps, steps * each
    return 0, 0


def _source(
    cell: Cell, plan: RunPlan, registry: Registry, published: Mapping[str, Any]
) -> tuple[str, int, int]:
    """What is done for a cell, and its training's steps and samples."""
    if cell.is_reference:
        return "reference", 0, 0
    if cell.id in published:
        return f"load {display_path(published[cell.id])}", 0, 0
    method = build_method(registry, cell)
    if method.needs == Needs.TRAINING:
        steps, seen = training_steps(method)
        return f"train, {steps} steps", steps, seen
    return "compute", 0, 0


def _due(plan: RunPlan, folder: RunFolder, cell: Cell) -> tuple[int, int]:
    samples = plan.samples(cell)
    valid = valid_samples(plan.identity(), folder.cell(cell.id), samples)
    due = [sample for sample in samples if sample.id not in valid]
    scores = sum(len(set(sample.prompt.dimensions) & set(plan.metrics)) for sample in due)
    return len(due), scores


def _video_seconds(folder: RunFolder, plan: RunPlan, model: Model) -> float:
    """Measured in this folder if anything was, else what the model says."""
    measured: list[float] = [
        record["ms"] / 1000
        for cell in plan.cells
        for record in latest_samples(folder.cell(cell.id)).values()
        if record["ms"] is not None
    ]
    if measured:
        return statistics.median(measured)
    predicted = _predicted(plan, model)
    return predicted[0] if predicted else float(getattr(model, "video_seconds", _DEFAULT_VIDEO_SECONDS))


def _sample_seconds(plan: RunPlan, model: Model) -> float:
    """Of one sample in a training step."""
    predicted = _predicted(plan, model)
    if predicted:
        return predicted[1]
    return float(getattr(model, "train_step_seconds", _DEFAULT_STEP_SECONDS)) / _SAMPLES_A_STEP


def _predicted(plan: RunPlan, model: Model) -> tuple[float, float] | None:
    """From the model's optional ``predicted_seconds(device)``: a video, and a training sample."""
    tell = getattr(model, "predicted_seconds", None)
    return None if tell is None else tell(plan.device)


def _score_seconds(plan: RunPlan, registry: Registry, videos: int) -> float:
    costs: list[float] = [registry.get("metrics", metric)().info.cost_ms for metric in plan.metrics.values()]
    return videos * sum(costs) / 1000


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 172800:
        return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.0f} days"
