"""What the linears of one block cost with packed weights and integer arithmetic, against bfloat16.

    python benchmarks/linear.py --output linear.json

Parts: ``cog_2b``, ``wan_1_3b`` and ``wan_14b`` (all linears of a block together, each group of
layers with one input alone, as CUDA graphs and eager; quantizing the inputs and expanding the
weights included), ``gemm`` (the product alone), ``prologue`` (quantizing alone) and ``expand``.
Tiles come from the table that ``benchmarks/tune_int8.py`` writes. ``--tiny`` runs all of it in
small, in Triton's interpreter too, and says nothing about speed. See ``docs/benchmarks.md``.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

LIMITS_S = {
    "cog_2b": 40.0, "wan_1_3b": 45.0, "wan_14b": 90.0, "gemm": 60.0, "prologue": 30.0, "expand": 20.0,
}  # fmt: skip


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parts", default=",".join(LIMITS_S), help="comma-separated; default: all")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the script")
    parser.add_argument("--output", type=Path, default=Path("linear.json"))
    parser.add_argument("--repeats", type=int, default=21, help="timed turns of each variant, at most")
    for part, limit in LIMITS_S.items():
        what = "seconds after which this part begins no further measurement"
        parser.add_argument(f"--{part.replace('_', '-')}-s", type=float, default=limit, help=what)
    given = parser.parse_args(argv)
    given.parts = given.parts.split(",")
    for part in given.parts:
        if part not in LIMITS_S:
            parser.error(f"--parts: {part!r} is none of {', '.join(LIMITS_S)}")
    if not torch.cuda.is_available() and not given.tiny:
        parser.error("torch sees no CUDA device; --tiny tries the script without one")
    return given


def measurements() -> dict[str, Callable[[torch.device, bool, int, float], dict[str, Any]]]:
    """What measures each part."""
    from benchmarks.linear_parts import measure_block, measure_expand, measure_gemm, measure_prologue

    return {
        **{name: partial(measure_block, name) for name in ("cog_2b", "wan_1_3b", "wan_14b")},
        "gemm": measure_gemm,
        "prologue": measure_prologue,
        "expand": measure_expand,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; 0 if all of them ended well. Results are written after each."""
    from benchmarks.measuring import surroundings, write_json
    from qvgen.packed.triton_linear import runs_on

    given = arguments(argv)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    parts: dict[str, Any] = {}
    results = {"tiny": given.tiny, **surroundings(device), "ratios": {}, "parts": parts}
    for part in given.parts:
        start = time.monotonic()
        try:
            if runs_on(device):
                with torch.no_grad():
                    limit_s = getattr(given, f"{part}_s")
                    parts[part] = measurements()[part](device, given.tiny, given.repeats, limit_s)
            else:
                parts[part] = {"ratios": {}, "skipped": "needs Triton, and CUDA or TRITON_INTERPRET=1"}
        except Exception as error:  # one part that fails must not cost the others their time
            traceback.print_exc()
            parts[part] = {"ratios": {}, "error": f"{type(error).__name__}: {error}"}
        parts[part]["took_s"] = round(time.monotonic() - start, 1)
        results["ratios"] = {name: found["ratios"] for name, found in parts.items()}
        write_json(given.output, results)
        print(f"{part}: in {parts[part]['took_s']} s", flush=True)
        print_tree(parts[part]["ratios"])
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return 1 if any("error" in found for found in parts.values()) else 0


def print_tree(ratios: dict[str, Any], indent: str = "  ") -> None:
    """One ratio a line."""
    for name, value in ratios.items():
        if isinstance(value, dict) and any(isinstance(inner, dict) for inner in value.values()):
            print(f"{indent}{name}")
            print_tree(value, indent + "  ")
        else:
            print(f"{indent}{name}: {value}", flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout's own library
    sys.exit(main())
