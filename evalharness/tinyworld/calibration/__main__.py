"""Measure, judge, write. See the package's docstring."""

from __future__ import annotations

import argparse
import functools
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evalharness.api import Metric, Sample, Video
from evalharness.console import Console
from evalharness.stats import Resampler
from evalharness.store import atomic_write_json, atomic_write_text
from evalharness.tinyworld.calibration import document, rules
from evalharness.tinyworld.calibration.cases import Case, held_out_cases
from evalharness.tinyworld.calibration.conditions import CONDITIONS, NOISE_STEPS, Condition, noisy
from evalharness.tinyworld.calibration.model_bar import model_videos, quality
from evalharness.tinyworld.calibration.scoring import Scores, protocol_metrics, score, through_codec

FEWEST = 20
NOISE_CLIPS = 40
NOISE_DIMENSIONS = ("subject_consistency", "background_consistency", "motion_smoothness", "imaging_quality")

log = logging.getLogger(__name__)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m evalharness.tinyworld.calibration",
        description="Score videos whose verdict is known; exit code 1 if a dimension or the model fails.",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for calibration.json and calibration.md"
    )
    parser.add_argument("--videos", type=int, default=100, help=f"clips for each condition, {FEWEST} or more")
    parser.add_argument(
        "--model", type=int, default=0, metavar="N", help="also N videos of the bundled model"
    )
    parser.add_argument("--model-videos", type=Path, metavar="FOLDER", help="keep or find them here")
    args = parser.parse_args(arguments)
    if args.videos < FEWEST:
        parser.error(f"--videos {args.videos}: expected {FEWEST} or more, intervals need them")
    if args.model < 0:
        parser.error(f"--model {args.model}: expected 0 (none) or a number of videos")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tables; 1 if a rule is broken or the model's bar is missed, both named."""
    args = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    console, resampler = Console(), Resampler()
    metrics = protocol_metrics()
    cases = held_out_cases(args.videos)
    scores = {c.name: _condition(c, cases, metrics, console) for c in CONDITIONS.values()}
    card: dict[str, Any] | None = None
    if args.model:
        with tempfile.TemporaryDirectory() as spare:
            folder = args.model_videos or Path(spare)
            scores[document.MODEL], card = _model(args.model, folder, metrics, console, resampler)
    table = document.intervals(scores, resampler)
    steps = document.intervals(_noise(cases[:NOISE_CLIPS], console), resampler)
    verdicts = rules.judge(scores, cases, resampler)
    atomic_write_json(args.out / "calibration.json", document.as_json(table, steps, verdicts, card))
    atomic_write_text(args.out / "calibration.md", document.as_markdown(table, steps, verdicts, card))
    return _conclude(verdicts, card)


def _condition(
    condition: Condition, cases: Sequence[Case], metrics: dict[str, Metric], console: Console
) -> Scores:
    with console.progress(condition.name, len(cases), "video") as bar:

        def videos() -> Iterator[tuple[Case, Video, Sample]]:
            for case in cases:
                frames, sample = condition.make(case)
                yield case, through_codec(frames), sample
                bar.advance()

        return score(videos(), metrics)


def _noise(cases: Sequence[Case], console: Console) -> dict[str, Scores]:
    """Growing noise on the dimensions that must feel it."""
    metrics = protocol_metrics(NOISE_DIMENSIONS)
    table = {}
    for sigma in (0.0, *NOISE_STEPS):
        make = functools.partial(_with_noise, sigma)
        table[f"{sigma:g}"] = _condition(Condition(f"noise {sigma:g}", "", make), cases, metrics, console)
    return table


def _with_noise(sigma: float, case: Case) -> tuple[np.ndarray, Sample]:
    return noisy(case, sigma), case.sample


def _model(
    count: int, folder: Path, metrics: dict[str, Metric], console: Console, resampler: Resampler
) -> tuple[Scores, dict[str, Any]]:
    cases = held_out_cases(count)
    videos = []
    with console.progress("model", count, "video") as bar:
        for row in model_videos(cases, folder):
            videos.append(row)
            bar.advance()
    scores = score(((case, video, case.sample) for case, video in videos), metrics)
    return scores, quality(videos, resampler)


def _conclude(verdicts: Sequence[rules.Verdict], card: dict[str, Any] | None) -> int:
    broken = [v for v in verdicts if not v.passed]
    for verdict in broken:
        rule = verdict.rule
        log.error(
            "%s under %r: expected %s %g, measured %s",
            rule.dimension, rule.condition, rule.verb, rule.margin, verdict.measured,
        )  # fmt: skip
    missed = [what for what, share in (card or {"shares": {}})["shares"].items() if share["met"] is False]
    if missed:
        log.error("the model misses its bar for %s", ", ".join(missed))
    log.info("%d of %d rules hold", len(verdicts) - len(broken), len(verdicts))
    return 1 if broken or missed else 0


if __name__ == "__main__":
    sys.exit(main())
