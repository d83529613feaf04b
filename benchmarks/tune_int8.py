"""Measures tiles of products and how rows are best held to quantize them; writes the int8 backend's table.

    python benchmarks/tune_int8.py --output qvgen/packed/triton_table.json

Parts: ``gemm`` (tiles by shape) and ``quantize`` (rows by width, with GELU and norms: ``tune_rows.py``). With
one of them the other part of an existing table is kept. A candidate whose result differs from the first one's
in any bit (of GELU and norms in more than a few codes) is left out and reported. Tiles whose warps have jobs
of their own (Hopper) are first tried on small matrices, in a process of its own with a time limit: were they
to wait for ever, only they would be left out. On an H100 all of it takes a few minutes. ``--tiny`` runs it in
small, in Triton's interpreter too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
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
PARTS = ("gemm", "quantize")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    from benchmarks.driver import command_line, parsed

    parser = command_line(__doc__, "triton_table.json", repeats=5)
    help_ = "comma-separated: tiles of products, how rows are held; what is not measured is kept"
    parser.add_argument("--parts", default=",".join(PARTS), help=help_)
    parser.add_argument("--limit-s", type=float, default=240.0, help="seconds until no further shape begins")
    help_ = "seconds until no further rows begin"
    parser.add_argument("--rows-limit-s", type=float, default=90.0, help=help_)
    parser.add_argument("--shapes", default="", help="only these, as MxNxK, comma-separated")
    help_ = "ways whose warps have jobs, and of the others only the fastest that the table knows"
    parser.add_argument("--jobs-only", action="store_true", help=help_)
    parser.add_argument("--no-jobs", action="store_true", help="leave out warps with jobs of their own")
    parser.add_argument("--try-jobs", action="store_true", help="only try these on small matrices")
    return parsed(parser, argv, PARTS)


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
    from benchmarks.tuning import compile_all
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
    compile_all([product_call(tokens, expanded, w, out, way) for way in ways for w in (weight, tried[-1][2])])
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


def tune_product(
    shape: tuple[int, int, int], device: torch.device, tiny: bool, repeats: int, jobs: Mapping[str, str],
    known: Any = None,
) -> dict[str, Any]:  # fmt: skip
    """Best tiles of one shape (tokens, rows, columns), with the times of all.

    With ``known`` tiles without jobs only these meet those with jobs.
    """
    from benchmarks.int8_layers import BF16, drawn_tokens, packed_layer
    from benchmarks.tuning import compile_all, timed
    from qvgen.packed.triton_linear import copy_engine, expand_codes, multiply, product_call

    m, n, k = shape
    one = torch.ones(1, device=device)
    weight = packed_layer(n, k, 4, device, one, one)
    expanded = expand_codes(weight.codes, 4, weight.shape)
    sets = [drawn_tokens(m, k, 4, device) for _ in range(1 if tiny else 2)]
    run = partial(multiply, expanded=expanded, weight=weight, out_dtype=BF16)
    tried = candidates(tiny, copy_engine(device), jobs)
    if known is not None:
        tried = [known, *(tiles for tiles in tried if tiles.jobs)]
    if device.type == "cuda":
        out = torch.empty((m, n), dtype=BF16, device=device)
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


def work(tiny: bool) -> Iterator[tuple[int, int, int]]:
    """The shapes of all models' blocks, each once."""
    from benchmarks.int8_layers import BLOCKS, TINY_BLOCKS, shapes

    blocks = TINY_BLOCKS if tiny else BLOCKS
    yield from dict.fromkeys(shape for groups in blocks.values() for shape in shapes(groups))


def main(argv: Sequence[str] | None = None) -> int:
    """Tune what is asked for; the table is written after each shape."""
    from benchmarks.driver import on_device
    from qvgen.packed import triton_linear

    given, device = arguments(argv), on_device()
    if given.try_jobs:
        try_jobs(device)
        return 0
    try:  # both before anything is written
        table, known = kept_table(given), known_table(given)
    except ValueError as error:
        raise SystemExit(f"{given.output}: {error}") from error
    if not triton_linear.runs_on(device):
        raise SystemExit("tiles and rows: needs Triton, and a GPU or TRITON_INTERPRET=1")
    errors = 0
    if "quantize" in given.parts:
        errors += tune_quantize(table, device, given)
    if "gemm" in given.parts:
        errors += tune_gemm(table, device, given, known)
    return 1 if errors else 0


