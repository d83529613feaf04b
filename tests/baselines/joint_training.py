"""Methods that look at the model first, on several processes: ``torchrun ... joint_training.py FOLDER``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, distributed, nn

from baselines import training as observed_training
from baselines.efficientdm import EfficientDM
from baselines.lsq import LSQ
from baselines.qdm import QDM
from qvgen.api import frozen_layers
from qvgen.method import TrainedMethod
from qvgen.training import run
from tests.qvgen.killed_training import Batch
from tests.qvgen.parallel_training import Blocks

RECIPE: dict[str, Any] = {"steps": 5, "batch_size": 3, "accumulate": 2, "log_every": 1}


class Timed(Blocks):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(12))

    def forward(self, input: Tensor, timestep: Tensor) -> Tensor:
        return super().forward(input) * self.gain


class Context:
    seed = 3
    device = torch.device("cpu")
    skip_layers = ()

    def __init__(self) -> None:
        self.losses: list[float] = []

    def teacher(self) -> nn.Module:
        return model().float().eval().requires_grad_(False)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            x = torch.randn(batch_size, 6, 12, generator=generator)
            yield Batch(
                {"input": x, "timestep": torch.randint(0, 1000, (batch_size,), generator=generator)}, x
            )

    def predict(self, transformer: nn.Module, batch: Batch) -> Tensor:
        out: Tensor = transformer(**batch.inputs)
        return out

    def log(self, record: Mapping[str, float | int | str]) -> None:
        self.losses.append(float(record["loss"]))

    def track(self, steps: range, what: str) -> Iterator[int]:
        return iter(steps)


def model() -> nn.Module:
    """In two dtypes, as diffusers loads Wan."""
    with torch.random.fork_rng():
        torch.manual_seed(12)
        made = Timed().bfloat16()
    made.gain.data = made.gain.data.float()
    return made


def methods() -> dict[str, TrainedMethod]:
    plain: dict[str, Any] = {"w_bits": 3, "a_bits": 4, "recipe": RECIPE}
    author = {**plain, "mode": "author"}
    return {
        "efficientdm": EfficientDM(**plain, rank=4, buckets=5),
        "efficientdm-author": EfficientDM(**author, rank=4, buckets=5),
        "lsq-author": LSQ(**author),
        "qdm-author": QDM(**author, buckets=5, taq_layers="all"),
    }


def results() -> dict[str, Any]:
    """Of each method: losses, dtypes and weights when trained, most numbers in float32 at the start."""
    found = {}
    for name, method in methods().items():
        ctx, student, widest = Context(), model(), [0]
        real = observed_training.observe_inputs

        def observed(
            seen: nn.Module, *rest: Any, real: Any = real, widest: Any = widest, **named: Any
        ) -> Any:
            def count(*_: Any) -> None:
                wide = [p.numel() for p in seen.parameters() if p.dtype == torch.float32]
                widest[0] = max(widest[0], sum(wide))

            hooks = [block.register_forward_pre_hook(count) for block in seen.blocks]  # type: ignore[union-attr]
            try:
                return real(seen, *rest, **named)
            finally:
                for hook in hooks:
                    hook.remove()

        with mock.patch.object(observed_training, "observe_inputs", observed):
            trained = method.apply(student, ctx)  # type: ignore[arg-type]
        assert trained is student and run.world_size() in (1, 2)
        found[name] = {
            "losses": ctx.losses,
            "dtypes": {n: str(p.dtype) for n, p in trained.named_parameters()},
            "weights": {n: layer.weight.float().flatten().tolist() for n, layer in frozen_layers(trained)},
            "widest": widest[0],
        }
    return found


if __name__ == "__main__":
    distributed.init_process_group("gloo")
    try:
        made = results()
        if distributed.get_rank() == 0:
            (Path(sys.argv[1]) / "found.json").write_text(json.dumps(made))
    finally:
        distributed.destroy_process_group()
