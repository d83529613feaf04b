"""The tensors of a safetensors file one after the other, so that no more than one is in flight.

Mapping the file instead would count all of it as memory of the process while it is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library
DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32,
    "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32,
    "F64": torch.float64, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


def stream_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor, on the CPU, in the order in which they stand in the file.

    Raises:
        ValueError: no safetensors file, or one that is cut off, with the tensor's name.
    """
    with path.open("rb") as file:
        header, start, size = _header(path)
        entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        for name, entry in entries:
            dtype, shape, first, last = _place(path, name, entry, size - start)
            raw = torch.empty(last - first, dtype=torch.uint8)
            file.seek(start + first)
            if file.readinto(cast(Any, raw.numpy())) != len(raw):
                raise ValueError(f"{path}: {name} is cut off")
            yield name, raw.view(dtype).view(shape) if len(raw) else torch.empty(shape, dtype=dtype)


def tensor_names(path: Path) -> set[str]:
    """Of all tensors of a safetensors file.

    Raises:
        ValueError: no safetensors file, or one that is cut off, with the name of the first tensor that is.
    """
    header, start, size = _header(path)
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        _place(path, name, entry, size - start)
    return set(header)


def _place(
    path: Path, name: str, entry: dict[str, Any], size: int
) -> tuple[torch.dtype, tuple[int, ...], int, int]:
    """Dtype, shape, first and last byte among the ``size`` bytes of tensors."""
    dtype, shape = DTYPES.get(entry["dtype"]), tuple(entry["shape"])
    first, last = entry["data_offsets"]
    if dtype is None:
        raise ValueError(f"{path}: {name} is of the dtype {str(entry['dtype'])[:80]}, which is unknown")
    if not 0 <= first <= last <= size or last - first != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{path}: {name} does not lie within the file; was it cut off?")
    return dtype, shape, first, last


def _header(path: Path) -> tuple[dict[str, Any], int, int]:
    """Entries of the tensors by name, where their bytes begin, and the size of the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(MAX_HEADER, size - 8):
            raise ValueError(f"{path}: not valid safetensors (header of {length} bytes in {size})")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            header.pop("__metadata__", None)
            for entry in header.values():
                first, last = entry["data_offsets"]
                if not all(isinstance(n, int) and n >= 0 for n in (first, last, *entry["shape"])):
                    raise ValueError("offsets and shapes must be whole numbers")
                if not isinstance(entry["dtype"], str):
                    raise ValueError("a dtype must be a text")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path}: not valid safetensors ({error})") from None
    return header, 8 + length, size
