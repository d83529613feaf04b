"""Compare the trainings of a grid: ``claims.md``, ``claims.json`` and plots.

    python -m evalharness.tinyworld.claims.report --grid configs/claims-main.yaml --out results/claims/main

Reads what ``claims.arms`` wrote; finished arms that the grid does not name are left out, and missing
ones are named. ``--published FOLDER`` reads the logs of the shipped checkpoints in their place.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from evalharness.errors import UserError
from evalharness.store import atomic_write_bytes, atomic_write_json, atomic_write_text
from evalharness.tinyworld.claims.document import as_markdown
from evalharness.tinyworld.claims.figures import figures
from evalharness.tinyworld.claims.findings import findings
from evalharness.tinyworld.claims.grid import Grid, read_grid
from evalharness.tinyworld.claims.runs import Run, from_published, read_runs

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--grid", type=Path, required=True)
    parser.add_argument("--records", type=Path, default=Path("build/claims"))
    parser.add_argument("--published", type=Path, help="folder of <method>-w3a3.train.jsonl files")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    grid = read_grid(args.grid)
    runs = from_published(args.published, grid.compare) if args.published else wanted(args.records, grid)
    write_report(runs, grid, args.out)
    return 0


def write_report(runs: Sequence[Run], grid: Grid, out: Path) -> None:
    """Write all files; the same bytes for the same runs."""
    found = findings(runs, grid)
    drawn = figures(runs, found, grid)
    for name, (png, _) in drawn.items():
        atomic_write_bytes(out / name, png)
    atomic_write_json(out / "claims.json", found)
    captions = {name: caption for name, (_, caption) in drawn.items()}
    atomic_write_text(out / "claims.md", as_markdown(found, runs, captions))


def wanted(folder: Path, grid: Grid) -> list[Run]:
    """The finished arms under ``folder`` that the grid names; missing ones are logged."""
    arms = {(arm.cell.label, arm.cell.bits.w, arm.cell.bits.a, arm.cell.seed): arm for arm in grid.arms}
    runs = {}
    for run in read_runs(folder):
        key = (run.record["label"], run.setting.w_bits, run.setting.a_bits, run.seed)
        if key in arms:
            runs[key] = run
    missing = [arm.cell.id for key, arm in arms.items() if key not in runs]
    if missing:
        log.warning("%d of %d arms are not finished: %s", len(missing), len(arms), ", ".join(missing[:5]))
    return list(runs.values())


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as mistake:
        sys.exit(f"error: {mistake}")
