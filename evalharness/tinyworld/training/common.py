"""What the tinyworld trainings share: the clock, the learning rate, the average."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

Result = TypeVar("Result")


class Budget:
    """Training ends after ``steps`` steps or ``minutes`` minutes, whichever is given and first.

    The minutes count from construction, so that preparing data is part of them; ``fraction`` goes
    from 0 at ``begin`` to 1 at the end.
    """

    def __init__(self, steps: int | None, minutes: float | None) -> None:
        if not steps and not minutes:
            raise ValueError("neither steps nor minutes given: name one, e.g. --minutes 4")
        self.steps, self.minutes = steps, minutes
        self.step, self.stop = 0, False
        self.started = self.begun = time.monotonic()

    def begin(self) -> None:
        self.begun = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def over(self, device: torch.device) -> bool:
        """Whether to stop before the next step; process 0 decides for all, now and then."""
        if not dist.is_initialized() or (self.steps and self.step >= self.steps):
            return self.fraction >= 1.0
        if self.step % 20 == 0:
            flag = torch.tensor([self.fraction >= 1.0], device=device, dtype=torch.float32)
            dist.broadcast(flag, 0)
            self.stop = bool(flag.item())
        return self.stop

    @property
    def fraction(self) -> float:
        by_steps = self.step / self.steps if self.steps else 0.0
        if not self.minutes:
            return by_steps
        end = self.started + 60.0 * self.minutes
        by_time = (time.monotonic() - self.begun) / max(end - self.begun, 1e-3)
        return max(by_steps, by_time)


def learning_rate(peak: float, fraction: float, *, step: int, warmup: int = 200) -> float:
    """Linear warm-up over ``warmup`` steps, then a cosine to 0 at ``fraction`` 1."""
    return peak * min(1.0, (step + 1) / warmup) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, fraction)))


def rank() -> int:
    """Number of this process; 0 when it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def start_processes(device: str) -> torch.device:
    """The device of this process; joins the others when started by torchrun. Logs from process 0 only."""
    if "RANK" in os.environ:
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
    level = logging.INFO if rank() == 0 else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(message)s")
    if device != "cuda":
        return torch.device(device)
    torch.backends.cuda.matmul.allow_tf32 = True
    local = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(local)
    return local


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Mean of all processes' gradients, in one message."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients]) / dist.get_world_size()
    dist.all_reduce(flat)
    for gradient, piece in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(piece.view_as(gradient))


def capture(step: Callable[[], Result], warmup: int = 3) -> Callable[[], Result]:
    """``step`` recorded as a CUDA graph after ``warmup`` ordinary calls; each replay is one launch.

    The ordinary calls do what ``step`` does: a training step trains, at the rate that is set then.

    Small models spend their time starting kernels. All that changes between steps must lie in
    tensors of fixed address; what ``step`` returns is overwritten by the next replay.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warmup):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()

    def replay() -> Result:
        graph.replay()
        return result

    return replay


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


def write_json(path: Path, value: Any) -> None:
    """Write ``value``, indented; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


def environment(device: torch.device) -> dict[str, str]:
    """What a model card says of the machine."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return {"device": name, "torch": torch.__version__}
