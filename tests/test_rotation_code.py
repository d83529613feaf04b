"""``rotation_code.py``: what it counts, by hand; and that documents say what its record says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.rotation_code import compiled, loop_of
from qvgen.fused import switch
from qvgen.fused.rotate import table_of, usual_launch
from qvgen.hadamard import paired_factors

ROOT = Path(__file__).parents[1]
CODE = """
        /*0000*/                   S2R R0, SR_CTAID.X ;
.L_x_1:
        /*0010*/                   LDG.E.128 R4, [R2.64] ;
        /*0020*/              @!P0 BRA `(.L_x_2) ;
.L_x_3:
        /*0030*/                   MUFU.RCP R5, R4 ;
        /*0040*/               @P1 BRA `(.L_x_3) ;
.L_x_2:
        /*0050*/                   HMMA.16816.F32.BF16 R8, R4, R6, R8 ;
        /*0060*/              @UP2 BRA `(.L_x_1) ;
        /*0070*/                   EXIT ;
""".splitlines()


def test_the_longest_loop_is_counted() -> None:
    assert loop_of(CODE) == {"LDG": 1, "BRA": 3, "MUFU": 1, "HMMA": 1}


def test_without_a_loop_over_rows_all_code_is() -> None:
    straight = [f"        /*{16 * i:04x}*/                   FADD R0, R0, R1 ;" for i in range(20)]
    assert loop_of([*straight, *CODE[4:7]])["FADD"] == 20


@pytest.mark.parametrize("width", ["1920", "7680"])
def test_documents_say_what_the_compiler_made(width: str) -> None:
    kernels = json.loads((ROOT / "results/benchmarks/rotation_code.json").read_text())["kernels"]
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    found = {name: one["instructions_per_number"] for name, one in kernels[width].items()}
    assert f"| {width} | {found['short']} | {found['integers']} | {found['long']} |" in text
    assert all(one["stack_bytes"] == one["local_memory_instructions"] == 0 for one in kernels[width].values())


@pytest.mark.skipif(switch.INTERPRETED, reason="Triton interprets")
@pytest.mark.parametrize("width", [960, 1920, 3072, 7680])
@pytest.mark.parametrize("codes", [False, True])
def test_the_shipped_launch_is_bound_by_memory(width: int, codes: bool) -> None:
    """Compiled for Hopper, which needs Triton and no GPU: nothing spills, arithmetic has time to spare."""
    pytest.importorskip("triton")
    orders = paired_factors(width)
    assert orders is not None
    how = usual_launch(table_of(orders), chained=True, codes=codes)
    found = compiled(width, how, codes)
    assert found["stack_bytes"] == found["local_memory_instructions"] == 0
    assert 5 < found["instructions_per_number"] < 25
    assert found["slow_per_number"] < 0.3
    # All programs are to run at once: they share 65,536 registers and 227 KB of shared memory.
    registers = -(-found["registers"] // 8) * 8 * 32 * how.warps
    assert registers * how.resident <= 65536
    assert (found["shared_memory_bytes"] + 1024) * how.resident <= 227 * 1024
