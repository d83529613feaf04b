"""Under which conditions a profile was taken: what else decides a time beside the cell itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from evalharness.manifest import probe
from evalharness.versions import package_version

if TYPE_CHECKING:
    from torch import nn

__all__ = ["clocks", "conditions", "tokens_of"]

_CLOCKS = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw")


def conditions(device: str, attention: str, steps: int | None) -> dict[str, Any]:
    """What stays the same while a cell is profiled.

    Args:
        device: ``cpu`` or ``cuda``.
        attention: what ``--attention`` says.
        steps: denoising steps of a video.

    Returns:
        ``attention``, ``compile`` (never, here), ``steps``, ``torch``, ``threads``, ``load_average`` of the
        last minute when it began; on cuda ``driver``, ``cuda``, ``cudnn``, ``sm_clock_limit_mhz`` and
        ``other_processes`` on the GPU. None where it cannot be known.
    """
    import torch

    record: dict[str, Any] = {
        "attention": attention,
        "compile": False,
        "steps": steps,
        "torch": package_version("torch"),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
    if device != "cuda":
        return {**record, "cpu_capability": torch.backends.cpu.get_cpu_capability()}
    asked = _query("driver_version", "clocks.max.sm") or [None, None]
    return {
        **record,
        "driver": asked[0],
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": package_version("triton"),
        "sm_clock_limit_mhz": _number(asked[1]),
        "other_processes": _other_processes(),
    }


def clocks(device: str) -> dict[str, float | None] | None:
    """Clocks in MHz, temperature in degrees and power in W at this moment; None on cpu."""
    if device != "cuda":
        return None
    values = _query(*_CLOCKS) or [None] * len(_CLOCKS)
    names = ("sm_mhz", "memory_mhz", "celsius", "watts")
    return {name: _number(value) for name, value in zip(names, values, strict=True)}


def tokens_of(module: nn.Module, call: Callable[[], object]) -> int | None:
    """The most rows of one sample that a linear of ``module`` reads in ``call``; None without linears."""
    most = 0

    def look(_: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        nonlocal most
        shape = tuple((args[0] if args else next(iter(kwargs.values()))).shape)
        rows = 1
        for size in shape[1:-1] if len(shape) > 2 else shape[:-1]:
            rows *= size
        most = max(most, rows)

    hooks = [
        part.register_forward_pre_hook(look, with_kwargs=True)
        for part in module.modules()
        if hasattr(part, "in_features")
    ]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    return most or None


def _query(*fields: str) -> list[str | None] | None:
    """What ``nvidia-smi`` says of the GPU in use."""
    text = probe("nvidia-smi", *_which(), f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits")
    if not text:
        return None
    values: list[str | None] = [value.strip() for value in text.splitlines()[0].split(",")]
    return values if len(values) == len(fields) else None


def _which() -> tuple[str, ...]:
    """Options of ``nvidia-smi`` that name the GPU that torch uses."""
    import torch

    uuid = getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "uuid", None)
    return () if uuid is None else ("-i", f"GPU-{uuid}")


def _other_processes() -> int | None:
    """Processes on the GPU beside this one; a container may not see them."""
    text = probe("nvidia-smi", *_which(), "--query-compute-apps=pid", "--format=csv,noheader")
    if text is None:
        return None
    pids = [line.strip() for line in text.splitlines() if line.strip()]
    # Inside a container the numbers are those of the host: one of them is this process.
    return len(pids) - 1 if pids else 0


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
