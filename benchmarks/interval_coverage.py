"""How often the intervals hold the truth: simulated prompts, videos and seeds with a known mean.

    python benchmarks/interval_coverage.py --output results/statistics

Two kinds. The leaderboard's intervals over prompts (``evalharness.stats``) at 50 to 1000 prompts: scores of
0 to 1 from a narrow, a skewed and a two-humped population, one video a prompt or one to five, and the mean of
several dimensions with overlapping prompts. The comparison's t intervals (``evalharness.effects``) with 1 to
5 seeds, for components that make seeds matter not at all, a little or most, and prompts much, little or
not beside the rest; with several seeds twice as many runs, as these intervals hang on a fit.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evalharness.effects import effect_of
from evalharness.stats import Interval, Key, Kind, Resampler, bootstrap_ci, joint_mean

PROMPTS = (50, 100, 200, 500, 1000)
SEEDS = (1, 2, 3, 5)
POPULATIONS = {"narrow": (8.0, 2.0), "skewed": (4.0, 0.4), "two-humped": (0.4, 0.2)}
"""Of the beta distribution of a prompt's level."""
SPREADS = {"none": 0.0, "a little": 0.1, "as much": 0.3, "most": 1.0}
"""Standard deviation between seeds."""
MIXES = {"even": (1.0, 1.0), "prompts": (1.0, 0.1), "rest": (0.1, 1.0), "rest alone": (0.0, 1.0)}
"""Variances of prompts and of the rest."""

Rng = np.random.Generator
Scores = dict[Key, float]


def one_video(rng: Rng, prompts: int, shape: tuple[float, float]) -> Scores:
    """One video a prompt."""
    return {Key(f"{i:05d}", 0): float(v) for i, v in enumerate(rng.beta(*shape, prompts))}


def several_videos(rng: Rng, prompts: int, shape: tuple[float, float]) -> Scores:
    """One to five videos around the prompt's level, so that prompts weigh differently."""
    levels, counts = rng.beta(*shape, prompts), rng.integers(1, 6, prompts)
    noise = rng.uniform(-0.1, 0.1, (prompts, 5))
    return {
        Key(f"{i:05d}", j): float(levels[i] + noise[i, j]) for i in range(prompts) for j in range(counts[i])
    }


def several_dimensions(rng: Rng, prompts: int, shape: tuple[float, float]) -> list[Scores]:
    """Four dimensions of one level: all prompts, every second, every third, and all again with noise."""
    level = rng.beta(*shape, prompts)
    return [
        {Key(f"{i:05d}", 0): float(level[i] + rng.uniform(-0.1, 0.1)) for i in range(0, prompts, step)}
        for step in (1, 2, 3, 1)
    ]


def leaderboard(draws: int, prompts: Sequence[int], made: Kind) -> Iterator[dict[str, Any]]:
    """Coverage of the leaderboard's intervals."""
    kinds: dict[str, Callable[[Rng, int, tuple[float, float], Resampler], Interval]] = {
        "one video a prompt": lambda r, n, s, b: bootstrap_ci(one_video(r, n, s), b),
        "one to five videos": lambda r, n, s, b: bootstrap_ci(several_videos(r, n, s), b),
        "mean of four dimensions": lambda r, n, s, b: joint_mean(several_dimensions(r, n, s), b),
    }
    resampler = Resampler(kind=made)
    for number in prompts:
        for population, shape in POPULATIONS.items():
            truth = shape[0] / (shape[0] + shape[1])
            for kind, interval in kinds.items():
                rng = np.random.default_rng(
                    [number, list(kinds).index(kind), list(POPULATIONS).index(population)]
                )
                hits = 0
                for _ in range(draws):
                    found = interval(rng, number, shape, resampler)
                    assert found.lo is not None and found.hi is not None
                    hits += found.lo <= truth <= found.hi
                yield row(made, number, 1, f"{population}, {kind}", hits, draws)


