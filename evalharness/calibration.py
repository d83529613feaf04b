"""What the layers of a model see while it samples: the calibration data of post-training methods.

A method declares what it needs (``api.CalibrationNeeds``); the service watches the listed linears
with hooks while the model's own full-precision sampler runs over calibration prompts. Everything is
reduced on the fly, so memory depends on the number of layers and their width, not on the number of
tokens; what is too much of it for the device rests on the host. torch is imported by the functions, as
everywhere in the harness.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evalharness.api import CalibrationNeeds
from evalharness.hessians import Grams

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

__all__ = ["VERSION", "Collector", "Statistics", "calibrate", "needs_key"]

# Part of the hash of every cell that calibrates; raise it when the same needs give other numbers.
VERSION = 1

TIMESTEPS = 1000


def calibrate(
    transformer: nn.Module,
    runs: Iterator[int],
    needs: CalibrationNeeds,
    seed: int,
    track: Callable[[range, str], Iterator[int]],
    hessian_bytes: int | None = None,
) -> dict[str, Statistics]:
    """Run the sampler ``needs.prompts`` times and return the statistics of each layer.

    Args:
        transformer: the module that the sampler calls; it is watched, not changed.
        runs: each ``next`` samples one video (``LoadedModel.calibration_runs``).
        needs: what to collect, and of which layers.
        seed: decides which rows are kept.
        track: progress bar.
        hessian_bytes: of the device that sums of x x^T may take, see ``evalharness.hessians``.

    Raises:
        ValueError: a name that is no linear, a layer that was never called, NaN or infinity in a
            layer's input (the first such layer in the order of execution is named).
    """
    import torch

    collector = Collector(transformer, needs, seed, hessian_bytes)
    with torch.no_grad(), collector.watching():
        for run in track(range(needs.prompts), "calibration"):
            try:
                next(runs)
            except StopIteration:
                raise ValueError(
                    f"calibration: the model gave {run} runs, {needs.prompts} were asked"
                ) from None
            collector.check(run)
    return collector.result()


@dataclass(slots=True)
class _Layer:
    """Running sums of one linear. ``total``: sum of x over ``gram_rows`` rows."""

    absmax: Tensor
    total: Tensor
    gram_rows: int
    rows: Tensor
    priority: Tensor
    low: Tensor
    high: Tensor
    leader: str
    generator: torch.Generator


@dataclass(frozen=True, slots=True)
class Statistics:
    """Satisfies ``api.LayerStatistics``; ``stored_hessian`` may rest on the host."""

    absmax: Tensor
    low: float
    high: float
    rows: Tensor
    stored_hessian: Tensor | None
    mean: Tensor | None
    shares_input_with: str

    @property
    def hessian(self) -> Tensor | None:
        """On the device; of one that rests on the host a copy, for as long as the caller keeps it."""
        return None if self.stored_hessian is None else self.stored_hessian.to(self.absmax.device)


class Collector:
    """Hooks on the linears of a transformer and what they have seen so far."""

    def __init__(
        self, transformer: nn.Module, needs: CalibrationNeeds, seed: int, hessian_bytes: int | None = None
    ) -> None:
        from torch import nn

        self.needs = needs
        self._transformer = transformer
        self._seed = seed
        self._bucket = 0
        self._layers: dict[str, _Layer] = {}
        # The last input and its products: q, k and v read the same tensor, which is reduced once.
        self._last: tuple[Tensor, str, Tensor, Tensor, tuple[Tensor, Tensor] | None] | None = None
        linears = {
            n: part.in_features for n, part in transformer.named_modules() if isinstance(part, nn.Linear)
        }
        for name in needs.layers:
            if name not in linears:
                raise ValueError(f"calibration: {name!r} is no linear of the model")
        self._grams = Grams({name: linears[name] for name in needs.layers}, hessian_bytes)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks are in place within the block, and gone after it whatever happens."""
        handles = [self._transformer.register_forward_pre_hook(self._begin, with_kwargs=True)]
        try:
            for name in self.needs.layers:
                layer = self._transformer.get_submodule(name)
                handles.append(layer.register_forward_pre_hook(self._hook(name), with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._last = None

    def check(self, run: int) -> None:
        """Raise ValueError if a layer has seen NaN or infinity, naming the first in order of execution."""
        import torch

        if not self._layers:
            return
        finite = torch.stack([torch.isfinite(layer.absmax).all() for layer in self._layers.values()])
        if not bool(finite.all()):
            name = list(self._layers)[int(finite.int().argmin())]
            raise ValueError(
                f"calibration: the input of layer {name} holds NaN or infinity (prompt {run}); the "
                "full-precision model itself fails there, so nothing can be calibrated"
            )

    def result(self) -> dict[str, Statistics]:
        """Statistics by layer, in the order of ``needs.layers``."""
        missing = next((name for name in self.needs.layers if name not in self._layers), None)
        if missing is not None:
            raise ValueError(f"calibration: layer {missing} was never called; leave it out (skip layers)")
        return {name: self._finished(name, self._layers[name]) for name in self.needs.layers}

    def _finished(self, name: str, layer: _Layer) -> Statistics:
        count = max(layer.gram_rows, 1)
        hessian = self._grams.mean(name, count, layer.absmax.device) if self.needs.hessian else None
        return Statistics(
            absmax=layer.absmax,
            low=float(layer.low.min()),
            high=float(layer.high.max()),
            rows=layer.rows,
            stored_hessian=hessian,
            mean=layer.total / count if self.needs.hessian else None,
            shares_input_with=layer.leader,
        )

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Start of a denoising step: the sampler gives all its rows the same timestep."""
        timestep = kwargs.get("timestep")
        self._last = None
        if timestep is not None and self.needs.buckets > 1:
            first = float(timestep.reshape(-1)[0] if hasattr(timestep, "reshape") else timestep)
            self._bucket = min(int(first * self.needs.buckets / TIMESTEPS), self.needs.buckets - 1)

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            self._see(name, args[0] if args else kwargs["input"])

        return hook

    def _see(self, name: str, x: Tensor) -> None:
        """Take in one input of a layer, [..., C]."""
        import torch

        rows = x.detach().reshape(-1, x.shape[-1])
        shared = self._last is not None and self._last[0] is x
        if not shared:
            self._grams.make_room()
            low, high = rows.amin(0).float(), rows.amax(0).float()
            taken = self._taken(rows) if self.needs.hessian else None
            self._last = (x, name, low, high, taken)
        assert self._last is not None
        _, leader, low, high, taken = self._last
        layer = self._layers.get(name)
        if layer is None:
            layer = self._layers[name] = self._new(rows, leader)
        elif layer.leader != leader:
            layer.leader = name  # not at every call: it shares with nobody
        torch.minimum(layer.low, low, out=layer.low)
        torch.maximum(layer.high, high, out=layer.high)
        absmax = layer.absmax[self._bucket]
        torch.maximum(absmax, torch.maximum(high, -low), out=absmax)
        if taken is not None:
            self._grams.add(name, taken[0])
            layer.total += taken[1]
            layer.gram_rows += len(taken[0])
        if self.needs.rows:
            self._keep_rows(layer, rows)

    def _new(self, rows: Tensor, leader: str) -> _Layer:
        import torch

        width, device = rows.shape[1], rows.device
        return _Layer(
            absmax=torch.zeros(self.needs.buckets, width, device=device),
            total=torch.zeros(width, device=device),
            gram_rows=0,
            rows=rows.new_empty(0, width),  # not rows[:0], which would keep the whole input alive
            priority=torch.zeros(0),
            low=torch.zeros(width, device=device),
            high=torch.zeros(width, device=device),
            leader=leader,
            # One seed for all layers: those that read the same tokens keep the same ones.
            generator=torch.Generator().manual_seed(self._seed),
        )

    def _taken(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Evenly spaced rows of the call, and their sum in float32."""
        import torch

        limit = self.needs.hessian_rows_per_call
        if len(rows) > limit:
            steps = torch.linspace(0, len(rows) - 1, limit, device=rows.device)
            rows = rows[steps.round().long()]
        elif self._grams.at_rest:  # they wait; the input may be changed meanwhile
            rows = rows.clone()
        return rows, rows.float().sum(0)

    def _keep_rows(self, layer: _Layer, rows: Tensor) -> None:
        """Each row draws a random priority; the highest of all calls stay: a uniform sample."""
        import torch

        limit = self.needs.rows
        drawn = torch.rand(len(rows), generator=layer.generator)
        if len(layer.priority) == limit:
            kept = torch.nonzero(drawn > layer.priority.min())[:, 0]
        else:
            kept = torch.arange(len(rows))
        if len(kept) > limit:
            kept = kept[torch.topk(drawn[kept], limit).indices]
        if not len(kept):
            return
        priority = torch.cat([layer.priority, drawn[kept]])
        merged = torch.cat([layer.rows, rows[kept.to(rows.device)]])
        if len(priority) > limit:
            best = torch.topk(priority, limit).indices.sort().values
            priority, merged = priority[best], merged[best.to(rows.device)]
        layer.priority, layer.rows = priority, merged


def needs_key(needs: CalibrationNeeds, seed: int) -> str:
    """The same for needs that give the same statistics, but for the Hessian being there or not."""
    fields: Sequence[Any] = (
        tuple(needs.layers),
        needs.prompts,
        needs.buckets,
        needs.rows,
        needs.hessian_rows_per_call,
        seed,
    )
    return hashlib.sha256(repr(fields).encode()).hexdigest()
