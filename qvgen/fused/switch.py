"""Whether and where other operators than the plain reference run: ``qvgen.fused``, ``qvgen.tiled``."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

MAX_COLUMNS = 16384
MAX_RANK = 64
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Triton's interpreter runs kernels on the CPU, for tests; Triton reads this when it is imported.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def _available() -> bool:
    if importlib.util.find_spec("triton") is None or torch.version.hip is not None:
        return False
    # Triton builds a launcher for each kernel.
    compilers = ("CC" in os.environ, *(shutil.which(name) for name in ("cc", "gcc", "clang")))
    return INTERPRETED or any(compilers)


AVAILABLE = _available()


class _Switch:
    """A plain object, so that torch.compile guards on its attribute; a ContextVar is no such thing."""

    def __init__(self) -> None:
        self.on = os.environ.get("QVGEN_FUSED") != "0"


_SWITCH = _Switch()


@contextmanager
def disabled() -> Iterator[None]:
    """Use the plain reference within, in this process, on a GPU and on a CPU; for comparison.

    Keep a forward pass and its backward pass on the same side where activations are checkpointed.
    The environment variable ``QVGEN_FUSED=0`` does it for a whole process.
    """
    before, _SWITCH.on = _SWITCH.on, False
    try:
        yield
    finally:
        _SWITCH.on = before


def is_on() -> bool:
    """Whether anything but the plain reference may run."""
    return _SWITCH.on


def fits(rows: Tensor, *others: Tensor) -> bool:
    """Whether kernels can run on a tensor of these rows (its last dimension) with ``others`` beside it."""
    return (
        is_on()
        and AVAILABLE
        and (rows.is_cuda or (INTERPRETED and rows.device.type == "cpu"))
        and rows.dtype in DTYPES
        and rows.dim() > 0
        and 0 < rows.shape[-1] <= MAX_COLUMNS
        and rows.numel() > 0
        and rows.stride(-1) == 1
        and all(t.dtype == torch.float32 and t.device == rows.device for t in others)
    )


def traced(x: Tensor) -> bool:
    """Whether something traces the program, which needs operators that it knows; else they only cost time."""
    return torch.compiler.is_compiling() or type(x) not in (Tensor, nn.Parameter)


def block_of(columns: int) -> tuple[int, int]:
    """Power of two that holds a row, and the warps that work on it (16 elements a thread)."""
    block = max(16, 1 << (columns - 1).bit_length())
    return block, min(32, max(1, block // 512))


@cache
def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability of a CUDA device."""
    return torch.cuda.get_device_capability(device)


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that one program on a CUDA device may have."""
    properties: Any = torch.cuda.get_device_properties(device)  # torch's stubs lack the attribute
    return int(properties.shared_memory_per_block_optin)


@cache
def multiprocessors(device: torch.device) -> int:
    """How many a CUDA device has; one elsewhere."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
