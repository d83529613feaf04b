"""What quantization-aware training costs, on a GPU: both sides of every ratio in one run.

    python benchmarks/qat_step.py --output qat_step.json

Parts: ``kernels`` (each fused operator), ``linears`` (those of one block), ``step`` (a whole
training step of CogVideoX-2B), ``phi`` (its initialisation and rank halving). ``--tiny`` runs all
of them in small on whatever there is and says nothing about speed. See ``docs/benchmarks.md``.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

LIMITS_S = {"kernels": 60.0, "linears": 90.0, "step": 240.0, "phi": 150.0}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parts", default=",".join(LIMITS_S), help="comma-separated; default: all")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the script")
    parser.add_argument("--output", type=Path, default=Path("qat_step.json"))
    parser.add_argument("--repeats", type=int, default=15, help="timed turns of each variant, at most")
    parser.add_argument("--samples", type=int, default=1, help="clips in the batch of part step")
    parser.add_argument("--frames", type=int, default=13, help="latent frames of a clip; 13 are 49 frames")
    parser.add_argument("--compile", action="store_true", help="part step: torch.compile every block")
    backends = ("default", "cudnn")
    parser.add_argument("--attention", choices=backends, default="default", help="part step: what attends")
    for part, limit in LIMITS_S.items():
        what = "seconds after which this part begins no further measurement"
        parser.add_argument(f"--{part}-s", type=float, default=limit, help=what)
    given = parser.parse_args(argv)
    given.parts = given.parts.split(",")
    for part in given.parts:
        if part not in LIMITS_S:
            parser.error(f"--parts: {part!r} is none of {', '.join(LIMITS_S)}")
    if not torch.cuda.is_available() and not given.tiny:
        parser.error("torch sees no CUDA device; --tiny tries the script without one")
    return given


def measurements(given: argparse.Namespace, device: torch.device) -> dict[str, Callable[[float], Any]]:
    """A function of the time limit for each part."""
    from benchmarks.qat_kernels import measure_kernels
    from benchmarks.qat_linears import measure_linears
    from benchmarks.qat_phi import measure_phi
    from benchmarks.qat_training import measure_step

    tiny, repeats = given.tiny, given.repeats
    frames = min(given.frames, 2) if tiny else given.frames
    return {
        "kernels": lambda s: measure_kernels(device, tiny, repeats, s),
        "linears": lambda s: measure_linears(device, tiny, repeats, s),
        "step": lambda s: measure_step(
            device,
            tiny,
            min(repeats, 7),
            s,
            samples=given.samples,
            frames=frames,
            compiled=given.compile,
            attention=given.attention,
        ),
        "phi": lambda s: measure_phi(device, tiny, repeats, s),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; 0 if all of them ended well. Results are written after each."""
    from benchmarks.measuring import surroundings, write_json

    given = arguments(argv)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    torch.set_float32_matmul_precision("highest")
    parts: dict[str, Any] = {}
    results = {"tiny": given.tiny, **surroundings(device), "ratios": {}, "parts": parts}
    for part in given.parts:
        start = time.monotonic()
        try:
            parts[part] = measurements(given, device)[part](getattr(given, f"{part}_s"))
        except Exception as error:  # one part that fails must not cost the others their time
            traceback.print_exc()
            parts[part] = {"ratios": {}, "error": f"{type(error).__name__}: {error}"}
        parts[part]["took_s"] = round(time.monotonic() - start, 1)
        results["ratios"] = {name: found["ratios"] for name, found in parts.items()}
        write_json(given.output, results)
        print(f"{part}: {parts[part]['ratios'] or 'done'} in {parts[part]['took_s']} s", flush=True)
    return 1 if any("error" in found for found in parts.values()) else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout's own library
    sys.exit(main())
