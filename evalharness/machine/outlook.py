"""``doctor --model NAME``: what this machine can do with a full-size video model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evalharness.api import EvalProtocol
from evalharness.compat import protocol_notes
from evalharness.device import resolve_device
from evalharness.doctor import Check, Status
from evalharness.errors import UserError
from evalharness.machine.costs import (
    GB,
    VIDEO_BYTES,
    MemoryNeed,
    expert_bytes,
    memory_needs,
    video_seconds,
    weights_bytes,
    work_of,
)
from evalharness.machine.probe import measure
from evalharness.models.video.folder import models_cache
from evalharness.registry import Registry
from evalharness.sampling import samples_by_dimension, samples_of

__all__ = ["outlook"]


def outlook(model: Any, protocol_name: str, registry: Registry, output: Path) -> Iterator[Check]:
    """Findings about the weights, disk, memory and time of one protocol at full precision."""
    name = f"model {model.name}"
    folder = None
    try:
        folder = model.folder()
        yield Check(name=name, status=Status.OK, detail=f"weights at {folder}, {_size(folder):.1f} GB")
    except UserError as error:
        fix = f"evalharness fetch {model.name}" if model.spec.repo else ""
        yield Check(name=name, status=Status.FAIL, detail=str(error), fix=fix)
    settings = model.settings
    detail = (
        f"{settings.frames} frames {settings.height}x{settings.width} at {settings.fps} fps, "
        f"{settings.steps} steps, guidance {settings.guidance:g}"
    )
    yield Check(name="settings", status=Status.OK, detail=f"{protocol_name}: {detail}")
    protocol: EvalProtocol = registry.get("protocols", protocol_name)()
    fixed = settings.fixed_noise is not None
    for note in protocol_notes(protocol, model.name, settings.frames, settings.fps, fixed_noise=fixed):
        yield Check(name="protocol", status=Status.WARN, detail=note)
    videos = len(
        samples_of(protocol.prompts(), 0, protocol.samples_per_prompt, samples_by_dimension(protocol))
    )
    if model.spec.shape is None:
        detail = f"{videos} videos a row; no prediction for a model of any size"
        yield Check(name="prediction", status=Status.WARN, detail=detail)
        return
    yield from _disk(model, videos, folder is None, output)
    yield from _memory(model)
    yield _time(model, videos)


def _disk(model: Any, videos: int, fetch: bool, output: Path) -> Iterator[Check]:
    settings = model.settings
    each = VIDEO_BYTES * settings.frames * settings.height * settings.width
    detail = f"about {videos * each / GB:.1f} GB for the {videos} videos of one row"
    yield _room("disk for videos", detail, output, videos * each)
    if fetch:
        need = weights_bytes(model.spec)
        detail = f"about {need / GB:.0f} GB of weights at 2 bytes a number; float32 files take twice that"
        yield _room("disk for weights", detail, models_cache(), need)


def _room(name: str, detail: str, folder: Path, need: float) -> Check:
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    status = Status.OK if free > need else Status.WARN
    return Check(name=name, status=status, detail=f"{detail}; {free / GB:.0f} GB free")


def _memory(model: Any) -> Iterator[Check]:
    device = resolve_device("auto")
    needs = memory_needs(model.spec, model.settings, 2 if device == "cuda" else 4)
    if device == "cuda":
        import torch

        have, where = float(torch.cuda.get_device_properties(0).total_memory), "of the GPU"
    else:
        have, where = (
            float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")),
            "of this machine (no GPU)",
        )
        needs = needs[:1]  # nothing can rest elsewhere
    fits = [need for need in needs if need.peak < 0.92 * have]
    for need in needs:
        phases = ", ".join(f"{phase} {size / GB:.1f}" for phase, size in need.phases.items())
        yield Check(
            name=f"memory, {need.preset}",
            status=Status.OK if need in fits else Status.WARN,
            detail=f"{need.peak / GB:.1f} GB at most ({phases}), {have / GB:.1f} GB {where}",
        )
    if device == "cuda":
        yield _quantized(model, have)
    if not fits:
        yield Check(
            name="memory",
            status=Status.FAIL,
            detail="no memory preset fits this machine at full precision",
            fix=_smaller(model, needs[-1]),
        )


def _quantized(model: Any, have: float) -> Check:
    """Of the denoising phase alone: what a smaller transformer changes."""
    found = []
    for execution, words in (("packed", "packed W4"), ("fake", "simulated")):
        size = expert_bytes(model.spec, execution, 4)
        needs = {need.preset: need for need in memory_needs(model.spec, model.settings, transformer=size)}
        found.append((words, needs["phases"].phases["denoise"]))
    detail = ", ".join(f"{words} {size / GB:.1f}" for words, size in found)
    fit = all(size < 0.92 * have for _, size in found)
    return Check(
        name="memory, quantized",
        status=Status.OK if fit else Status.WARN,
        detail=f"denoising under phases, GB: {detail}",
    )


def _smaller(model: Any, need: MemoryNeed) -> str:
    phase = max(need.phases, key=lambda name: need.phases[name])
    return f"a device of {need.peak / GB / 0.92:.0f} GB or more (the {phase} phase decides)"


def _time(model: Any, videos: int) -> Check:
    device = resolve_device("auto")
    rates = measure(model.spec, device)
    work = work_of(model.spec, model.settings)
    seconds = video_seconds(model.spec, model.settings, rates)
    flops = (work.linear_flops + work.attention_flops) / 1e12
    detail = (
        f"about {_duration(seconds)} a video, {_duration(videos * seconds)} for the {videos} videos of one "
        f"row on one {'GPU' if device == 'cuda' else 'CPU core'} ({flops:.0f} TFLOP a call; measured here: "
        f"{rates.gemm / 1e12:.3g} TFLOP/s in products, {rates.attention / 1e12:.3g} in attention)"
    )
    return Check(name="time", status=Status.OK, detail=detail)


def _size(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / GB


def _duration(seconds: float) -> str:
    for limit, unit, each in ((90, "s", 1), (5400, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / each:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"
