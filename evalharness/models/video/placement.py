"""Who lies on the device when: the memory presets (``evalharness.modeloptions.MEMORY_PRESETS``)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from evalharness.models.video.experts import TwoExperts
from evalharness.models.video.moves import HOST, move_, places_itself, units

__all__ = ["Placement"]


class Placement:
    """Moves the parts of a pipeline between host and device.

    The transformer rests on the device (with the preset ``blocks`` on the host), text encoder and
    decoder rest on the host and come for their turn, for which the transformer makes room. With the
    preset ``resident``, or where the device is the host, nothing moves.

    A transformer comes by ``.to`` once, so that layers can get ready for the device; after that only its
    tensors move, and layers do not get ready for the host, where nothing is computed.
    """

    def __init__(self, device: torch.device, preset: str) -> None:
        self.device, self.preset = device, preset
        self.moves = preset != "resident" and device.type != "cpu"
        self._ready: WeakSet[nn.Module] = WeakSet()

    def settle(self, transformer: nn.Module, *others: nn.Module) -> None:
        """Bring all to where they rest."""
        for part in others:
            part.to(HOST if self.moves else self.device)
        self.rest(transformer)

    def rest(self, transformer: nn.Module) -> None:
        """Bring a transformer to where it rests; of two experts that take turns, the first.

        One that a training has placed stays where it is.
        """
        if places_itself(transformer):
            return
        if not self.moves:
            transformer.to(self.device)
            return
        self._make_ready(transformer)
        if self.preset == "blocks":
            move_(transformer, HOST)
        elif isinstance(transformer, TwoExperts):
            move_(transformer.low, HOST)
            move_(transformer.high, self.device)
        else:
            move_(transformer, self.device)

    def leave(self, transformer: nn.Module) -> None:
        """Make room: the transformer's tensors go to the host. One in a joint training stays."""
        if self.moves and not places_itself(transformer):
            move_(transformer, HOST)

    def forget(self, transformer: nn.Module) -> None:
        """It is about to be changed: what it becomes has to be made ready anew."""
        self._ready.discard(transformer)

    def _make_ready(self, transformer: nn.Module) -> None:
        if transformer in self._ready:
            return
        self._ready.add(transformer)
        if not self._by_parts(transformer):
            transformer.to(self.device)
            return
        for unit in units(transformer):  # no more than one of them is on the device at a time
            unit.to(self.device)
            move_(unit, HOST)

    @contextmanager
    def turn(self, part: nn.Module, transformer: nn.Module | None) -> Iterator[None]:
        """``part`` is on the device within the block, alone."""
        if not self.moves:
            yield
            return
        if transformer is not None:
            self.leave(transformer)
        part.to(self.device)
        try:
            yield
        finally:
            part.to(HOST)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            if transformer is not None:
                self.rest(transformer)

    def build_device(self, transformer: nn.Module) -> torch.device:
        """Where a transformer is made that will rest as ``rest`` says: not where it may have no room."""
        return HOST if self._by_parts(transformer) else self.device

    @contextmanager
    def at_work(self, transformer: nn.Module) -> Iterator[None]:
        """The transformer, wherever it rests, can be called with inputs on the device."""
        if places_itself(transformer):
            yield
            return
        if self.moves:
            self._make_ready(transformer)
            if not self._by_parts(transformer):
                move_(transformer, self.device)
        else:
            transformer.to(self.device)
        with self.denoising(transformer):
            yield

    def _by_parts(self, transformer: nn.Module) -> bool:
        """Whether no more than a part of it is on the device at a time."""
        return self.moves and (self.preset == "blocks" or isinstance(transformer, TwoExperts))

    @contextmanager
    def denoising(self, transformer: nn.Module) -> Iterator[None]:
        """The transformer can be called with inputs on the device."""
        if not self.moves or places_itself(transformer):
            yield
        elif self.preset == "blocks":
            with _blocks_by_turns(transformer, self.device):
                yield
        elif isinstance(transformer, TwoExperts):
            transformer.device = self.device
            try:
                yield
            finally:
                transformer.device = None
        else:
            yield


@contextmanager
def _blocks_by_turns(transformer: nn.Module, device: torch.device) -> Iterator[None]:
    """Group offloading of diffusers, taken off again afterwards: a copy of the module must not have it."""
    from diffusers.hooks import HookRegistry, apply_group_offloading

    experts: list[Any] = (
        [transformer.high, transformer.low] if isinstance(transformer, TwoExperts) else [transformer]
    )
    for expert in experts:
        apply_group_offloading(
            expert, onload_device=device, offload_device=HOST, offload_type="block_level",
            num_blocks_per_group=1,
        )  # fmt: skip
    try:
        yield
    finally:
        for expert in experts:
            for module in expert.modules():
                registry = getattr(module, "_diffusers_hook", None)
                if isinstance(registry, HookRegistry):
                    for name in list(registry.hooks):
                        registry.remove_hook(name, recurse=False)
            move_(expert, HOST)
