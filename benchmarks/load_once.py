"""Loads one packed folder in a process of its own and prints, as JSON, what memory that took.

python benchmarks/load_once.py FOLDER --device cuda --how stream
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


def measure(folder: Path, device: torch.device, how: str, backend: str) -> dict[str, Any]:
    """Sizes in bytes: on disk, of the loaded tensors, and the peaks while loading."""
    import diffusers

    from evalharness.memory import _give_back, _reset_high_water, _status
    from qvgen.integrations.diffusers import register
    from qvgen.integrations.loading import load_packed

    register()
    kind = getattr(diffusers, json.loads((folder / "config.json").read_text())["_class_name"])
    if device.type == "cuda":
        torch.zeros(1, device=device)  # the context of the GPU is no part of loading
    _give_back()
    counted = _reset_high_water()
    before, start = _status(), time.perf_counter()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    if how == "stream":
        model = load_packed(folder, device=device, backend=backend)
    else:
        model = kind.from_pretrained(folder, device_map={"": str(device)}, dtype=torch.bfloat16)
    seconds, after = time.perf_counter() - start, _status()
    tensors = [*model.parameters(), *model.buffers()]
    on_cuda = device.type == "cuda"
    return {
        "how": how,
        "disk": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        "tensors": sum(t.numel() * t.element_size() for t in tensors),
        "host_peak": after["VmHWM"] - before["VmRSS"] if counted else None,
        "device_peak": torch.cuda.max_memory_allocated(device) if on_cuda else None,
        "device_reserved": torch.cuda.max_memory_reserved(device) if on_cuda else None,
        "seconds": round(seconds, 3),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure one way to load."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--how", choices=("stream", "from_pretrained"), default="stream")
    parser.add_argument("--backend", default="auto")
    given = parser.parse_args(argv)
    print(json.dumps(measure(given.folder, torch.device(given.device), given.how, given.backend)))
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout's own library
    sys.exit(main())
