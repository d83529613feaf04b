"""What is where on a GPU, on a machine without one.

Modules remember where they were sent and stay on the CPU; whatever is called while it is said to be on
the host is an error, as it would be on a GPU. The arithmetic is real.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from evalharness.models.video import experts as experts_module
from evalharness.models.video import pipeline as pipeline_module
from evalharness.models.video import placement as placement_module
from evalharness.models.video.experts import TwoExperts
from evalharness.models.video.source import FolderSource

HOST, DEVICE = "host", "device"
TRANSFORMERS = ("CogVideoXTransformer3DModel", "WanTransformer3DModel")
Places = dict[str, Any]


class Device(str):
    """What the session computes on; torch takes it for a CPU."""


def mark(module: nn.Module, where: str) -> None:
    for part in module.modules():
        part.where = where  # type: ignore[assignment]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Places]:
    """``calls``: of modules with weights; ``most``: transformers, read or called, alive at a call.

    ``both``: calls of a pair with both experts on the device.
    """
    seen: Places = {"calls": 0, "most": 0, "both": 0}
    real_to, real_read = nn.Module.to, FolderSource.transformer
    known: WeakSet[nn.Module] = WeakSet()

    def to(self: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        kept = []
        for value in args:
            if isinstance(value, Device) or str(value) == "cuda":
                mark(self, DEVICE)
            elif str(value) == "cpu":
                mark(self, HOST)
            else:
                kept.append(value)
        return real_to(self, *kept, **kwargs) if kept or kwargs else self

    def read(self: FolderSource, name: str, dtype: torch.dtype) -> nn.Module:
        module = real_read(self, name, dtype)
        mark(module, HOST)
        known.add(module)
        return module

    class OnGPU(placement_module.Placement):
        def __init__(self, device: torch.device, preset: str) -> None:
            super().__init__(torch.device("cuda"), preset)

    @contextmanager
    def blocks(transformer: nn.Module, device: torch.device) -> Iterator[None]:
        mark(transformer, DEVICE)
        yield
        mark(transformer, HOST)

    def called(module: nn.Module, args: Any) -> None:
        if any(True for _ in module.parameters(recurse=False)):
            seen["calls"] += 1
            assert getattr(module, "where", DEVICE) == DEVICE, f"a {type(module).__name__} is on the host"
        if type(module).__name__ in TRANSFORMERS:
            known.add(module)
            seen["most"] = max(seen["most"], len(known))
        if isinstance(module, TwoExperts):
            sides = {getattr(expert, "where", None) for expert in (module.high, module.low)}
            seen["both"] += sides == {DEVICE}

    def move(module: nn.Module, device: torch.device) -> None:
        mark(module, HOST if device.type == "cpu" else DEVICE)

    monkeypatch.setattr(nn.Module, "to", to)
    for owner in (placement_module, pipeline_module, experts_module):
        monkeypatch.setattr(owner, "move_", move)
    monkeypatch.setattr(FolderSource, "transformer", read)
    monkeypatch.setattr(pipeline_module, "Placement", OnGPU)
    monkeypatch.setattr(placement_module, "_blocks_by_turns", blocks)
    monkeypatch.setattr("evalharness.plan.resolve_device", lambda asked: Device("cpu"))
    handle = register_module_forward_pre_hook(called)
    gc.collect()  # none of another test is alive
    yield seen
    handle.remove()


RECIPE = {"steps": 4, "batch_size": 2, "sample_every": 2}
OPTIONS = {"gptq": {"prompts": 1}, "qvgen": {"recipe": RECIPE, "rank": 2}}


@pytest.mark.parametrize(
    ("kind", "memory", "methods"),
    [("cogvideox-2b", "phases", "gptq"), ("wan2.2-pair", "phases", "qvgen"), ("wan2.1", "blocks", "qvgen")],
)
def test_whatever_is_called_is_on_the_device(
    kind: str, memory: str, methods: str, gpu: Places, run: Callable[..., list[str]]
) -> None:
    """Calibration, a training that samples its teacher and is watched, generation, profile."""
    options = ["--method-options", json.dumps(OPTIONS)]
    run(kind, "--bits", "4", "--methods", methods, "--memory", memory, "--data", "teacher", *options)
    assert gpu["calls"] > 1000
    experts = 2 if "pair" in kind else 1
    # A student and its teacher; a cell's module beside full precision while it is profiled.
    assert gpu["most"] <= 2 * experts
    cell = Path(f"out/cells/{methods}-w4a4-s0")
    assert json.loads((cell / "profile.json").read_text())["reference_step_ms"] > 0
    assert methods != "qvgen" or list(cell.glob("watch/*/*.mp4"))


def test_one_transformer_is_held_while_videos_are_made(gpu: Places, run: Callable[..., list[str]]) -> None:
    run("wan2.2-pair", "--bits", "4", "--methods", "rtn", "--no-profile")
    assert gpu["most"] == 2  # the pair, once
    assert gpu["both"] == 0  # one of the two is on the device at a time
