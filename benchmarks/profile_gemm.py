"""The integer product, once each, for Nsight Compute: warps with jobs, equal warps, and bfloat16.

    ncu --set full --clock-control none -k "regex:gemm|nvjet" -c 6 -o gemm python benchmarks/profile_gemm.py
    ncu -i gemm.ncu-rep --page details --csv > gemm.csv
    python benchmarks/profile_gemm.py --of gemm.csv --output results/benchmarks/gemm_profile.json

The last line needs no GPU: it keeps the figures that say what a product waits for.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SHAPES = ((17776, 1920, 1920), (32760, 5120, 5120))  # tokens, rows, columns of the weight
KEPT = {
    "Duration": "duration", "SM Frequency": "clock", "Compute (SM) Throughput": "tensor cores",
    "L1/TEX Cache Throughput": "shared memory", "L2 Cache Throughput": "L2 cache",
    "DRAM Throughput": "memory", "Registers Per Thread": "registers",
}  # fmt: skip


def run() -> None:
    """Each product once; outputs are not looked at."""
    import torch

    from benchmarks.int8_layers import BF16, Group, drawn_tokens, packed_layer, plain_group
    from qvgen.packed.triton_linear import expand_codes, multiply
    from qvgen.packed.triton_table import tiles_for

    device = torch.device("cuda", 0)
    one = torch.ones(1, device=device)
    for m, n, k in SHAPES:
        weight, tokens = packed_layer(n, k, 4, device, one, one), drawn_tokens(m, k, 4, device)
        expanded, tiles = expand_codes(weight.codes, 4, weight.shape), tiles_for(m, n, k, True)
        ((plain, bias),) = plain_group(Group("", m, k, (n,)), device)
        multiply(tokens, expanded, weight, BF16, tiles)
        multiply(tokens, expanded, weight, BF16, tiles_for(m, n, k, True, False))
        torch.nn.functional.linear(torch.randn(m, k, device=device, dtype=BF16), plain, bias)
    torch.cuda.synchronize(device)


def figures(path: Path) -> list[dict[str, Any]]:
    """What is kept of each kernel, in the order of the launches.

    Raises:
        ValueError: not a table of ``ncu --page details --csv``.
    """
    found: dict[str, dict[str, Any]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            try:
                kernel, name = found.setdefault(row["ID"], {"kernel": row["Kernel Name"]}), row["Metric Name"]
            except KeyError as error:
                raise ValueError(f"{path}: no column {error}; expected a table of ncu's details") from error
            if name in KEPT:
                kernel[KEPT[name]] = f"{row['Metric Value']} {row['Metric Unit']}".strip()
    return list(found.values())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the products, or keep what a profile of them says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--of", type=Path, help="table of a profile")
    parser.add_argument("--output", type=Path, default=Path("gemm_profile.json"))
    given = parser.parse_args(argv)
    if given.of is None:
        run()
        return 0
    from benchmarks.measuring import write_json

    try:
        kernels = figures(given.of)
        shapes = ["x".join(map(str, shape)) for shape in SHAPES for _ in range(3)]
        found = [{"m_n_k": shape, **kernel} for shape, kernel in zip(shapes, kernels, strict=True)]
    except (OSError, ValueError) as error:  # a kernel more or less would shift all that follow
        parser.error(str(error))
    write_json(given.output, {"kernels": found})
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout's own library
    sys.exit(main())
