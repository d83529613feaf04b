"""One video of a full-size model with random weights, start to finish: memory and time of each phase.

    python benchmarks/generate.py --output results/benchmarks/generate.json

Parts: ``cog_2b`` (49 frames of 480 x 720), ``wan_1_3b`` (81 of 480 x 832) and ``wan_14b`` (the same;
denoising only, its text encoder has one layer). In each, W4A4 with packed weights, bfloat16 and
simulated W4A4 are run under the memory presets; what ``evalharness doctor`` predicts stands beside what
was measured, and ``ratios`` are measured over predicted. ``--tiny`` runs it in small on a CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

LIMITS_S = {"cog_2b": 220.0, "wan_1_3b": 260.0, "wan_14b": 200.0}
RUNS = ("packed:phases", "packed:resident", "bf16:phases", "bf16:resident", "packed:blocks", "fake:phases")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; 0 if all of them ended well. Results are written after each."""
    from benchmarks.driver import command_line, limit_s, parsed, run_parts

    parser = command_line(__doc__, "generate.json", limits_s=LIMITS_S)
    parser.add_argument("--steps", type=int, default=2, help="denoising steps")
    parser.add_argument("--runs", default=",".join(RUNS), help="EXECUTION:PRESET, comma-separated, in order")
    given = parsed(parser, argv, LIMITS_S, runs=RUNS)
    from benchmarks.generate_parts import measure_model

    return run_parts(given.parts, lambda part: measure_model(part, given, limit_s(given, part)), given)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout's own library
    sys.exit(main())
