"""What quantization-aware training costs, on a GPU: both sides of every ratio in one run.

    python benchmarks/qat_step.py --output qat_step.json

Parts: ``kernels`` (each fused operator), ``linears`` (those of one block), ``step`` (a whole
training step of CogVideoX-2B), ``phi`` (its initialisation and rank halving). ``--tiny`` runs all
of them in small on whatever there is and says nothing about speed. See ``docs/benchmarks.md``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

LIMITS_S = {"kernels": 60.0, "linears": 90.0, "step": 240.0, "phi": 150.0}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    from benchmarks.driver import command_line, parsed

    parser = command_line(__doc__, "qat_step.json", repeats=15, limits_s=LIMITS_S)
    parser.add_argument("--samples", type=int, default=1, help="clips in the batch of part step")
    parser.add_argument("--frames", type=int, default=13, help="latent frames of a clip; 13 are 49 frames")
    parser.add_argument("--compile", action="store_true", help="part step: torch.compile every block")
    backends = ("default", "cudnn")
    parser.add_argument("--attention", choices=backends, default="default", help="part step: what attends")
    return parsed(parser, argv, LIMITS_S)


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
    from benchmarks.driver import limit_s, on_device, run_parts

    given = arguments(argv)
    torch.set_float32_matmul_precision("highest")
    measured = measurements(given, on_device())
    return run_parts(given.parts, lambda part: measured[part](limit_s(given, part)), given)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout's own library
    sys.exit(main())
