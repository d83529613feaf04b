"""Who lies on the device when: the memory presets (``evalharness.modeloptions.MEMORY_PRESETS``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

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
    """Blocks come to ``device`` for their calls, one at a time; what is in no block for the whole time.

    Copies come and are dropped: nothing goes back to the host, where all of it stays; what a block writes
    into its own tensors is lost. Only tensors that a call makes anew, such as codes in another form, go to
    the host behind it, and come again. No layer is told, for one with packed weights that is sent to the host
    by ``.to`` gets ready to compute there.
    """
    experts = [transformer.high, transformer.low] if isinstance(transformer, TwoExperts) else [transformer]
    with ExitStack() as undo:
        for expert in experts:
            in_blocks: set[int] = set()
            for block in _blocks(expert):
                visit = _Visit(_tensors(block), device, block)
                in_blocks.update(id(tensor) for tensor in _tensors(block))
                undo.callback(block.register_forward_pre_hook(visit.bring).remove)
                undo.callback(block.register_forward_hook(visit.drop, always_call=True).remove)
            rest = _Visit([tensor for tensor in _tensors(expert) if id(tensor) not in in_blocks], device)
            undo.callback(rest.drop)
            rest.bring()
        yield


class _Visit:
    """Tensors that rest on the host and come to the device as copies; of ``block`` those it makes as well."""

    def __init__(
        self, tensors: Sequence[Tensor], device: torch.device, block: nn.Module | None = None
    ) -> None:
        self._resting = [(tensor, tensor.data) for tensor in tensors]
        self._device, self._block = device, block

    def bring(self, *_: Any) -> None:
        with torch.inference_mode(mode=False), torch.no_grad():
            for tensor, rest in self._resting:
                tensor.data = rest.to(self._device)

    def drop(self, *_: Any) -> None:
        for tensor, rest in self._resting:
            tensor.data = rest
        if self._block is None:
            return
        known = {id(tensor) for tensor, _ in self._resting}
        present = {id(tensor): tensor for tensor in _tensors(self._block)}
        self._resting = [(tensor, rest) for tensor, rest in self._resting if id(tensor) in present]
        with torch.inference_mode(mode=False), torch.no_grad():
            for tensor in (tensor for key, tensor in present.items() if key not in known):
                tensor.data = tensor.data.to(HOST)
                self._resting.append((tensor, tensor.data))


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost lists."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _blocks(child)
