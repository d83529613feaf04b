"""Calibration statistics in the run folder, so that every worker and every later command has them.

One safetensors file for each set of needs: tensors ``<layer>/absmax`` and so on, and the plain values
as JSON in its header. What cannot be read is made again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalharness.calibration import VERSION, Statistics
from evalharness.store import atomic_write_blocks

if TYPE_CHECKING:
    import torch

__all__ = ["held", "read_statistics", "write_statistics"]

_TENSORS = {"absmax": "absmax", "rows": "rows", "hessian": "stored_hessian", "mean": "mean"}


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Within, no other process makes the file of this name; the system frees it at a kill."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def write_statistics(path: Path, found: Mapping[str, Statistics]) -> None:
    """Whole or not at all; never more than one tensor in memory beside ``found``.

    Raises:
        OSError: disk full, no permission.
    """
    tensors = {
        f"{name}/{part}": tensor
        for name, layer in found.items()
        for part, attribute in _TENSORS.items()
        if (tensor := getattr(layer, attribute)) is not None
    }
    plain = {
        name: {"low": layer.low, "high": layer.high, "shares_input_with": layer.shares_input_with}
        for name, layer in found.items()
    }
    header = {"version": str(VERSION), "layers": json.dumps(plain)}
    atomic_write_blocks(path, _blocks(tensors, header))


def _blocks(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Iterator[bytes]:
    """A safetensors file, in pieces; wide numbers first, so that each begins at a multiple of its size."""
    import torch

    kinds = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    entries, end = {}, 0
    for name in names:
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": kinds[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]
        }  # fmt: skip
    text = json.dumps({"__metadata__": dict(metadata), **entries}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        flat = tensors[name].cpu().contiguous().flatten()
        yield flat.view(torch.uint8).numpy().tobytes()


def read_statistics(
    path: Path, device: torch.device, hessian_bytes: int | None = None
) -> dict[str, Statistics] | None:
    """What ``write_statistics`` wrote, on ``device``; None if there is no such file or it is damaged.

    Hessians that take more than ``hessian_bytes`` stay on the host.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("version") != str(VERSION):
                return None
            names = set(file.keys())

            shapes = (file.get_slice(name).get_shape() for name in names if name.endswith("/hessian"))
            at_rest = hessian_bytes is not None and sum(4 * a * b for a, b in shapes) > hessian_bytes

            def tensor(name: str, part: str) -> Any:
                if f"{name}/{part}" not in names:
                    return None
                found = file.get_tensor(f"{name}/{part}")
                return found if part == "hessian" and at_rest else found.to(device)

            return {
                name: Statistics(
                    absmax=tensor(name, "absmax"),
                    low=float(plain["low"]),
                    high=float(plain["high"]),
                    rows=tensor(name, "rows"),
                    stored_hessian=tensor(name, "hessian"),
                    mean=tensor(name, "mean"),
                    shares_input_with=str(plain["shares_input_with"]),
                )
                for name, plain in json.loads(header["layers"]).items()
            }
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
