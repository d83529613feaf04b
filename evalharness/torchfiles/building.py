"""What the names that PyTorch's pickles use stand for: our own plain data, made from checked arguments."""

from __future__ import annotations

from typing import TypeGuard

from evalharness.errors import UserError
from evalharness.torchfiles.values import MODULE, STORAGES, TAGGED, Module, Name, Storage, TensorView, shown

__all__ = ["allowed", "built", "kind_of", "made_module", "outside"]

_ORDERED_DICT = Name("collections", "OrderedDict")
_TENSOR = Name("torch._utils", "_rebuild_tensor_v2")
_PARAMETER = Name("torch._utils", "_rebuild_parameter")
_WRAPPERS = frozenset(Name("torch.jit._pickle", name) for name in TAGGED)
_PLAIN = frozenset(
    {_ORDERED_DICT, _TENSOR, _PARAMETER} | {Name("torch", name) for name in STORAGES} | _WRAPPERS
)
_MOST_DIMENSIONS = 16


def allowed(name: Name) -> Name:
    """``name``, if it is one of the few."""
    if name not in _PLAIN and not _is_module(name):
        raise UserError(f"it names {kind_of(name)}, which no tensor needs; it is not read")
    return name


def made_module(kind: object, arguments: object) -> Module:
    """What ``NEWOBJ`` leaves: a TorchScript module, empty."""
    if not isinstance(kind, Name) or not _is_module(kind) or arguments != ():
        raise UserError(f"its pickle makes an object of {kind_of(kind)}; only TorchScript's modules are read")
    return Module(f"{kind.module}.{kind.name}")


def _is_module(name: Name) -> bool:
    return name.module == MODULE or name.module.startswith(f"{MODULE}.")


def kind_of(value: object) -> str:
    """What to call ``value`` in a message: its type, or the global that it stands for."""
    return f"{shown(value.module)}.{shown(value.name)}" if isinstance(value, Name) else type(value).__name__


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def outside(identity: object) -> Storage:
    """From ``("storage", class, key, device, elements)``; the older format adds a None."""
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise UserError("its pickle refers to something outside that is no storage")
    if len(identity) == 6 and identity[5] is not None:
        raise UserError("a storage is a part of another, as only PyTorch before 0.4 wrote; save it anew")
    kind, key, device, elements = identity[1:5]
    if not isinstance(kind, Name) or kind.module != "torch" or kind.name not in STORAGES:
        raise UserError(f"a storage is of {kind_of(kind)}; allowed: {', '.join(STORAGES)}")
    if not isinstance(key, str) or not (key.isascii() and key.isdigit() and len(key) <= 20):
        given = repr(shown(key)) if isinstance(key, str) else f"a {kind_of(key)}"
        raise UserError(f"a storage's key is {given}, not a decimal number")
    if not isinstance(device, str) or not _is_count(elements):
        raise UserError(f"storage {key}: its device or its number of elements makes no sense")
    return Storage(STORAGES[kind.name], key, elements)


def built(called: object, arguments: object) -> object:
    """What ``REDUCE`` leaves: our own plain form of what the name would have made."""
    if not isinstance(called, Name) or not isinstance(arguments, tuple):
        raise UserError(f"its pickle calls a {kind_of(called)}; nothing in a file is called")
    if called == _ORDERED_DICT and not arguments:
        return {}
    if called == _TENSOR and len(arguments) in (6, 7):
        return _tensor(arguments)
    if called == _PARAMETER and len(arguments) == 3 and isinstance(arguments[0], TensorView):
        return arguments[0]
    if called in _WRAPPERS and arguments and isinstance(arguments[0], list | dict):
        return arguments[0]
    raise UserError(f"its pickle calls {kind_of(called)} with {len(arguments)} arguments of the wrong kind")


def _tensor(arguments: tuple[object, ...]) -> TensorView:
    """From storage, offset, size, stride, requires_grad, hooks and, at times, marks (negated, conjugate)."""
    storage, offset, size, stride, _, *further = arguments
    if not isinstance(storage, Storage) or not _is_count(offset):
        raise UserError("a tensor lacks its storage or its offset")
    if any(isinstance(extra, Name) or extra for extra in further):
        raise UserError("a tensor has hooks or marks beside its numbers; it is not read")
    if not _are_counts(size) or not _are_counts(stride) or len(size) != len(stride):
        raise UserError(
            f"a tensor's size and stride are not two equally long tuples of at most {_MOST_DIMENSIONS} "
            "whole numbers from 0"
        )
    return TensorView(storage, offset, size, stride)


def _are_counts(value: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(value, tuple) and len(value) <= _MOST_DIMENSIONS and all(map(_is_count, value))
