"""How often the gate on times errs that looks more than once: simulated pairs, four kinds of noise.

    python -m benchmarks.looks --output results/statistics

Each run is ``benchmarks.against``'s own: 12 pairs, judged, and 12 more where nothing could be told, up to so
many looks. Two promises are tried: that code that did not change is called a REGRESSION in 1 % of the runs at
most, and that code that is twice the bound slower has a PASS in 5 % at most. How much of the latter is caught
is no promise, but what the gate is for.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.against import BLOCKS, BOUND, SIGNIFICANCE, until_told

Rng = np.random.Generator
Noise = Callable[[Rng, int], "np.ndarray"]
LOOKS = (1, 3, 6)
SPREADS = (0.02, 0.05, 0.1)
"""Of the logarithm of a pair's ratio: 2 % as of a path of tens of milliseconds, 5 % as of a short one."""
SLOWER = {"nothing changed": 0.0, "twice the bound slower": 2 * BOUND}
_MEMORY = 0.9  # correlation of neighbours in time


def normal(rng: Rng, pairs: int) -> np.ndarray:
    """Independent and normal."""
    return rng.normal(size=pairs)


def heavy(rng: Rng, pairs: int) -> np.ndarray:
    """Student's t with two degrees of freedom, whose variance is infinite."""
    return rng.standard_t(2, size=pairs)


def drifting(rng: Rng, pairs: int) -> np.ndarray:
    """Whoever goes first is faster or slower for long: each pair is nearly as the one before it."""
    steps = rng.normal(size=pairs)
    found = np.empty(pairs)
    level = rng.normal()
    for place in range(pairs):
        level = _MEMORY * level + math.sqrt(1 - _MEMORY**2) * steps[place]
        found[place] = level
    return found


def spiked(rng: Rng, pairs: int) -> np.ndarray:
    """Whoever goes first is hit now and then, in bursts, by five times the usual scatter; never the other."""
    bursts = np.repeat(rng.random(-(-pairs // 4)) < 0.2, 4)[:pairs]
    return rng.normal(size=pairs) + 5 * bursts * rng.random(pairs)


NOISES: dict[str, Noise] = {
    "normal": normal, "heavy tails": heavy, "drifting": drifting, "spikes on one side": spiked,
}  # fmt: skip


def pairs_of(rng: Rng, noise: Noise, spread: float, slower: float, pairs: int) -> tuple[list[float], ...]:
    """Times of the reference and of the run: a coin says in each pair who goes first."""
    coin = rng.choice((-1.0, 1.0), size=pairs)
    ratios = (1 + slower) * np.exp(spread * coin * noise(rng, pairs))
    return [1.0] * pairs, ratios.tolist()


def one_run(rng: Rng, noise: Noise, spread: float, slower: float, looks: int) -> str:
    """Its verdict."""
    reference, run = pairs_of(rng, noise, spread, slower, BLOCKS * looks)

    def measure(names: Sequence[str], look: int) -> dict[str, Any]:
        part = slice(look * BLOCKS, (look + 1) * BLOCKS)
        return {name: {"reference": reference[part], "run": run[part]} for name in names}

    _, [verdict] = until_told(measure, ["path"], BOUND, looks)
    return str(verdict.status.value)


def cases(draws: int, looks: Sequence[int]) -> Iterator[dict[str, Any]]:
    """A row for each number of looks, noise, spread and truth."""
    for number in looks:
        for noise_name, noise in NOISES.items():
            for spread in SPREADS:
                for truth, slower in SLOWER.items():
                    rng = np.random.default_rng([number, list(NOISES).index(noise_name), int(1000 * spread)])
                    found = Counter(one_run(rng, noise, spread, slower, number) for _ in range(draws))
                    yield {
                        "looks": number,
                        "noise": noise_name,
                        "spread_pct": 100 * spread,
                        "truth": truth,
                        "draws": draws,
                        **{
                            f"{status.lower()}_pct": round(100 * found[status] / draws, 2)
                            for status in ("REGRESSION", "PASS", "INCOMPLETE")
                        },
                    }


def errors(rows: Sequence[dict[str, Any]], truth: str, status: str) -> list[tuple[float, float]]:
    """Of each case of that truth: the share with that status, and its own standard error, in per cent."""
    shares = [row[f"{status.lower()}_pct"] for row in rows if row["truth"] == truth]
    draws = rows[0]["draws"]
    return [(share, math.sqrt(share * (100 - share) / draws)) for share in shares]


def document(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: the largest error of each kind on top, every line below."""
    lines = ["# The gate on times, looking several times", "", "Made by `python -m benchmarks.looks`."]
    lines += [f"Bound {100 * BOUND:g} %, significance {SIGNIFICANCE}, {BLOCKS} pairs a look.", ""]
    for truth, status, promised in (
        ("nothing changed", "REGRESSION", 100 * SIGNIFICANCE),
        ("twice the bound slower", "PASS", 5),
    ):
        for looks in sorted({row["looks"] for row in rows}):
            found = errors([row for row in rows if row["looks"] == looks], truth, status)
            worst, error = max(found)
            lines.append(
                f"- {truth}, {looks} look{'s' * (looks > 1)}: {status} in {worst:.1f} % at most "
                f"(+- {error:.1f}; {promised:g} % are promised)"
            )
    lines += ["", "| looks | noise | spread of a pair % | truth | REGRESSION % | PASS % | INCOMPLETE % |"]
    lines.append("|---|---|---|---|---|---|---|")
    lines += [
        f"| {r['looks']} | {r['noise']} | {r['spread_pct']:g} | {r['truth']} | {r['regression_pct']:.1f} | "
        f"{r['pass_pct']:.1f} | {r['incomplete_pct']:.1f} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--draws", type=int, default=10000, help="simulated runs of each case")
    parser.add_argument("--looks", type=int, nargs="+", default=list(LOOKS))
    parser.add_argument("--output", type=Path, default=Path("results/statistics"))
    options = parser.parse_args(argv)
    from evalharness.store import atomic_write_text

    rows = list(cases(options.draws, options.looks))
    options.output.mkdir(parents=True, exist_ok=True)
    lines = ",\n ".join(json.dumps(row) for row in rows)
    atomic_write_text(options.output / "looks.json", f"[\n {lines}\n]\n")
    atomic_write_text(options.output / "looks.md", document(rows))
    print(document(rows).split("| looks")[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
