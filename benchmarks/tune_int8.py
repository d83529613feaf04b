"""Measures which tiles are fastest for which shape and writes the int8 backend's table.

    python benchmarks/tune_int8.py --output qvgen/packed/triton_table.json

A candidate whose result differs from the first one's in any bit is left out and reported. On an
H100 all of it takes a minute or two. ``--tiny`` runs it in small, in Triton's interpreter too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

FINAL = 4  # candidates that meet in the second round
GROUPS = (4, 8, 16)
SHARED_LIMIT = 227 * 1024


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    from benchmarks.driver import command_line, parsed

    parser = command_line(__doc__, "triton_table.json", repeats=5)
    parser.add_argument("--limit-s", type=float, default=240.0, help="seconds until no further shape begins")
    return parsed(parser, argv)


def candidates(tiny: bool, copy_engine: bool) -> list[Any]:
    """Ways to run a product that fit a multiprocessor."""
    from qvgen.packed.triton_table import Tiles

    if tiny:
        return [
            Tiles(32, 32, 32, 4, 2),
            Tiles(16, 32, 64, 4, 2, per_sm=1, split=True, whole=True, flatten=True),
        ]
    if not copy_engine:
        shapes = [(128, 128, 64, 8), (128, 128, 64, 4), (64, 128, 64, 4), (128, 256, 64, 8), (64, 64, 64, 4)]
        return [Tiles(*shape, stages) for shape in shapes for stages in (2, 3, 4)]
    found = []
    for bm, bn, bk, warps, stages, splits, resident in (
        (128, 256, 128, 8, 3, (False, True), 1),
        (128, 256, 128, 8, 4, (True,), 1),
        (256, 128, 128, 8, 3, (False, True), 1),
        (256, 128, 128, 8, 4, (True,), 1),
        (128, 256, 64, 8, 4, (False, True), 1),
        (128, 128, 128, 4, 2, (False, True), 2),
        (128, 128, 128, 8, 3, (False,), 1),
        (128, 128, 128, 8, 4, (False,), 1),
        (128, 128, 64, 4, 3, (False,), 2),
        (128, 128, 64, 4, 4, (False, True), 2),
        (64, 256, 128, 4, 2, (False, True), 2),
        (64, 256, 64, 4, 4, (True,), 2),
        (64, 128, 128, 4, 3, (False,), 2),
        (64, 64, 128, 4, 4, (False,), 2),
    ):
        for split in splits:
            one = Tiles(bm, bn, bk, warps, stages, split=split)
            stay = replace(one, per_sm=resident)
            found += [one, stay, replace(stay, flatten=True)]
            if split and warps == 8:
                found += [replace(stay, whole=True), replace(stay, whole=True, flatten=True)]
    return [t for t in found if t.stages * (t.bm + t.bn) * t.bk <= SHARED_LIMIT]


def compile_all(calls: list[tuple[Any, ...]]) -> None:
    """Compile kernels side by side; those that fail are found when they are timed."""
    from qvgen.packed import triton_kernels

    try:
        from triton.runtime._async_compile import AsyncCompileMode
    except ImportError:
        return
    with ThreadPoolExecutor(8) as pool, AsyncCompileMode(pool, ignore_errors=True):
        for programs, operands, constants in calls:
            triton_kernels.int8_gemm.warmup(*operands, grid=(programs,), **constants)


def tune_product(
    shape: tuple[int, int, int], device: torch.device, tiny: bool, repeats: int
) -> dict[str, Any]:
    """Best tiles of one shape (tokens, rows, columns), with the times of all."""
    from benchmarks.int8_layers import BF16, drawn_tokens, packed_layer
    from qvgen.packed.triton_linear import copy_engine, expand_codes, multiply, product_call

    m, n, k = shape
    one = torch.ones(1, device=device)
    weight = packed_layer(n, k, 4, device, one, one)
    expanded = expand_codes(weight.codes, 4, weight.shape)
    sets = [drawn_tokens(m, k, 4, device) for _ in range(1 if tiny else 2)]
    run = partial(multiply, expanded=expanded, weight=weight, out_dtype=BF16)
    tried = candidates(tiny, copy_engine(device))
    if device.type == "cuda":
        out = torch.empty((m, n), dtype=BF16, device=device)
        with suppress(Exception):  # only saves time
            compile_all([product_call(sets[0], expanded, weight, out, tiles) for tiles in tried])
        del out
    expected, times, failed = None, {}, {}
    for tiles in tried:
        try:
            y = run(sets[0], tiles=tiles)
            expected = y if expected is None else expected
            if not torch.equal(y, expected):
                failed[str(tiles)] = "differs"
                continue
            times[tiles] = timed([partial(run, s, tiles=tiles) for s in sets], device, repeats)
        except Exception as error:  # too much shared memory, say; the others go on
            failed[str(tiles)] = f"{type(error).__name__}: {str(error)[:120]}"
    finalists = sorted(times, key=lambda t: times[t])[:FINAL]
    for tiles in finalists:
        for group in () if tiny else GROUPS:
            near = replace(tiles, group=group)
            times[near] = timed([partial(run, s, tiles=near) for s in sets], device, 2 * repeats)
    best = min(times, key=lambda t: times[t])
    return {
        "m": m, "n": n, "k": k, "tiles": asdict(best), "ms": times[best],
        "tflops": 2e-9 * m * n * k / times[best], "failed": failed,
        "tried": [{"tiles": asdict(t), "ms": times[t]} for t in sorted(times, key=lambda t: times[t])],
    }  # fmt: skip


def timed(actions: list[Any], device: torch.device, repeats: int) -> float:
    """Median milliseconds of one of ``actions``, which run as one graph."""
    from benchmarks.measuring import Deadline, compare, recorded

    found = compare({"it": recorded(actions * 3, device)}, device, repeats, Deadline(30))
    return float(found["it"]["median_ms"]) / (3 * len(actions))


def tune_rows(tokens: int, columns: int, device: torch.device, repeats: int) -> dict[int, float]:
    """Milliseconds to quantize so many tokens with each number of warps."""
    from benchmarks.int8_layers import BF16
    from qvgen.packed.triton_linear import quantize_tokens

    one = torch.ones(1, device=device)
    sets = [torch.randn(tokens, columns, device=device, dtype=BF16) for _ in range(3)]
    found: dict[int, float] = {}
    for warps in (1, 2, 4, 8, 16, 32):
        if 8 <= columns / (32 * warps) <= 100:
            actions = [partial(quantize_tokens, x, one, one, 15, False, warps) for x in sets]
            found[warps] = timed(actions, device, repeats)
    return found


def work(tiny: bool) -> Iterator[tuple[int, int, int]]:
    """The shapes of all models' blocks, each once."""
    from benchmarks.int8_layers import BLOCKS, TINY_BLOCKS, shapes

    blocks = TINY_BLOCKS if tiny else BLOCKS
    yield from dict.fromkeys(shape for groups in blocks.values() for shape in shapes(groups))


