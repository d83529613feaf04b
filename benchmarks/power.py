"""Whether `evalharness plan` keeps its promise: how often a difference of the size it names is found.

    python -m benchmarks.power --output results/statistics

For designs of one to five seeds the difference that is promised to be found with 80 and with 50 % power is
taken from ``evalharness.power``; tables with that difference are drawn, and ``compare``'s interval is made of
each.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evalharness.effects import Components
from evalharness.power import Design, detectable, simulated_power
from evalharness.store import atomic_write_text

POWERS = (0.8, 0.5)
SEEDS = (1, 2, 3, 4, 5)
PROMPTS = (50, 200)
MIXES = {
    "prompts": (0.02, 1.0, 0.3),
    "seeds": (0.5, 0.5, 0.3),
    "rest": (0.02, 0.1, 1.0),
    "even": (0.2, 0.4, 0.4),
}
"""Variances between seeds, between prompts, and of the rest."""


def cases(draws: int) -> list[dict[str, Any]]:
    """One for each design and promise."""
    found = []
    for power in POWERS:
        for seeds in SEEDS:
            for prompts in PROMPTS:
                for mix, variances in MIXES.items():
                    design = Design(components=Components(*variances), power=power)
                    size = detectable(design, prompts, seeds)
                    share, drawn = simulated_power(design, size, prompts, seeds, draws)
                    case = {"promised_pct": 100 * power, "seeds": seeds, "prompts": prompts, "mix": mix}
                    found.append({**case, "draws": drawn, "found_pct": round(100 * share, 2)})
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--output", type=Path, default=Path("results/statistics"))
    options = parser.parse_args(argv)
    found = cases(options.draws)
    lines = ",\n ".join(json.dumps(case) for case in found)
    atomic_write_text(options.output / "power.json", f"[\n {lines}\n]\n")
    for power in POWERS:
        shares = [case["found_pct"] for case in found if case["promised_pct"] == 100 * power]
        print(
            f"promised {100 * power:.0f} %: {min(shares):.1f} to {max(shares):.1f} % of {len(shares)} designs"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
