"""Tensors from PyTorch's files, without unpickling.

read_state(path)   the mapping of names to tensors that torch.save(module.state_dict()) wrote
read_module(path)  the same of a TorchScript archive; its code is not looked at
read(path)         whatever containers and tensors torch.save wrote
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from evalharness.errors import UserError
from evalharness.torchfiles.containers import Contents, opened
from evalharness.torchfiles.values import Module, Name, Storage, TensorView, shown

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MAX_GROWTH", "read", "read_module", "read_state"]

MAX_GROWTH = 4
"""Tensors may share storages and repeat elements, but not add up to more than so many times the file."""

_MOST_PARTS = 100_000
_DEEPEST = 100
_LONGEST_NAME = 1000


def read(path: Path) -> object:
    """What ``torch.save`` wrote: None, bool, int, float, str, list, tuple, dict and tensors on the CPU.

    Tensors that shared their storage share it again; an ``OrderedDict`` is a dict and a ``Parameter``
    a tensor.

    Raises:
        ValueError: another kind of file, damage, or a pickle that holds anything else; names it.
        OSError: the file cannot be opened.
    """
    with _file(path) as contents:
        return _Maker(contents).value(contents.described)


def read_state(path: Path, inside: str = "") -> dict[str, Tensor]:
    """The tensors of a mapping of names to tensors.

    Args:
        path: of the file.
        inside: key of that mapping, where the file may wrap it in another; what stands beside it is not made.

    Raises:
        ValueError: as ``read``; or the file holds anything beside.
    """
    import torch

    with _file(path) as contents:
        found = contents.described
        if inside and isinstance(found, dict):
            found = found.get(inside, found)
        if not isinstance(found, dict):
            raise UserError(f"not a mapping of names to tensors but a {type(found).__name__}")
        state = _Maker(contents).value(found)
        assert isinstance(state, dict)
        for key, value in state.items():
            if not isinstance(key, str) or not isinstance(value, torch.Tensor):
                what = f"{shown(str(key))!r} is a {type(value).__name__}"
                raise UserError(f"not a mapping of names to tensors: {what}")
        return _within(state, contents.size)


def read_module(path: Path) -> dict[str, Tensor]:
    """The tensors of a TorchScript module, named like in its ``state_dict``.

    Tensors that the module holds as plain attributes come along; those in lists do not.

    Raises:
        ValueError: as ``read``; or the file holds no module.
    """
    with _file(path) as contents:
        if not isinstance(contents.described, Module):
            raise UserError(f"not a TorchScript module but a {type(contents.described).__name__}")
        views = dict(_named(contents.described))
        maker = _Maker(contents)
        return _within({name: maker.tensor(view) for name, view in views.items()}, contents.size)


@contextmanager
def _file(path: Path) -> Iterator[Contents]:
    """An open file, whose name stands before what is said of it."""
    try:
        with opened(path) as contents:
            yield contents
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _within(state: Mapping[str, Tensor], size: int) -> dict[str, Tensor]:
    total = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if total > MAX_GROWTH * size:
        raise UserError(
            f"its tensors add up to {total} bytes, more than {MAX_GROWTH} times the file's {size}"
        )
    return dict(state)


def _named(module: Module) -> Iterator[tuple[str, TensorView]]:
    """All tensors below ``module`` by their dotted names, in the order of the file."""
    waiting: list[tuple[str, int, object]] = [("", 0, module)]
    seen = 0
    while waiting:
        name, depth, value = waiting.pop()
        seen += 1
        if seen > _MOST_PARTS or depth > _DEEPEST:
            raise UserError(f"its modules hold over {_MOST_PARTS} parts or are over {_DEEPEST} deep")
        if isinstance(value, TensorView):
            yield name, value
        elif isinstance(value, Module):
            for key, part in reversed(value.attributes.items()):
                if isinstance(part, Module | TensorView):
                    waiting.append((_joined(name, key), depth + 1, part))


def _joined(name: str, key: object) -> str:
    whole = f"{name}.{key}" if name else f"{key}"
    if len(whole) > _LONGEST_NAME:
        raise UserError(f"a tensor's name has over {_LONGEST_NAME} characters: {shown(whole)}")
    return whole


class _Maker:
    """Makes tensors of their descriptions; every storage once, whatever refers to it."""

    def __init__(self, contents: Contents) -> None:
        self.contents = contents
        self.raw: dict[str, Tensor] = {}
        self.flat: dict[Storage, Tensor] = {}
        self.done: dict[int, object] = {}

    def value(self, value: object, depth: int = 0) -> object:
        """``value`` with tensors in it; what stood in it several times still does."""
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if id(value) not in self.done:
            if depth > _DEEPEST:
                raise UserError(f"its containers are over {_DEEPEST} deep or hold themselves")
            self.done[id(value)] = self._made(value, depth + 1)
        return self.done[id(value)]

    def _made(self, value: object, depth: int) -> object:
        if isinstance(value, TensorView):
            return self.tensor(value)
        if isinstance(value, dict):
            return {key: self.value(item, depth) for key, item in value.items()}
        if isinstance(value, list):
            return [self.value(item, depth) for item in value]
        if isinstance(value, tuple):
            return tuple(self.value(item, depth) for item in value)
        what = f"{value.module}.{value.name}" if isinstance(value, Name) else type(value).__name__
        raise UserError(f"it holds a {shown(what)}, which is no tensor")

    def tensor(self, view: TensorView) -> Tensor:
        import torch

        elements = math.prod(view.size)
        if elements * view.storage.itemsize > MAX_GROWTH * self.contents.size:
            raise UserError(f"a tensor of {list(view.size)} is more than {MAX_GROWTH} times the file")
        dtype = getattr(torch, view.storage.dtype)
        if elements == 0:
            if math.prod(filter(None, view.size)) >= 2**63:
                raise UserError(f"an empty tensor of {list(view.size)} makes no sense")
            return torch.empty(view.size, dtype=dtype)
        last = view.offset + sum((n - 1) * step for n, step in zip(view.size, view.stride, strict=True))
        if last >= view.storage.elements:
            raise UserError(
                f"a tensor reaches element {last} of storage {view.storage.key}, which has "
                f"{view.storage.elements}"
            )
        flat = self._flat(view.storage)
        return torch.as_strided(flat, view.size, view.stride, view.offset)

    def _flat(self, storage: Storage) -> Tensor:
        """All elements of a storage. Views of one with several dtypes share their memory."""
        import torch

        if storage.key not in self.raw:
            self.raw[storage.key] = torch.frombuffer(self.contents.numbers(storage), dtype=torch.uint8)
        if storage not in self.flat:
            raw = self.raw[storage.key]
            if raw.numel() != storage.nbytes:
                raise UserError(f"storage {storage.key} has {raw.numel()} bytes, not {storage.nbytes}")
            if storage.dtype == "bool" and raw.max() > 1:
                raise UserError(f"storage {storage.key} is of bool but holds other bytes than 0 and 1")
            if self.contents.big_endian:
                raw = raw.view(-1, storage.itemsize).flip(1).reshape(-1)
            self.flat[storage] = raw.view(getattr(torch, storage.dtype))
        return self.flat[storage]
