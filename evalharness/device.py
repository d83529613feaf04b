"""Which device runs, decided without importing torch where that is possible."""

from __future__ import annotations

from pathlib import Path

from evalharness.errors import UserError

__all__ = ["cuda_available", "resolve_device", "synchronize"]

_NVIDIA_FILES = ("/dev/nvidiactl", "/dev/dxg")


def cuda_available() -> bool:
    """Whether torch can use a CUDA device. Imports torch only if the machine has such a device."""
    if not any(Path(file).exists() for file in _NVIDIA_FILES):
        return False
    import torch

    return torch.cuda.is_available()


def resolve_device(asked: str) -> str:
    """``auto`` becomes ``cuda`` where available, else ``cpu``.

    Raises:
        UserError: cuda was asked for and is not there.
    """
    if asked == "cpu":
        return "cpu"
    available = cuda_available()
    if asked == "cuda" and not available:
        raise UserError("--device cuda: torch sees no CUDA device here; use --device cpu, or auto")
    return "cuda" if available else "cpu"


def synchronize(device: str) -> None:
    """Wait until a GPU has done what it was given on this thread's stream, so that a clock tells the truth.

    Not for the whole device: CUDA forbids that while another thread records a graph.
    """
    if device == "cuda":
        import torch

        torch.cuda.current_stream().synchronize()
