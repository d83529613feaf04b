"""What ``benchmarks/generate.py`` measures of one model."""

from __future__ import annotations

import argparse
import gc
import math
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from baselines.rtn import RTN
from benchmarks.driver import on_device
from benchmarks.measuring import Deadline, held_mb, ratio
from benchmarks.random_pipelines import open_model
from evalharness.conditions import conditions
from evalharness.cost import executed_as
from evalharness.device import synchronize
from evalharness.machine.costs import (
    TILE_PIXELS,
    MemoryNeed,
    expert_bytes,
    memory_needs,
    output_bytes,
)
from evalharness.memory import peak_within
from evalharness.models.video.placement import Placement
from evalharness.video import encode_video, read_video

PROMPT = "An old fisherman mends a net beside a frozen river, overcast light."
SIZES = {"wan_14b": {"height": 480, "width": 832, "shift": 3.0}}
DENOISE_ONLY = ("wan_14b",)
BITS = 4
EXECUTIONS = ("packed", "bf16", "fake")
# Of a GPU's memory, what a process can fill; and how much longer than the longest run the next may take.
_USABLE, _LONGER = 0.95, 1.3
# A decoder's workspaces are in no prediction of before: whole decodes of other sizes, which come first, tell
# what this GPU takes for a pixel. The one nearest in size predicts the whole and the tiled decode as well.
DECODES = {"cog_2b": ((49, 240, 360), (25, 480, 720)), "wan_1_3b": ((33, 240, 416), (33, 480, 832))}


@dataclass
class Watch:
    """Seconds and most memory of the phases of one video; ``told`` after each."""

    device: torch.device
    found: dict[str, dict[str, Any]] = field(default_factory=dict)
    told: Callable[[], None] = lambda: None

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
        print(f"    {name}: {self.found[name]}", flush=True)
        self.told()


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
    if name not in DENOISE_ONLY:
        decode_sizes(name, opened, found, given, deadline)
    executions: dict[str, nn.Module] = {}
    is_tile_known = name in DENOISE_ONLY  # a tiled decoder is alone on the device, whatever ran before
    longest = 0.0
    for run in sorted(given.runs, key=lambda run: EXECUTIONS.index(run.partition(":")[0])):
        execution, _, preset = run.partition(":")
        predicted = prediction(opened, execution, preset)
        reason = left_out(name, preset, predicted, device, given)
        reason = reason or late(deadline, longest, "the longest run took")
        if reason is not None:
            found["skipped"][run] = reason
            print(f"  {name}, {run}: {reason}", flush=True)
            given.save(found)
            continue
        print(f"  {name}, {run}: begins, {deadline.left:.0f} s are left", flush=True)
        begun, entry = time.perf_counter(), {}
        found["runs"][run] = entry
        try:
            if execution not in executions:
                executions.clear()  # one at a time in memory
                gc.collect()
                executions[execution] = made(opened, execution, device)
            entry["made_s"] = round(time.perf_counter() - begun, 1)
            is_tiled = preset != "resident"
            one_video(
                opened, executions[execution], preset, entry, name not in DENOISE_ONLY,
                decode=not (is_tiled and is_tile_known), told=lambda: given.save(found),
            )  # fmt: skip
        except Exception as error:  # the others must not pay for it
            traceback.print_exc()
            found["skipped"][run] = entry["error"] = f"{type(error).__name__}: {error}"
        else:
            is_tile_known = is_tile_known or is_tiled
        longest = max(longest, time.perf_counter() - begun)
        found["ratios"][run] = compared(entry, predicted)
        probed = by_probe(opened, found.get("decodes", {}), execution, preset)
        decode = entry.get("phases", {}).get("decode")
        if probed and decode:
            entry["predicted_by_probe_gb"] = round(probed / 1e9, 3)
            found["ratios"][run]["decode_by_probe"] = ratio(
                decode["allocated_gb"], entry["predicted_by_probe_gb"]
            )
        print(f"  {name}, {run}: measured over predicted {found['ratios'][run]}", flush=True)
        given.save(found)
    return found


def compared(entry: dict[str, Any], predicted: MemoryNeed) -> dict[str, float | None]:
    """Measured over predicted, of the phases that ran; both stay in ``entry``."""
    entry["predicted_gb"] = {key: round(size / 1e9, 3) for key, size in predicted.phases.items()}
    phases = entry.get("phases", {})
    return {
        key: ratio(phases[key]["allocated_gb"], entry["predicted_gb"][key])
        for key in predicted.phases
        if key in phases
    }


def left_out(
    name: str, preset: str, predicted: MemoryNeed, device: torch.device, given: argparse.Namespace
) -> str | None:
    """Why a run makes no sense here; None if it does."""
    if name in DENOISE_ONLY and preset == "resident":
        return "only denoising is measured"
    if device.type != "cuda" or given.tiny:
        return None
    need = predicted.phases["denoise"] if name in DENOISE_ONLY else predicted.peak
    room = torch.cuda.get_device_properties(device).total_memory * _USABLE
    return None if need < room else f"needs {need / 1e9:.0f} GB, {room / 1e9:.0f} are there"


def late(deadline: Deadline, seconds: float, what: str) -> str | None:
    """Why something that may take ``seconds``, and some more, does not begin; None if it does."""
    if deadline.left > seconds * _LONGER:
        return None
    return f"{deadline.left:.0f} s were left, {what} {seconds:.0f}"


