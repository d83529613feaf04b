"""One call of a full-size transformer with packed weights, against bfloat16 as shipped and at its best.

    python benchmarks/step.py --output results/benchmarks/step.json

Parts: ``cog_2b`` (49 frames of 480 x 720), ``wan_1_3b`` and ``wan_14b`` (81 frames of 480 x 832), random
weights. ``bf16_eager`` is what diffusers ships; ``bf16_best`` has cuDNN's attention (else flash),
compiled blocks and modulation by timestep from a table, as the packed ones have. Every variant takes
turns with both, and both then have the weights that the variant's codes stand for (peers: those of W4).
Other libraries' (``evalharness.peers``) are there where they are installed. Variants run in the order given;
results are written after each. ``--tiny`` runs all of it in small on a CPU and says nothing about speed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

LIMITS_S = {"cog_2b": 150.0, "wan_1_3b": 170.0, "wan_14b": 240.0}
VARIANTS = (
    "w4a4", "w3a3", "w4a4_attention8", "w4a4_eager", "w4a4_unfused", "w4a4_graph", "w8a8", "float8", "int8",
    "nf4", "quanto",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; 0 if all of them ended well. Results are written after each."""
    from benchmarks.driver import command_line, limit_s, parsed, run_parts

    parser = command_line(__doc__, "step.json", repeats=9, limits_s=LIMITS_S)
    parser.add_argument("--variants", default=",".join(VARIANTS), help="comma-separated, most wanted first")
    help_ = (
        "seconds after which a variant that is not ready (it compiles) is given up; peers end with their part"
    )
    parser.add_argument("--variant-s", type=float, default=150.0, help=help_)
    help_ = "whether peers are compiled with the tuner that their library turns on: minutes in torchao's case"
    parser.add_argument("--peer-tuner", choices=("library", "off"), default="library", help=help_)
    parser.add_argument("--samples", type=int, default=1, help="clips in a call; 2 are one guided step")
    parser.add_argument("--compiler", default="inductor", help="backend of torch.compile")
    given = parsed(parser, argv, LIMITS_S, variants=VARIANTS)
    from benchmarks.step_parts import measure_model

    return run_parts(given.parts, lambda part: measure_model(part, given, limit_s(given, part)), given)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout's own library
    sys.exit(main())
