"""What a pickle of PyTorch may describe, as plain data, and the few names it may use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

__all__ = [
    "MODULE",
    "STORAGES",
    "TAGGED",
    "Module",
    "Name",
    "Storage",
    "TensorView",
    "shown",
]

STORAGES: Mapping[str, str] = MappingProxyType(
    {
        "DoubleStorage": "float64",
        "FloatStorage": "float32",
        "HalfStorage": "float16",
        "BFloat16Storage": "bfloat16",
        "LongStorage": "int64",
        "IntStorage": "int32",
        "ShortStorage": "int16",
        "CharStorage": "int8",
        "ByteStorage": "uint8",
        "BoolStorage": "bool",
    }
)
"""PyTorch's names of storage classes, and the dtype of each."""

_ITEMSIZES: Mapping[str, int] = MappingProxyType(
    {
        "float64": 8,
        "float32": 4,
        "float16": 2,
        "bfloat16": 2,
        "int64": 8,
        "int32": 4,
        "int16": 2,
        "int8": 1,
        "uint8": 1,
        "bool": 1,
    }
)

TAGGED = ("restore_type_tag", "build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")
"""TorchScript's wrappers around a list or a dict; the container is their first argument."""

MODULE = "__torch__"
"""Where TorchScript keeps the classes of its modules."""


@dataclass(frozen=True, slots=True)
class Name:
    """A global that is allowed. It is only ever compared, never looked up."""

    module: str
    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """Numbers that lie elsewhere in the file.

    Attributes:
        dtype: as in ``STORAGES``.
        key: a decimal number, under which the file keeps them.
        elements: how many there are.
    """

    dtype: str
    key: str
    elements: int

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return _ITEMSIZES[self.dtype]

    @property
    def nbytes(self) -> int:
        """Bytes of all."""
        return self.elements * self.itemsize


@dataclass(frozen=True, slots=True)
class TensorView:
    """A tensor: a window on a storage. Offset and strides count elements."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(slots=True, eq=False)
class Module:
    """A TorchScript module: the name of its class and its attributes."""

    kind: str
    attributes: dict[object, object] = field(default_factory=dict)


def shown(text: str) -> str:
    """``text`` from a stranger's file as it may stand in a message: one line of ASCII, not long."""
    return ascii(text if len(text) <= 80 else text[:80] + "...")[1:-1]