def decode_sizes(
    name: str, loaded: Any, found: dict[str, Any], given: argparse.Namespace, deadline: Deadline
) -> None:
    """The decoder, whole, at the sizes of ``DECODES``: most memory on top of its weights and its frames.

    One that would not be done in time, by what a pixel of those before took, is left out.
    """
    vae = loaded.pipeline.vae
    vae.disable_tiling()
    vae.to(loaded.device)
    slowest = 0.0
    for size in ((9, 32, 32),) if given.tiny else DECODES.get(name, ()):
        key, pixels = "x".join(map(str, size)), math.prod(size)
        try:
            if reason := late(deadline, slowest * pixels, "by those before it takes"):
                found["skipped"][f"decode {key}"] = reason
                continue
            entry = decoded(loaded, size, key)
            slowest = max(slowest, entry["seconds"] / pixels)
            found.setdefault("decodes", {})[key] = entry
        except Exception as error:
            traceback.print_exc()
            found["skipped"][f"decode {key}"] = f"{type(error).__name__}: {error}"
        finally:
            given.save(found)
    if loaded.placement.moves:
        vae.to("cpu")


def decoded(loaded: Any, size: tuple[int, int, int], key: str) -> dict[str, Any]:
    """Seconds and memory of one decode of random latents."""
    (frames, height, width), device, vae = size, loaded.device, loaded.pipeline.vae
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    channels = vae.config.get("z_dim") or vae.config.latent_channels
    generator = torch.Generator(device).manual_seed(0)
    shape = (1, channels, 1 + frames // 4, height // 8, width // 8)
    latents = torch.randn(shape, generator=generator, device=device, dtype=vae.dtype)
    watch, before = Watch(device), held_mb(device)
    with torch.inference_mode(), watch.phase(key):
        vae.decode(latents, return_dict=False)
    entry = watch.found[key]
    if before is not None:
        pixels = height * width
        on_top = entry["allocated_gb"] * 1e9 - before * 1e6
        result = output_bytes(frames, pixels, loaded.spec)
        entry |= {"pixels": pixels, "bytes_for_a_pixel": round((on_top - result) / pixels)}
    return entry


def by_probe(
    loaded: Any, decodes: Mapping[str, Mapping[str, Any]], execution: str, preset: str
) -> float | None:
    """Bytes that a decode takes, from decodes of other sizes on this GPU; None without any."""
    spec, settings = loaded.spec, loaded.settings
    known = {entry["pixels"]: entry["bytes_for_a_pixel"] for entry in decodes.values() if "pixels" in entry}
    if not known:
        return None
    frame = settings.height * settings.width
    decoded = frame if preset == "resident" else min(frame, TILE_PIXELS[spec.shape.joint_text])
    nearest = min(known, key=lambda pixels: abs(pixels - decoded))
    return prediction(loaded, execution, preset, known[nearest]).phases["decode"]


def pipeline_of(name: str, device: torch.device, given: argparse.Namespace) -> Any:
    """The pipeline, its transformer not quantized yet."""
    size = {} if given.tiny else SIZES.get(name, {})
    return open_model(
        name,
        device,
        given.tiny,
        memory="phases",
        steps=given.steps,
        whole_text=name not in DENOISE_ONLY,
        **size,
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


def one_video(
    loaded: Any, module: nn.Module, preset: str, entry: dict[str, Any], encode: bool = True,
    *, decode: bool, told: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Each phase of a video under ``preset``; the first of an execution also loads kernels.

    What is found goes into ``entry``, ``told`` after each phase. Without ``encode`` embeddings are drawn.
    """
    device, settings = loaded.device, loaded.settings
    loaded.placement = Placement(device, preset)
    loaded.pipeline.vae.disable_tiling() if preset == "resident" else loaded.pipeline.vae.enable_tiling()
    loaded.placement.settle(module, loaded.pipeline.text_encoder, loaded.pipeline.vae)
    loaded.transformer = module
    loaded._texts.clear()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    watch = Watch(device, told=told)
    entry["executed_as"], entry["phases"] = executed_as(module), watch.found
    entry["transformer_gb"] = (
        sum(t.numel() * t.element_size() for t in [*module.parameters(), *module.buffers()]) / 1e9
    )
    with torch.inference_mode():
        if encode:
            with watch.phase("text"):
                loaded.embed([PROMPT, settings.negative_prompt])
        else:
            width = loaded._config.text_dim
            for number, text in enumerate((PROMPT, settings.negative_prompt)):
                generator = torch.Generator().manual_seed(number)
                loaded._texts[text] = torch.randn(1, settings.text_length, width, generator=generator)
        with watch.phase("denoise"):
            latents = loaded._denoise([PROMPT], [0])
        entry["latents_are_finite"] = bool(torch.isfinite(latents).all())
        if decode:
            with watch.phase("decode"), loaded.placement.turn(loaded.pipeline.vae, module):
                frames = loaded._frames(latents)
            with watch.phase("write"), tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "video.mp4"
                path.write_bytes(encode_video(frames, settings.fps))
                assert read_video(path).frames.shape == frames.shape
    entry["seconds"] = round(sum(phase["seconds"] for phase in watch.found.values()), 2)


def prediction(
    loaded: Any, execution: str, preset: str, decoder_pixel_bytes: float | None = None
) -> MemoryNeed:
    """What doctor would say, or from what a decoder took for a pixel of another size."""
    size = expert_bytes(loaded.spec, execution, BITS)
    needs = memory_needs(
        loaded.spec, loaded.settings, transformer=size, decoder_pixel_bytes=decoder_pixel_bytes
    )
    return next(need for need in needs if need.preset == preset)