def kept_table(given: argparse.Namespace) -> dict[str, Any]:
    """The table that is there, if a part of it is to be kept.

    Raises:
        ValueError: the package would refuse what is kept: an older table, say.
    """
    from qvgen.packed.triton_table import parse

    empty: dict[str, Any] = {"tiny": given.tiny, "gemm": [], "quantize": {}, "rows": []}
    if set(given.parts) == set(PARTS) or not given.output.exists():
        return empty
    text = given.output.read_text()
    found = empty | json.loads(text)
    replaced = {part: empty[part] for part in given.parts}
    parse(json.dumps(found | replaced))
    return found


def tune_quantize(table: dict[str, Any], device: torch.device, given: argparse.Namespace) -> int:
    """Find how rows are held; the number of cases that failed."""
    from benchmarks.driver import attempted
    from benchmarks.measuring import Deadline, surroundings, write_json
    from benchmarks.tune_rows import cases, show, tune

    deadline, errors = Deadline(given.rows_limit_s), 0
    table |= {"quantize_on": surroundings(device), "quantize": {}, "rows": []}
    for case in cases(given.tiny):
        if deadline.passed:
            break
        found = attempted(partial(tune, case, device, given.repeats))
        if "error" in found:
            errors += 1
            continue
        print(f"{show(found)} in {found['took_s']} s", flush=True)
        table["rows"].append(found)
        table["quantize"].setdefault(case.kind, {})[str(case.columns)] = found["best"]
        write_json(given.output, table)
    return errors


def known_table(given: argparse.Namespace) -> dict[tuple[int, int, int], Any]:
    """With ``--jobs-only`` what the table that is there knows of ways without jobs."""
    if not given.jobs_only or not given.output.exists():
        return {}
    return known_tiles(json.loads(given.output.read_text()).get("gemm", ()))


def known_tiles(entries: Sequence[Mapping[str, Any]]) -> dict[tuple[int, int, int], Any]:
    """By shape the fastest tiles without jobs of a table's entries; shapes without any are left out."""
    from qvgen.packed.triton_table import Tiles

    found = {}
    for entry in entries:
        plain = [one for one in entry.get("tried", ()) if not one["tiles"].get("jobs")]
        if plain:
            best = min(plain, key=lambda one: float(one["ms"]))
            found[entry["m"], entry["n"], entry["k"]] = Tiles.from_dict(best["tiles"])
    return found


def tune_gemm(
    table: dict[str, Any], device: torch.device, given: argparse.Namespace,
    known: Mapping[tuple[int, int, int], Any],
) -> int:  # fmt: skip
    """Find tiles of all shapes; the number of those that failed. ``known``: of ``known_table``."""
    from benchmarks.driver import attempted
    from benchmarks.measuring import Deadline, surroundings, write_json

    deadline, errors = Deadline(given.limit_s), 0
    jobs = jobs_work(given, device)
    table |= {**surroundings(device), "tiny": given.tiny, "jobs": jobs, "gemm": []}
    for tiles, verdict in jobs.items():
        print(f"{tiles}: {verdict}", flush=True)
    for shape in work(given.tiny):
        if deadline.passed:
            break
        if given.shapes and "x".join(map(str, shape)) not in given.shapes.split(","):
            continue
        one = partial(tune_product, shape, device, given.tiny, given.repeats, jobs, known=known.get(shape))
        found = attempted(one)
        took = found.pop("took_s")
        if "error" in found:
            errors += 1
            continue
        table["gemm"].append(found)
        print(f"{shape}: {found['tflops']:.0f} TFLOP/s {found['tiles']} in {took:.0f} s", flush=True)
        write_json(given.output, table)
    return errors


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout's own library
    sys.exit(main())