def main(argv: Sequence[str] | None = None) -> int:
    """Tune all shapes; the table is written after each."""
    from benchmarks.driver import attempted, on_device
    from benchmarks.measuring import Deadline, surroundings, write_json

    given, device = arguments(argv), on_device()
    deadline, errors = Deadline(given.limit_s), 0
    table: dict[str, Any] = {
        **surroundings(device),
        "tiny": given.tiny,
        "gemm": [],
        "quantize": {},
        "rows": [],
    }
    for shape in work(given.tiny):
        if deadline.passed:
            break
        found = attempted(partial(tune_shape, shape, table, device, given))
        if "error" in found:
            errors += 1
            continue
        last = table["gemm"][-1]
        took = found["took_s"]
        print(f"{shape}: {last['tflops']:.0f} TFLOP/s {last['tiles']} in {took:.0f} s", flush=True)
        write_json(given.output, table)
    return 1 if errors else 0


def tune_shape(
    shape: tuple[int, int, int], table: dict[str, Any], device: torch.device, given: argparse.Namespace
) -> dict[str, Any]:
    """Add the product of ``shape`` to the table and, once for each width, the quantizer."""
    table["gemm"].append(tune_product(shape, device, given.tiny, given.repeats))
    m, _, k = shape
    if str(k) not in table["quantize"] and (given.tiny or m > 4096):
        rows = tune_rows(m, k, device, given.repeats)
        table["rows"].append({"tokens": m, "columns": k, "ms": rows})
        if rows:
            table["quantize"][str(k)] = min(rows, key=lambda warps: rows[warps])
    return {}


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout's own library
    sys.exit(main())
