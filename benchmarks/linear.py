"""What the linears of one block cost with packed weights and integer arithmetic, against bfloat16.

    python benchmarks/linear.py --output linear.json

Parts: ``cog_2b``, ``wan_1_3b`` and ``wan_14b`` (all linears of a block together, each group of
layers with one input alone, as CUDA graphs and eager; quantizing the inputs and expanding the
weights included), ``gemm`` (the product alone), ``prologue`` (quantizing alone: plain, behind GELU,
behind norms), ``expand``, and ``peers`` (the same linears as torchao runs them, where it is installed,
float8 before int8, 14B first).
Tiles come from the table that ``benchmarks/tune_int8.py`` writes. ``--tiny`` runs all of it in
small, in Triton's interpreter too, and says nothing about speed. See ``docs/benchmarks.md``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

LIMITS_S = {
    "cog_2b": 40.0, "wan_1_3b": 45.0, "wan_14b": 90.0, "gemm": 60.0, "prologue": 60.0, "expand": 20.0,
    "peers": 150.0,
}  # fmt: skip
BLOCKS = ("wan_14b", "cog_2b", "wan_1_3b")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    from benchmarks.driver import command_line, parsed

    parser = command_line(__doc__, "linear.json", repeats=21, limits_s=LIMITS_S)
    help_ = "of normal numbers, as bfloat16 weights are drawn, or uniform: power, and so the clock, differ"
    parser.add_argument("--codes", choices=("normal", "uniform"), default="normal", help=help_)
    help_ = "blocks of part peers, comma-separated, most wanted first"
    parser.add_argument("--blocks", default=",".join(BLOCKS), help=help_)
    help_ = "seconds after which a peer that is not compiled for a block is given up"
    parser.add_argument("--peer-s", type=float, default=90.0, help=help_)
    help_ = "whether peers are compiled with the tuner that their library turns on"
    parser.add_argument("--peer-tuner", choices=("library", "off"), default="library", help=help_)
    return parsed(parser, argv, LIMITS_S, blocks=BLOCKS)


def measurements(
    given: argparse.Namespace,
) -> dict[str, Callable[[torch.device, bool, int, float], dict[str, Any]]]:
    """What measures each part; the longer ones save what they know so far."""
    from benchmarks.linear_parts import measure_block, measure_expand, measure_gemm, measure_prologue
    from benchmarks.linear_peers import measure_peers

    how: dict[str, Any] = {"uniform": given.codes == "uniform", "save": lambda found: given.save(found)}
    theirs = {"blocks": given.blocks, "each_s": given.peer_s, "tuner": given.peer_tuner == "library"}
    return {
        **{name: partial(measure_block, name, **how) for name in ("cog_2b", "wan_1_3b", "wan_14b")},
        "gemm": partial(measure_gemm, **how),
        "prologue": measure_prologue,
        "expand": measure_expand,
        "peers": partial(measure_peers, **how, **theirs),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; 0 if all of them ended well. Results are written after each."""
    from benchmarks.driver import limit_s, on_device, run_parts
    from qvgen.packed.triton_linear import runs_on

    given, device = arguments(argv), on_device()

    @torch.no_grad()
    def measure(part: str) -> dict[str, Any]:
        if not runs_on(device):
            return {"ratios": {}, "skipped": "needs Triton, and CUDA or TRITON_INTERPRET=1"}
        return measurements(given)[part](device, given.tiny, given.repeats, limit_s(given, part))

    return run_parts(given.parts, measure, given, lambda: {"codes": given.codes})


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout's own library
    sys.exit(main())
