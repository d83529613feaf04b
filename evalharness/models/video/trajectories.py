"""What a transformer is asked and answers while its pipeline samples, as training batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from evalharness.api import TrainBatch

__all__ = ["record_steps"]


def record_steps(transformer: nn.Module, sample: Callable[[], object]) -> list[TrainBatch]:
    """Run ``sample`` and return one batch for each denoising step, in order; tensors on the host.

    Calls of the same timestep (with and without caption) become rows of one batch. The target is the
    transformer's own prediction.
    """
    calls: list[tuple[dict[str, Any], Tensor]] = []

    def keep(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        inputs = {name: _on_host(value) for name, value in kwargs.items() if value is not None}
        calls.append((inputs, _on_host(output[0])))

    handle = transformer.register_forward_hook(keep, with_kwargs=True)
    try:
        with torch.no_grad():
            sample()
    finally:
        handle.remove()
    steps: list[list[tuple[dict[str, Any], Tensor]]] = []
    for call in calls:
        if steps and torch.equal(_time(steps[-1][0]), _time(call)):
            steps[-1].append(call)
        else:
            steps.append([call])
    return [_batch(step) for step in steps]


def _time(call: tuple[dict[str, Any], Tensor]) -> Tensor:
    time: Tensor = call[0]["timestep"].reshape(-1)[:1]
    return time


def _on_host(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, tuple):
        return tuple(_on_host(item) for item in value)
    return value


def _batch(calls: list[tuple[dict[str, Any], Tensor]]) -> TrainBatch:
    first = calls[0][0]
    inputs = {
        name: torch.cat([call[0][name] for call in calls]) if isinstance(value, Tensor) else value
        for name, value in first.items()
    }
    return TrainBatch(inputs=inputs, target=torch.cat([output for _, output in calls]).float())
