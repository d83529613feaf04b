"""Measures which tiles are fastest for which shape and writes the int8 backend's table.

    python benchmarks/tune_int8.py --output qvgen/packed/triton_table.json

A candidate whose result differs from the first one's in any bit is left out and reported. Those whose warps
have jobs of their own (Hopper) are first tried on small matrices, in a process of its own with a time limit:
were they to wait for ever, only they would be left out. On an H100 all of it takes a few minutes. ``--tiny``
runs it in small, in Triton's interpreter too.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

FINAL = 4  # candidates that meet in the second round
GROUPS = (4, 8, 16)
JOBS_LIMIT_S = 150
EQUAL = "equal"
KEPT = 8


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    from benchmarks.driver import command_line, parsed

    parser = command_line(__doc__, "triton_table.json", repeats=5)
    parser.add_argument("--limit-s", type=float, default=240.0, help="seconds until no further shape begins")
    parser.add_argument("--shapes", default="", help="only these, as MxNxK, comma-separated")
    parser.add_argument("--no-jobs", action="store_true", help="leave out warps with jobs of their own")
    parser.add_argument("--try-jobs", action="store_true", help="only try these on small matrices")
    return parsed(parser, argv)


def candidates(tiny: bool, copy_engine: bool, jobs: Mapping[str, str]) -> list[Any]:
    """Ways to run a product that fit a multiprocessor; those with jobs that ``jobs`` calls equal."""
    from qvgen.packed.triton_table import SHARED_LIMIT, Tiles

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
    found += [tiles for tiles in job_candidates() if jobs.get(str(tiles)) == EQUAL]
    return [t for t in found if t.stages * (t.bm + t.bn) * t.bk <= SHARED_LIMIT]


def job_candidates() -> list[Any]:
    """Ways whose warps have jobs of their own."""
    from qvgen.packed.triton_table import Tiles

    return [Tiles(128, 128, bk, 4, stages, jobs=True) for bk, stages in ((128, 6), (128, 5), (64, 12))]


def try_jobs(device: torch.device) -> None:
    """Print of each way with jobs, when it is known, whether it gives what equal warps give."""
    from benchmarks.int8_layers import BF16, drawn_tokens, packed_layer
    from qvgen.packed.triton_linear import expand_codes, multiply, product_call

    one, wrong = torch.ones(1, device=device), {str(tiles): [] for tiles in job_candidates()}
    tried: list[tuple[Any, Any, Any]] = []
    for m, n, k in ((300, 136, 64), (1000, 264, 448), (40000, 512, 1920), (17776, 1920, 7680)):
        weight = packed_layer(n, k, 4, device, one, one)
        tried.append((drawn_tokens(m, k, 4, device), expand_codes(weight.codes, 4, weight.shape), weight))
    tokens, expanded, weight = tried[0]
    tried.append((tokens, expanded, replace(weight, bias=None, gelu=True)))
    out = torch.empty((300, 136), dtype=BF16, device=device)
    ways = [way for tiles in job_candidates() for way in (tiles, tiles.without_jobs())]
    with suppress(Exception):  # only saves time
        compile_all(
            [product_call(tokens, expanded, w, out, way) for way in ways for w in (weight, tried[-1][2])]
        )
    for tiles in job_candidates():
        for tokens, expanded, weight in tried:
            plain = multiply(tokens, expanded, weight, BF16, tiles.without_jobs())
            again = [multiply(tokens, expanded, weight, BF16, tiles) for _ in range(3)]
            if not all(torch.equal(y, plain) for y in again):
                wrong[str(tiles)].append(f"{len(tokens.codes)}x{weight.shape}")
        torch.cuda.synchronize(device)
        print(
            f"{tiles}: {'differs: ' + ', '.join(wrong[str(tiles)]) if wrong[str(tiles)] else EQUAL}",
            flush=True,
        )


def jobs_work(given: argparse.Namespace, device: torch.device) -> dict[str, str]:
    """Of each way with jobs ``equal``, or why it is left out; found in another process, with a time limit."""
    from qvgen.packed.triton_product import has_jobs

    found = {str(tiles): "not reached" for tiles in job_candidates()}
    if given.no_jobs or given.tiny:
        return dict.fromkeys(found, "not asked for")
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] != 9 or not has_jobs():
        return dict.fromkeys(found, "needs Hopper and Triton 3.6")
    command = [sys.executable, __file__, "--try-jobs", "--output", f"{given.output}.jobs"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            text, _ = process.communicate(timeout=JOBS_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            text = process.communicate()[0] + f"\nstopped after {JOBS_LIMIT_S} s"
    for line in text.splitlines():
        name, _, verdict = line.partition(": ")
        found.update({name: verdict} if name in found else {})
    if set(found.values()) != {EQUAL}:
        print("\n".join(text.splitlines()[-12:]), flush=True)
    return found


def compile_all(calls: list[Any]) -> None:
    """Compile kernels side by side; those that fail are found when they are timed."""
    try:
        from triton.runtime._async_compile import AsyncCompileMode
    except ImportError:
        return
    with ThreadPoolExecutor(8) as pool, AsyncCompileMode(pool, ignore_errors=True):
        for call in calls:
            call.kernel.warmup(*call.operands, grid=(call.programs,), **call.constants)


def tune_product(
    shape: tuple[int, int, int], device: torch.device, tiny: bool, repeats: int, jobs: Mapping[str, str]
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
    tried = candidates(tiny, copy_engine(device), jobs)
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
        "tried": kept(times),
    }  # fmt: skip


def kept(times: dict[Any, float]) -> list[dict[str, Any]]:
    """The fastest, and the fastest of each kind of kernel: the table is part of the package."""
    ordered = sorted(times, key=lambda tiles: times[tiles])
    chosen = ordered[:KEPT]
    for jobs in (False, True):
        chosen += [t for t in ordered if t.jobs == jobs][:1]
    return [{"tiles": asdict(t), "ms": times[t]} for t in dict.fromkeys(chosen)]


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
    if given.try_jobs:
        try_jobs(device)
        return 0
    deadline, errors = Deadline(given.limit_s), 0
    table: dict[str, Any] = {
        **surroundings(device),
        "tiny": given.tiny,
        "jobs": jobs_work(given, device),
        "gemm": [],
        "quantize": {},
        "rows": [],
    }
    for tiles, verdict in table["jobs"].items():
        print(f"{tiles}: {verdict}", flush=True)
    for shape in work(given.tiny):
        if deadline.passed:
            break
        if given.shapes and "x".join(map(str, shape)) not in given.shapes.split(","):
            continue
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
    table["gemm"].append(tune_product(shape, device, given.tiny, given.repeats, table["jobs"]))
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
