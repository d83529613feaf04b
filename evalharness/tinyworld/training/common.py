"""What the tinyworld trainings share: the clock, the learning rate, the average, the parts."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

PART_BYTES = 15_000_000


class Budget:
    """Training ends after ``steps`` steps or ``minutes`` minutes, whichever is given and first."""

    def __init__(self, steps: int | None, minutes: float | None) -> None:
        if not steps and not minutes:
            raise ValueError("neither steps nor minutes given: name one, e.g. --minutes 4")
        self.steps, self.minutes = steps, minutes
        self.step, self.started = 0, time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def fraction(self) -> float:
        by_steps = self.step / self.steps if self.steps else 0.0
        by_time = self.seconds / (60.0 * self.minutes) if self.minutes else 0.0
        return max(by_steps, by_time)


def learning_rate(peak: float, fraction: float, *, step: int, warmup: int = 200) -> float:
    """Linear warm-up over ``warmup`` steps, then a cosine to 0 at ``fraction`` 1."""
    return peak * min(1.0, (step + 1) / warmup) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, fraction)))


class Average:
    """Exponential moving average of a module's parameters, kept in float32."""

    def __init__(self, module: nn.Module, decay: float = 0.999) -> None:
        self.decay, self.count = decay, 0
        self.live = [p for p in module.parameters() if p.requires_grad]
        self.mean = [p.detach().float().clone() for p in self.live]

    @torch.no_grad()
    def update(self) -> None:
        self.count += 1
        decay = min(self.decay, (1.0 + self.count) / (10.0 + self.count))
        torch._foreach_lerp_(self.mean, [p.detach().float() for p in self.live], 1.0 - decay)

    @torch.no_grad()
    def copy_to_model(self) -> None:
        for parameter, mean in zip(self.live, self.mean, strict=True):
            parameter.copy_(mean)


def save_parts(tensors: Mapping[str, Tensor], folder: Path, stem: str) -> list[Path]:
    """Write tensors as ``stem-0.safetensors``, ``stem-1...``, each at most ``PART_BYTES``."""
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if parts[-1] and size + tensor.nbytes > PART_BYTES:
            parts.append({})
            size = 0
        parts[-1][name] = tensor
        size += tensor.nbytes
    paths = [folder / f"{stem}-{index}.safetensors" for index in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        save_file(part, path)
    return paths


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


def environment(device: torch.device) -> dict[str, str]:
    """What a model card says of the machine."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return {"device": name, "torch": torch.__version__}
