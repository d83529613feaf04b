"""How fast codes of 2, 3, 4 and 8 bits are packed and unpacked, in 10^9 codes a second.

    python benchmarks/pack.py --output results/benchmarks/pack.json

Parts: ``pack`` and ``unpack`` (plain torch, done once at conversion, and at each call by the reference
backend) and ``expand`` (the kernel that expands weights just in time; needs Triton), beside a copy of
as many bytes as are read and written. ``--tiny`` runs all of it in small.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

LIMITS_S = {"pack": 40.0, "unpack": 40.0, "expand": 20.0}
SHAPES = ((1920, 1920), (7680, 1920), (5120, 5120), (13824, 5120))
TINY = ((48, 80),)
BITS = (2, 3, 4, 8)


def measure(what: str, given: argparse.Namespace, limit_s: float) -> dict[str, Any]:
    """Rates of one direction for each matrix and width."""
    from benchmarks.driver import on_device
    from benchmarks.measuring import Deadline, compare, ratio
    from qvgen.packed.layout import pack_rows, row_bytes, unpack_rows
    from qvgen.packed.triton_linear import expand_codes, runs_on

    device, deadline, found, ratios = on_device(), Deadline(limit_s), {}, {}
    if what == "expand" and not runs_on(device):
        return {"ratios": {}, "skipped": "needs Triton, and CUDA or TRITON_INTERPRET=1"}
    for rows, columns in TINY if given.tiny else SHAPES:
        for bits in BITS:
            if deadline.passed:
                break
            codes = torch.randint(0, 2**bits, (rows, columns), device=device, dtype=torch.uint8)
            packed = pack_rows(codes, bits)
            if not torch.equal(unpack_rows(packed, bits, columns), codes):
                raise ValueError(f"{rows} x {columns} at {bits} bits: unpacked codes are other ones")
            calls: dict[str, Callable[[], object]] = {
                "pack": partial(pack_rows, codes, bits),
                "unpack": partial(unpack_rows, packed, bits, columns),
                "expand": partial(expand_codes, packed, bits, (rows, columns)),
            }
            moved = rows * (columns + row_bytes(columns, bits)) // 2
            source = torch.empty(moved, dtype=torch.uint8, device=device)
            target = torch.empty_like(source)
            variants: dict[str, Callable[[], object]] = {
                what: calls[what],
                "copy": partial(target.copy_, source),
            }
            times: dict[str, Any] = compare(variants, device, given.repeats, deadline)
            label = f"{rows}x{columns} {bits} bits"
            found[label] = times
            ratios[label] = {
                "codes_per_ns": ratio(rows * columns * 1e-6, times[what]["median_ms"]),
                "share_of_copy_bandwidth": ratio(times["copy"]["median_ms"], times[what]["median_ms"]),
            }
        given.save({"ratios": ratios, "matrices": found})
    return {"ratios": ratios, "matrices": found}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; 0 if all of them ended well. Results are written after each."""
    from benchmarks.driver import command_line, limit_s, parsed, run_parts

    given = parsed(command_line(__doc__, "pack.json", repeats=15, limits_s=LIMITS_S), argv, LIMITS_S)
    return run_parts(given.parts, lambda part: measure(part, given, limit_s(given, part)), given)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout's own library
    sys.exit(main())
