"""What the compiler makes of the rotating kernels for Hopper: instructions, registers, spills. Needs no GPU.

    python benchmarks/rotation_code.py --output results/benchmarks/rotation_code.json

Compiles both kernels as they are launched for 16-bit inputs (Triton's own assembler and disassembler) and
counts the instructions of the loop over rows, in all warps, for each number of a row. A kernel that executes
more than about 36 of them takes longer than reading and writing the row does (H100: 132 multiprocessors of
128 lanes at 1.7 GHz, 4 bytes a number at 3 TB/s).
"""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WIDTHS = (1536, 1920, 3072, 5120, 7680, 8960, 13824)
HOPPER = 90
SLOW = ("MUFU", "FCHK", "FRND")  # a quarter of the usual rate or less
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+ )?([A-Z0-9_.]+)(.*)")


def constants(kernel: Any, width: int, how: Any, codes: bool) -> dict[str, Any]:
    """What a launch fixes, as ``qvgen.fused.rotate`` does at W4A4."""
    from qvgen.fused.rotate import constants_of
    from qvgen.hadamard import paired_factors

    orders = paired_factors(width)
    assert orders is not None
    units = [2.0 ** -math.ceil(math.log2(order) / 2) for order in orders]
    norms = {"FIRST_NORM": orders[0] ** -0.5, "SECOND_NORM": orders[1] ** -0.5, "ROWS": how.rows}
    chained = {
        "FIRST_UNIT": units[0], "SECOND_UNIT": units[1], "NORM": 1 / math.sqrt(width) / math.prod(units),
        "TURNED": how.turned, "CODES": codes, "OFFSET": False,
    }  # fmt: skip
    own = chained if how.chained else norms
    return {**constants_of(orders, 15, False, on_cuda=True, interpreted=False), **own}


def compiled(width: int, how: Any, codes: bool) -> dict[str, Any]:
    """Figures of one kernel."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from qvgen.fused import rotate_kernels

    kernel = rotate_kernels.rotate_chained if how.chained else rotate_kernels.rotate_forward
    fixed = constants(kernel, width, how, codes)
    kinds = {
        "x_ptr": "*bf16", "out_ptr": "*i8" if codes else "*bf16", "zero_ptr": "*i32", "sum_ptr": "*i32",
        "rows": "i32", "row_stride": "i32", "share": "i32",
    }  # fmt: skip
    names = list(kernel.arg_names)
    signature = {name: "constexpr" if name in fixed else kinds.get(name, "*fp32") for name in names}
    aligned = [name for name in names if name.endswith("_ptr")] + ["row_stride"]
    source = ASTSource(
        kernel, signature, constexprs={(names.index(name),): value for name, value in fixed.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )  # fmt: skip
    options = {"num_warps": how.warps, "num_stages": how.stages, "enable_fp_fusion": False}
    built = triton.compile(source, target=GPUTarget("cuda", HOPPER, 32), options=options)
    counts = loop_of(disassembled(built.asm["cubin"]))
    return {
        "instructions_per_number": round(sum(counts.values()) * how.warps * 32 / width, 1),
        "slow_per_number": round(sum(counts[name] for name in SLOW) * how.warps * 32 / width, 2),
        "barriers_per_row": counts["BAR"],
        "local_memory_instructions": counts["LDL"] + counts["STL"],
        "shared_memory_bytes": built.metadata.shared,
        **resources(built.asm["cubin"]),
    }


def tool(name: str, cubin: bytes, *options: str) -> str:
    """Output of one of the tools that come with Triton."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
        done = subprocess.run([program, *options, file.name], capture_output=True, text=True, check=True)
    return done.stdout


def resources(cubin: bytes) -> dict[str, int]:
    """Registers of a thread, and bytes of its stack."""
    found = re.search(r"REG:(\d+) STACK:(\d+)", tool("cuobjdump", cubin, "-res-usage"))
    assert found is not None
    return {"registers": int(found[1]), "stack_bytes": int(found[2])}


def disassembled(cubin: bytes) -> list[str]:
    """Lines of machine code."""
    return tool("nvdisasm", cubin, "-c").splitlines()


def loop_of(lines: Sequence[str]) -> Counter[str]:
    """Instructions of the longest loop by name; of all code where there is no loop over rows.

    A kernel of one row a program is one pass; short loops within it are calls.
    """
    labels: dict[str, int] = {}
    names: list[str] = []
    longest = (0, 0)
    for line in lines:
        label = re.match(r"^(\.L_\w+):", line)
        if label:
            labels[label[1]] = len(names)
        found = INSTRUCTION.match(line)
        if not found:
            continue
        names.append(found[1].split(".")[0])
        target = re.search(r"\.L_\w+", found[2]) if names[-1] == "BRA" else None
        begin = labels.get(target[0]) if target else None
        if begin is not None and len(names) - begin > longest[1] - longest[0]:
            longest = (begin, len(names))
    begin, end = longest if longest[1] - longest[0] > len(names) // 4 else (0, len(names))
    return Counter(names[begin:end])


def main(argv: Sequence[str] | None = None) -> int:
    """All widths; 1 if Triton is not there."""
    from benchmarks.measuring import commit, version, write_json
    from qvgen.fused.rotate import table_of, usual_launch
    from qvgen.hadamard import paired_factors

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS))
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args(argv)
    if version("triton") is None:
        print("Triton is not installed", file=sys.stderr)
        return 1
    kernels: dict[str, dict[str, Any]] = {}
    facts = {"architecture": f"sm_{HOPPER}", "triton": version("triton"), "commit": commit()}
    for width in given.widths:
        orders = paired_factors(width)
        if orders is None:
            parser.error(f"--widths: {width} has no pair of Hadamard matrices")
        kinds = {"short": (True, False), "integers": (True, True), "long": (False, False)}
        for name, (chained, codes) in kinds.items():
            found = compiled(width, usual_launch(table_of(orders), chained, codes), codes)
            kernels.setdefault(str(width), {})[name] = found
            print(f"{width} {name}: {found}", flush=True)
        write_json(given.output, {**facts, "kernels": kernels})
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout's own library
    sys.exit(main())
