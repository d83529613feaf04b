"""How often the gate calls a run that changed nothing a regression.

    python benchmarks/false_alarms.py --output results/statistics

From the cached scores of ``results/tinyworld/cpu`` (16 rows, 80 prompts, 3 seeds): for each of 100 runs,
every prompt's reference score comes from one seed drawn at random and the run's from another. The weights
are the same, so that every REGRESSION is a false alarm. Two sizes: all prompts, and 32 as in ``results/ci``;
each run is held as a whole (all rows in one check) and row by row.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evalharness.compare.selection import Side, rows_of
from evalharness.gates.checking import check
from evalharness.gates.spec import Gates, read_gates
from evalharness.gates.status import Status
from evalharness.result_schema import CellResult, Results, ScoreRow
from evalharness.results import read_results

SHIPPED = Path("results/tinyworld/cpu/results.json")
GATES = Path("results/ci/gates.yaml")
SIZES = (80, 32)


def resampled(results: Results, rng: np.random.Generator, size: int) -> tuple[Results, Results]:
    """A run and a reference of the same weights; for each prompt, other seeds."""
    chosen = rng.choice(sorted(results.prompts), size, replace=False)
    pairs = {prompt: rng.permutation(3)[:2] for prompt in chosen}
    rows = rows_of(Side("", results))
    sides = []
    for side in (0, 1):
        picks = {prompt: int(pair[side]) for prompt, pair in pairs.items()}
        cells = [_mixed(row.cells, picks) for row in rows if len(row.cells) == 3]
        sides.append(results.model_copy(update={"cells": cells}))
    return sides[0], sides[1]


def _mixed(cells: Sequence[CellResult], picks: dict[str, int]) -> CellResult:
    """One cell whose prompts come from the seeds that ``picks`` names."""
    scores: dict[str, list[ScoreRow]] = {
        name: [
            row
            for place, cell in enumerate(cells)
            for row in cell.scores[name]
            if picks.get(row.prompt_id) == place
        ]
        for name in cells[0].scores
    }
    return cells[0].model_copy(update={"scores": {name: sorted(rows) for name, rows in scores.items()}})


def alarms(results: Results, gates: Gates, runs: int, size: int) -> dict[str, Any]:
    """Checks and false alarms, of whole runs and of single rows."""
    whole = single = rows = 0
    for number in range(runs):
        run, reference = resampled(results, np.random.default_rng([number, size]), size)
        whole += check(Side("run", run), Side("reference", reference), gates).status is Status.REGRESSION
        for row in rows_of(Side("", reference)):
            found = check(Side("run", run, row.name), Side("reference", reference, row.name), gates)
            single += found.status is Status.REGRESSION
            rows += 1
    return {
        "prompts": size,
        "runs": runs,
        "false_alarms": whole,
        "row_checks": rows,
        "row_false_alarms": single,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path("results/statistics"))
    options = parser.parse_args(argv)
    from evalharness.store import atomic_write_text

    results, given = read_results(SHIPPED), read_gates(GATES)
    quality = tuple(gate for gate in given.gates if not gate.is_cost)
    record: dict[str, Any] = {}
    for level in (given.significance, 0.05, None):
        gates = Gates(gates=quality, significance=level)
        record[f"significance {level}"] = [alarms(results, gates, options.runs, size) for size in SIZES]
    options.output.mkdir(parents=True, exist_ok=True)
    atomic_write_text(options.output / "false_alarms.json", json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
