"""What ``benchmarks/generate.py`` measures of one model."""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from baselines.rtn import RTN
from benchmarks.driver import on_device
from benchmarks.measuring import Deadline, ratio
from benchmarks.random_pipelines import open_model
from evalharness.conditions import conditions
from evalharness.cost import executed_as
from evalharness.device import synchronize
from evalharness.machine.costs import MemoryNeed, expert_bytes, memory_needs
from evalharness.memory import peak_within
from evalharness.models.video.placement import Placement
from evalharness.video import encode_video, read_video

PROMPT = "An old fisherman mends a net beside a frozen river, overcast light."
SIZES = {"wan_14b": {"height": 480, "width": 832, "shift": 3.0}}
DENOISE_ONLY = ("wan_14b",)
BITS = 4
EXECUTIONS = ("packed", "bf16", "fake")


@dataclass
class Watch:
    """Seconds and most memory of the phases of one video."""

    device: torch.device
    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        synchronize(self.device.type)
        start = time.perf_counter()
        with peak_within(self.device.type) as peak:
            yield
            synchronize(self.device.type)
        sizes = {"allocated_gb": peak.allocated, "reserved_gb": peak.reserved, "process_gb": peak.process}
        self.found[name] = {
            "seconds": round(time.perf_counter() - start, 3),
            **{key: None if size is None else round(size / 1e9, 3) for key, size in sizes.items()},
        }


class Context:
    """What rounding to nearest asks for."""

    def __init__(self, device: torch.device, skip_layers: tuple[str, ...]) -> None:
        self.device, self.skip_layers, self.seed = device, skip_layers, 0


def measure_model(name: str, given: argparse.Namespace, limit_s: float) -> dict[str, Any]:
    """All wanted runs of one model, one video each."""
    deadline, device = Deadline(limit_s), on_device()
    start = time.perf_counter()
    opened = pipeline_of(name, device, given)
    found: dict[str, Any] = {
        "ratios": {},
        "runs": {},
        "skipped": {},
        "steps": given.steps,
        "opened_s": round(time.perf_counter() - start, 1),
        "conditions": conditions(device.type, "default", given.steps),
        "settings": str(opened.settings),
    }
    print(f"  {name} opened in {found['opened_s']} s", flush=True)
    executions: dict[str, nn.Module] = {}
    is_tile_known = name in DENOISE_ONLY  # a tiled decoder is alone on the device, whatever ran before
    for run in sorted(given.runs, key=lambda run: EXECUTIONS.index(run.partition(":")[0])):
        execution, _, preset = run.partition(":")
        if name in DENOISE_ONLY and preset == "resident":
            found["skipped"][run] = "only denoising is measured"
            continue
        if deadline.passed:
            found["skipped"][run] = "no time was left"
            continue
        try:
            if execution not in executions:
                executions.clear()  # one at a time in memory
                gc.collect()
                executions[execution] = made(opened, execution, device)
            is_tiled = preset != "resident"
            entry = one_video(opened, executions[execution], preset, decode=not (is_tiled and is_tile_known))
        except Exception as error:  # the others must not pay for it
            traceback.print_exc()
            found["skipped"][run] = f"{type(error).__name__}: {error}"
            continue
        is_tile_known = is_tile_known or is_tiled
        predicted = prediction(opened, execution, preset)
        entry["predicted_gb"] = {key: round(size / 1e9, 3) for key, size in predicted.phases.items()}
        found["runs"][run] = entry
        if name in DENOISE_ONLY:
            entry["phases"].pop("text")  # of one layer: no figure of that model
        measured = {key: phase["allocated_gb"] for key, phase in entry["phases"].items()}
        found["ratios"][run] = {
            key: ratio(measured[key], entry["predicted_gb"][key])
            for key in predicted.phases
            if key in measured
        }
        print(f"  {name}, {run}: {measured} GB, predicted {entry['predicted_gb']}", flush=True)
        given.save(found)
    return found


def pipeline_of(name: str, device: torch.device, given: argparse.Namespace) -> Any:
    """The pipeline, its transformer not quantized yet."""
    layers = 1 if name in DENOISE_ONLY else 24
    size = {} if given.tiny else SIZES.get(name, {})
    return open_model(
        name, device, given.tiny, memory="phases", steps=given.steps, text_layers=layers, **size
    )


def made(loaded: Any, execution: str, device: torch.device) -> nn.Module:
    """The transformer as it is executed, on the device: full precision, fake-quantized or packed."""
    module: nn.Module = loaded.take_transformer().to(device)
    if execution == "bf16":
        return module
    context: Any = Context(device, loaded.skip_layers("std"))
    method = RTN(w_bits=BITS, a_bits=BITS, range="minmax")
    module = method.apply(module, context)
    return method.pack(module) if execution == "packed" else module


def one_video(loaded: Any, module: nn.Module, preset: str, *, decode: bool) -> dict[str, Any]:
    """Each phase of a video under ``preset``; the first of an execution also loads kernels."""
    device = loaded.device
    loaded.placement = Placement(device, preset)
    loaded.pipeline.vae.disable_tiling() if preset == "resident" else loaded.pipeline.vae.enable_tiling()
    loaded.placement.settle(module, loaded.pipeline.text_encoder, loaded.pipeline.vae)
    loaded.transformer = module
    loaded._texts.clear()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    watch = Watch(device)
    with torch.inference_mode():
        with watch.phase("text"):
            loaded.embed([PROMPT, loaded.settings.negative_prompt])
        with watch.phase("denoise"):
            latents = loaded._denoise([PROMPT], [0])
        finite = bool(torch.isfinite(latents).all())
        if decode:
            with watch.phase("decode"), loaded.placement.turn(loaded.pipeline.vae, module):
                frames = loaded._frames(latents)
            with watch.phase("write"), tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "video.mp4"
                path.write_bytes(encode_video(frames, loaded.settings.fps))
                assert read_video(path).frames.shape == frames.shape
    return {
        "executed_as": executed_as(module),
        "phases": watch.found,
        "seconds": round(sum(phase["seconds"] for phase in watch.found.values()), 2),
        "latents_are_finite": finite,
        "transformer_gb": sum(t.numel() * t.element_size() for t in [*module.parameters(), *module.buffers()])
        / 1e9,
    }


def prediction(loaded: Any, execution: str, preset: str) -> MemoryNeed:
    """What doctor would say."""
    size = expert_bytes(loaded.spec, execution, BITS)
    needs = memory_needs(loaded.spec, loaded.settings, transformer=size)
    return next(need for need in needs if need.preset == preset)
