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

from evalharness.api import LayerStatistics
from evalharness.calibration import VERSION, Statistics
from evalharness.store import atomic_write_bytes

if TYPE_CHECKING:
    import torch

__all__ = ["held", "read_statistics", "write_statistics"]

_TENSORS = ("absmax", "rows", "hessian", "mean")


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


def write_statistics(path: Path, found: Mapping[str, LayerStatistics]) -> None:
    """Whole or not at all.

    Raises:
        OSError: disk full, no permission.
    """
    from safetensors.torch import save

    tensors = {
        f"{name}/{part}": tensor.contiguous().cpu()
        for name, layer in found.items()
        for part in _TENSORS
        if (tensor := getattr(layer, part)) is not None
    }
    plain = {
        name: {"low": layer.low, "high": layer.high, "shares_input_with": layer.shares_input_with}
        for name, layer in found.items()
    }
    header = {"version": str(VERSION), "layers": json.dumps(plain)}
    atomic_write_bytes(path, save(tensors, metadata=header))


def read_statistics(path: Path, device: torch.device) -> dict[str, LayerStatistics] | None:
    """What ``write_statistics`` wrote, on ``device``; None if there is no such file or it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            header = file.metadata() or {}
            if header.get("version") != str(VERSION):
                return None
            names = set(file.keys())

            def tensor(name: str, part: str) -> Any:
                return file.get_tensor(f"{name}/{part}") if f"{name}/{part}" in names else None

            return {
                name: Statistics(
                    absmax=tensor(name, "absmax"),
                    low=float(plain["low"]),
                    high=float(plain["high"]),
                    rows=tensor(name, "rows"),
                    hessian=tensor(name, "hessian"),
                    mean=tensor(name, "mean"),
                    shares_input_with=str(plain["shares_input_with"]),
                )
                for name, plain in json.loads(header["layers"]).items()
            }
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
