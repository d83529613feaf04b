"""Compare the scores of several trainings: ``claims-scores.md``, ``.json``, ``.csv`` and plots.

    python -m evalharness.tinyworld.claims.scores \
        --runs s1=runs/claims-s1,s2=runs/claims-s2,s3=runs/claims-s3 --out results/claims/scores

Each folder is that of ``evalharness run`` on the checkpoints of one training seed (``claims.arms
--save``). Arms are paired by training seed, prompt, video seed and dimension.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evalharness.config import parse_bits
from evalharness.errors import UserError
from evalharness.store import atomic_write_bytes, atomic_write_json, atomic_write_text
from evalharness.tinyworld.claims.flags import named_folders, pairs
from evalharness.tinyworld.claims.score_document import as_csv, as_markdown
from evalharness.tinyworld.claims.score_figures import score_figures
from evalharness.tinyworld.claims.score_findings import score_findings
from evalharness.tinyworld.claims.scored import read_scored

HYPOTHESES = "qvgen:kd-qat,qvgen:lsq,qvgen-until75:qvgen,qvgen:qvgen-drop"
TRENDS = "qvgen:kd-qat,qvgen:lsq"  # the paper: most at 3 bits

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", required=True, help="run folder of each training seed: s1=FOLDER,s2=FOLDER")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--hypotheses", default=HYPOTHESES, help="higher:than pairs (%(default)s)")
    parser.add_argument("--trends", default=TRENDS, help="pairs that differ most at --most-at (%(default)s)")
    parser.add_argument("--most-at", default="3", help="bit width, such as 3 or w4a6 (%(default)s)")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folders = named_folders("--runs", args.runs, "SEED", "s1=runs/claims-s1")
    scores = read_scored(folders)
    hypotheses, trends = (
        pairs(flag, text, "higher:than")
        for flag, text in (("--hypotheses", args.hypotheses), ("--trends", args.trends))
    )
    found = score_findings(scores, hypotheses, trends, parse_bits(args.most_at)[0])
    if gaps := found["missing"]:
        log.warning("%d gaps, named in claims-scores.md; the first: %s", len(gaps), gaps[0])
    write_scores(found, args.out)
    return 0


def write_scores(found: Mapping[str, Any], out: Path) -> None:
    """Write all files; the same bytes for the same findings."""
    drawn = score_figures(found)
    for name, (png, _) in drawn.items():
        atomic_write_bytes(out / name, png)
    captions = {name: caption for name, (_, caption) in drawn.items()}
    atomic_write_json(out / "claims-scores.json", found)
    atomic_write_text(out / "claims-scores.csv", as_csv(found))
    atomic_write_text(out / "claims-scores.md", as_markdown(found, captions))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as mistake:
        sys.exit(f"error: {mistake}")