def student(draws: int, prompts: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Coverage of the comparison's intervals."""
    for number in prompts:
        yield crossed_case(draws, number, 1, "none", "even")  # one seed speaks of itself alone
        for seeds in SEEDS[1:]:
            for spread in SPREADS:
                for mix in MIXES:
                    yield crossed_case(2 * draws, number, seeds, spread, mix)


def crossed_case(draws: int, prompts: int, seeds: int, spread: str, mix: str) -> dict[str, Any]:
    """Normal tables of seeds by prompts around zero."""
    rng = np.random.default_rng([prompts, seeds, int(100 * SPREADS[spread]), list(MIXES).index(mix)])
    by_prompt, rest = (math.sqrt(variance) for variance in MIXES[mix])
    hits = 0
    for _ in range(draws):
        z = rng.normal(0, SPREADS[spread], (seeds, 1)) + rng.normal(0, by_prompt, (1, prompts))
        found = effect_of(z + rng.normal(0, rest, (seeds, prompts)), prompts)
        assert found.lo is not None and found.hi is not None
        hits += found.lo <= 0 <= found.hi
    return row("comparison", prompts, seeds, f"seeds differ: {spread}; {mix}", hits, draws)


def again(draws: int, record: Path) -> list[dict[str, Any]]:
    """Comparisons that did not lie within 93 to 97 %, with so many draws."""
    found = []
    for r in json.loads(record.read_text(encoding="utf-8")):
        if r["interval"] == "comparison" and not 93 <= r["coverage_pct"] <= 97:
            spread, mix = r["case"].removeprefix("seeds differ: ").split("; ")
            found.append(crossed_case(draws, r["prompts"], r["seeds"], spread, mix))
    return found


def row(interval: str, prompts: int, seeds: int, case: str, hits: int, draws: int) -> dict[str, Any]:
    """One line of the record, with the simulation's own standard error in per cent."""
    share = hits / draws
    return {
        "interval": interval,
        "prompts": prompts,
        "seeds": seeds,
        "case": case,
        "draws": draws,
        "coverage_pct": round(100 * share, 2),
        "error_pct": round(100 * math.sqrt(share * (1 - share) / draws), 2),
    }


def document(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: the extremes of each kind on top, every line below."""
    lines = [
        "# Coverage of the intervals",
        "",
        "Made by `python benchmarks/interval_coverage.py`. Nominal: 95 %.",
        "",
    ]
    for interval, seeds in sorted({(r["interval"], r["seeds"]) for r in rows}):
        found = [r["coverage_pct"] for r in rows if (r["interval"], r["seeds"]) == (interval, seeds)]
        inside = sum(93 <= value <= 97 for value in found)
        lines.append(
            f"- {interval}, {seeds} seed{'s' * (seeds > 1)}: {min(found):.1f} to {max(found):.1f} %, "
            f"{inside} of {len(found)} cases within 93 to 97 %"
        )
    lines += ["", "| interval | prompts | seeds | case | coverage % | +- |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {r['interval']} | {r['prompts']} | {r['seeds']} | {r['case']} | {r['coverage_pct']:.1f} | "
        f"{r['error_pct']:.1f} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--draws", type=int, default=2000, help="simulated runs of each case")
    parser.add_argument("--prompts", type=int, nargs="+", default=list(PROMPTS))
    parser.add_argument("--kind", choices=("skew-t", "percentile"), default="skew-t")
    parser.add_argument("--output", type=Path, default=Path("results/statistics"))
    parser.add_argument(
        "--again",
        type=int,
        default=0,
        metavar="DRAWS",
        help="comparisons of the record that lie outside, again",
    )
    options = parser.parse_args(argv)
    from evalharness.store import atomic_write_text

    if options.again:
        text = json.dumps(again(options.again, options.output / "coverage.json"), indent=1)
        atomic_write_text(options.output / "coverage_again.json", text + "\n")
        print(text)
        return 0
    rows = [
        *leaderboard(options.draws, options.prompts, options.kind),
        *student(options.draws, options.prompts),
    ]
    options.output.mkdir(parents=True, exist_ok=True)
    atomic_write_text(options.output / "coverage.json", json.dumps(rows, indent=1) + "\n")
    atomic_write_text(options.output / "coverage.md", document(rows))
    print(document(rows).split("| interval")[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
