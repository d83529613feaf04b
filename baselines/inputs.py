"""What enters each linear of the full-precision model: the starts of static activation steps.

Not the surroundings' ``calibration``: that watches a sampler and keeps extremes, while first steps need
moments by timestep of the very batches that are trained on, also where there is no such service.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from qvgen.quantizers import ClipContext
from qvgen.training.context import TrainContext

SAMPLES_PER_CALL = 16384  # values kept of each call, evenly spread


@dataclass(slots=True)
class InputStats:
    """Statistics of all values that entered one layer, by timestep bucket of their sample.

    Attributes:
        count: values in each bucket, float64 [G].
        total: their sums, [G].
        squares: sums of their squares, [G].
        absolute: sums of their absolute values, [G].
        low: least value, 0 at most.
        high: greatest value, 0 at least.
        samples: some values of each call, [B, n], and the buckets [B] of their rows.
    """

    count: Tensor
    total: Tensor
    squares: Tensor
    absolute: Tensor
    low: Tensor
    high: Tensor
    samples: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @classmethod
    def empty(cls, buckets: int, device: torch.device) -> InputStats:
        count, total, squares, absolute = torch.zeros(4, buckets, dtype=torch.float64, device=device)
        low, high = torch.zeros(2, device=device)
        return cls(count, total, squares, absolute, low, high)

    def add(self, x: Tensor, bucket: Tensor) -> None:
        """Count an input [B, ..., C] whose samples belong to the buckets [B]."""
        rows = x.detach().float().flatten(1)
        self.count += torch.bincount(bucket, minlength=len(self.count)) * rows.shape[1]
        for name, values in (("total", rows), ("squares", rows.square()), ("absolute", rows.abs())):
            getattr(self, name).index_add_(0, bucket, values.double().sum(1))
        self.low, self.high = torch.minimum(self.low, rows.min()), torch.maximum(self.high, rows.max())
        stride = max(1, rows.numel() // SAMPLES_PER_CALL)
        # Else some channels would never be looked at, and the large ones are few.
        while math.gcd(stride, x.shape[-1]) > 1:
            stride += 1
        self.samples.append((rows[:, ::stride].clone(), bucket))  # a view would keep all rows

    def mean_abs(self) -> float:
        """Of all values; 0 if there are none."""
        return float(self.absolute.sum() / self.count.sum().clamp(min=1))

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each bucket, float32 [G].

        A bucket that saw nothing gets what lies between its neighbours, by linear interpolation.
        """
        seen = self.count > 0
        count = self.count.clamp(min=1)
        mean = self.total / count
        deviation = (self.squares / count - mean.square()).clamp(min=0).sqrt()
        return _filled(mean, seen).float(), _filled(deviation, seen).float()

    def sample(self, shift: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
        """The kept values [n], normalised by ``(x - shift) / scale`` of their buckets if given."""
        parts = []
        for rows, bucket in self.samples:
            if shift is not None and scale is not None:
                rows = (rows - shift[bucket, None]) / scale[bucket, None]
            parts.append(rows.flatten())
        return torch.cat(parts)


@torch.no_grad()
def observe_inputs(
    model: nn.Module, names: Sequence[str], ctx: TrainContext, *, batches: int, batch_size: int, buckets: int
) -> dict[str, InputStats]:
    """Run the full-precision ``model`` on the first training batches and watch its linears.

    Args:
        model: not yet quantized, float32, on ``ctx.device``.
        names: linears to watch.
        ctx: where batches come from; the teacher is not asked for.
        batches: how many.
        batch_size: samples in each.
        buckets: of timesteps; more than one needs a ``timestep`` among the batches' inputs.

    Raises:
        ValueError: an input that is not finite (the layer is named), no timestep, or a layer that
            no batch reached.
    """
    stats = {name: InputStats.empty(buckets, ctx.device) for name in names}
    context = ClipContext(buckets)
    was_training = model.training
    model.eval()
    with ExitStack() as hooks:
        for name in names:
            hook = model.get_submodule(name).register_forward_pre_hook(_watcher(name, stats[name], context))
            hooks.callback(hook.remove)
        for batch in _first(ctx, batches, batch_size):
            timestep = batch.inputs.get("timestep")
            context.bucket = None
            if isinstance(timestep, Tensor):
                context.set_timestep(timestep)
            ctx.predict(model, batch)
    model.train(was_training)
    for name, found in stats.items():
        if not found.samples:
            raise ValueError(
                f"layer {name}: no training batch reaches it, so its inputs are unknown; skip it"
            )
    return stats


def _first(ctx: TrainContext, batches: int, batch_size: int) -> Iterator[Any]:
    return islice(ctx.batches(batch_size), batches)


def _watcher(name: str, stats: InputStats, context: ClipContext) -> Any:
    def watch(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0]
        if not torch.isfinite(x).all():
            raise ValueError(f"layer {name}: an input holds NaN or infinity; model or data is broken")
        if context.buckets == 1:
            bucket = torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
        elif context.bucket is None:
            raise ValueError(f"layer {name}: steps depend on the timestep, but the batch has no timestep")
        elif len(context.bucket) not in (1, x.shape[0]):
            raise ValueError(f"layer {name}: {len(context.bucket)} timesteps for a batch of {x.shape[0]}")
        else:
            bucket = context.bucket.expand(x.shape[0])
        stats.add(x, bucket)

    return watch


def _filled(values: Tensor, seen: Tensor) -> Tensor:
    """``values`` [G] where ``seen``, elsewhere interpolated between, or the nearest beyond, those."""
    known = seen.nonzero().flatten()
    if len(known) == 0:
        return values
    place = torch.arange(len(values), device=values.device)
    after = torch.searchsorted(known, place).clamp(max=len(known) - 1)
    before = (after - (known[after] > place).long()).clamp(min=0)
    left, right = known[before], known[after]
    share = ((place - left) / (right - left).clamp(min=1)).clamp(0, 1)
    return torch.lerp(values[left], values[right], share.to(values.dtype))
