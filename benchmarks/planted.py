"""Whether the gate catches planted regressions of a quantizer and leaves harmless changes alone.

    python benchmarks/planted.py make --work runs/planted            # each arm's run, about ten minutes
    python benchmarks/planted.py judge --work runs/planted --output results/statistics

An arm is ``rtn`` at 4 bits with one change of the arithmetic, made in this process. ``make`` generates and
scores 24 prompts of each arm, on one full-precision run. ``judge`` then draws 20 times 16 of the 24 prompts,
and holds the arm's scores of them against the clean arm's by the gates of ``results/ci/gates.yaml``. A
slower step is planted by ``benchmarks.planted_step``; ``benchmarks.planted_sets`` draws independent videos.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    from torch import Tensor

    from evalharness.compare.selection import Side
    from evalharness.result_schema import Results

DRAWS, PROMPTS_DRAWN, PROMPTS_MADE = 20, 16, 24
GATES = Path("results/ci/gates.yaml")
ROW = "rtn-w4a4"


def sign(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """``s (c + z)``: the zero point's sign is wrong."""
    return scale * (codes + zero_point)


def zero(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """``s c``: the zero point is dropped."""
    return scale * codes.to(scale.dtype)


def reordered(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """``s c - s z``: the same number, rounded differently."""
    return scale * codes - scale * zero_point


DEQUANTIZE: dict[str, Callable[..., Tensor]] = {"sign": sign, "zero": zero, "reordered": reordered}
ARMS = ("clean", "again", "reordered", "sign", "zero", "clip")
HARMLESS = ("again", "reordered")


@contextlib.contextmanager
def planted(arm: str) -> Iterator[None]:
    """Within the block the library's arithmetic is changed in this process."""
    import qvgen.linear
    import qvgen.quantizers

    found = qvgen.quantizers.initial_scale

    def narrow(*given: Any) -> tuple[Tensor, Tensor]:
        scale, zero_point = found(*given)
        return 0.7 * scale, zero_point

    with contextlib.ExitStack() as stack:
        if arm in DEQUANTIZE:
            stack.enter_context(mock.patch.object(qvgen.linear, "dequantize", DEQUANTIZE[arm]))
        if arm == "clip":
            stack.enter_context(mock.patch.object(qvgen.quantizers, "initial_scale", narrow))
        yield


def make(work: Path, arms: Sequence[str]) -> int:
    """One run folder an arm; the full-precision videos are made once and copied."""
    from evalharness.cli.main import main

    base = work / "base"
    common = ["run", "--workers", "0", "--limit", str(PROMPTS_MADE), "--bits", "4", "--no-profile"]
    failed = main([*common, "--output", str(base)])
    for arm in arms:
        if not (work / arm).exists():
            shutil.copytree(base, work / arm)
    for arm in arms:
        with planted(arm):
            failed |= main([*common, "--methods", "rtn", "--output", str(work / arm)])
    return failed


def subset(results: Results, prompts: set[str]) -> Results:
    """The same cells with the scores of some prompts only."""
    cells = [
        cell.model_copy(
            update={
                "scores": {d: [r for r in rows if r.prompt_id in prompts] for d, rows in cell.scores.items()}
            }
        )
        for cell in results.cells
    ]
    return results.model_copy(update={"cells": cells})


def verdict(ours: Side, reference: Side) -> tuple[str, float]:
    """What the quality gates of ``GATES`` say of it, and by how many points the mean fell."""
    from evalharness.gates.checking import check
    from evalharness.gates.spec import Gate, Gates, read_gates

    whole = read_gates(GATES)
    gates = Gates(
        gates=tuple(gate for gate in whole.gates if not gate.is_cost), significance=whole.significance
    )
    single = Gates(gates=(Gate(metric="mean", max_drop=0.0),), significance=whole.significance)
    [mean] = check(ours, reference, single).verdicts
    assert mean.reference is not None and mean.run is not None
    return check(ours, reference, gates).status.value, mean.reference - mean.run


def judge_scores(work: Path, arms: Sequence[str] = ARMS[1:]) -> dict[str, dict[str, Any]]:
    """Arm -> how many of the draws the gate called a regression, and by how much the mean fell."""
    from evalharness.compare.selection import Side
    from evalharness.results import read_results

    clean = read_results(work / "clean" / "results.json")
    prompts = sorted({row.prompt_id for cell in clean.cells for row in cell.scores["scene"]})
    found: dict[str, dict[str, Any]] = {}
    for arm in arms:
        run = read_results(work / arm / "results.json")
        statuses, drops = [], []
        for draw in range(DRAWS):
            drawn = set(random.Random(draw).sample(prompts, PROMPTS_DRAWN))  # noqa: S311 - no secret
            ours, reference = Side(arm, subset(run, drawn), ROW), Side("clean", subset(clean, drawn), ROW)
            status, drop = verdict(ours, reference)
            statuses.append(status)
            drops.append(drop)
        found[arm] = {
            "draws": DRAWS,
            "regressions": statuses.count("REGRESSION"),
            "passes": statuses.count("PASS"),
            "mean_drop": [min(drops), statistics.median(drops), max(drops)],
        }
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("verb", choices=("make", "judge"))
    parser.add_argument("--work", type=Path, default=Path("runs/planted"))
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--output", type=Path, default=Path("results/statistics"))
    options = parser.parse_args(argv)
    if options.verb == "make":
        return make(options.work, [arm for arm in options.arms.split(",") if arm])
    from evalharness.errors import UserError
    from evalharness.store import atomic_write_text

    try:
        record = {"arms": judge_scores(options.work)}
    except UserError as error:
        parser.error(f"{error}; make the runs first")
    options.output.mkdir(parents=True, exist_ok=True)
    atomic_write_text(options.output / "planted.json", json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
