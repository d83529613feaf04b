"""Trainings made more than once with the same seeds: how far chance carries. ``repeat.md``, ``repeat.json``.

    python -m evalharness.tinyworld.claims.repeat --out results/claims \
        --records main=build/claims-main,earlier=build/claims-earlier

Sums on a GPU are not repeated to the last bit, so a training with the same seed ends elsewhere. An interval
over the seeds of one set of trainings holds that chance too, but only one draw of it for each seed. Here
each seed's difference is averaged over the repeats, and the interval is over these averages.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evalharness.errors import UserError
from evalharness.store import atomic_write_json, atomic_write_text
from evalharness.tinyworld.claims.document import code_of, number, section
from evalharness.tinyworld.claims.estimates import CONFIDENCE, mean_estimate, verdict_below
from evalharness.tinyworld.claims.flags import named_folders, pairs
from evalharness.tinyworld.claims.runs import Run, Setting, by_setting, finals, read_runs

__all__ = ["as_markdown", "main", "repeat_findings"]

PAIRS = "qvgen:kd-qat,qvgen-until75:qvgen,qvgen-until75:kd-qat"
_SAME = ("model_fingerprint", "training_clips", "validation", "device", "float32_products", "options")

Repeats = Mapping[str, Mapping[Setting, Mapping[str, Mapping[int, Run]]]]
"""Repeat -> setting -> arm -> seed -> run."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--records", required=True, help="folders of claims.arms: first=FOLDER,second=FOLDER")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", default=PAIRS, help="lower:than pairs of arms (%(default)s)")
    args = parser.parse_args(arguments)
    wanted = pairs("--pairs", args.pairs, "lower:than")
    folders = named_folders("--records", args.records, "NAME", "first=build/claims-main")
    if len(folders) < 2 or not wanted:
        raise UserError("give --records two folders or more and --pairs one pair or more")
    found = repeat_findings({name: read_runs(folder) for name, folder in folders.items()}, wanted)
    atomic_write_json(args.out / "repeat.json", found)
    atomic_write_text(args.out / "repeat.md", as_markdown(found))
    return 0


def repeat_findings(runs: Mapping[str, Sequence[Run]], wanted: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Each pair in each setting, plain JSON values.

    Args:
        runs: name of the repeat -> its trainings; at least two repeats.
        wanted: (a, b): the held-out loss of arm a is lower than that of b.

    Raises:
        UserError: trainings that are no repeats: of other options, data, device or precision, or the very
            same ones; or no seed that all repeats have.
    """
    names = list(dict.fromkeys(name for pair in wanted for name in pair))
    repeats = {repeat: by_setting(found, names) for repeat, found in runs.items()}
    first = next(iter(repeats.values()))
    settings = [s for s in first if all(s in found for found in repeats.values())]
    for setting in settings:
        _check_repeats({repeat: found[setting] for repeat, found in repeats.items()}, setting)
    rows = [row for pair in wanted for setting in settings for row in _row(repeats, setting, *pair)]
    if not rows:
        raise UserError(
            f"--records: no seed of {' or '.join(f'{a} and {b}' for a, b in wanted)} is in all of "
            f"{', '.join(runs)}; give folders of the same grid and seeds, or other --pairs"
        )
    sources = {repeat: _source(found) for repeat, found in runs.items()}
    return {"confidence": CONFIDENCE, "sources": sources, "rows": rows}


def _check_repeats(arms: Mapping[str, Mapping[str, Mapping[int, Run]]], setting: Setting) -> None:
    flat = {
        repeat: {(arm, seed): run for arm, runs in found.items() for seed, run in runs.items()}
        for repeat, found in arms.items()
    }
    (name, first), *others = flat.items()
    for other, found in others:
        shared = sorted(first.keys() & found.keys())
        for key in shared:
            for what in _SAME:
                if not _agree(first[key].record.get(what), found[key].record.get(what)):
                    raise UserError(
                        f"{key[0]} {setting.title} seed {key[1]}: other {what} in {name} than in {other}, so "
                        "one is no repeat of the other"
                    )
        if shared and all(first[key].distill == found[key].distill for key in shared):
            raise UserError(
                f"{setting.title}: {name} and {other} have the very same losses; give each one once"
            )


def _agree(a: Any, b: Any) -> bool:
    """Whether two recorded values are the same; what one of them does not record is left out.

    An option that came later has a default that means what was done before.
    """
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return all(_agree(a[key], b[key]) for key in a.keys() & b.keys())
    return a is None or b is None or bool(a == b)


def _row(repeats: Repeats, setting: Setting, lower: str, than: str) -> Iterator[dict[str, Any]]:
    by_repeat: dict[str, dict[int, float]] = {}
    seen: set[int] = set()
    for repeat, found in repeats.items():
        runs, others = (found[setting].get(name, {}) for name in (lower, than))
        ends, bases = finals(runs), finals(others)
        by_repeat[repeat] = {
            seed: ends[seed] / bases[seed] - 1 for seed in sorted(ends.keys() & bases.keys())
        }
        seen |= runs.keys() | others.keys()
    seeds = sorted(set.intersection(*(set(each) for each in by_repeat.values())))
    if not seeds:
        return
    drawn = {seed: [each[seed] for each in by_repeat.values()] for seed in seeds}
    averages = {seed: statistics.fmean(values) for seed, values in drawn.items()}
    estimate = mean_estimate(averages.values())
    yield {
        "setting": setting.title,
        "lower": lower,
        "than": than,
        "differences": {name: {str(s): each[s] for s in seeds} for name, each in by_repeat.items()},
        "means": {
            name: dataclasses.asdict(mean_estimate(each[s] for s in seeds))
            for name, each in by_repeat.items()
        },
        "averages": {str(seed): value for seed, value in averages.items()},
        "between_repeats": math.sqrt(statistics.fmean(statistics.variance(each) for each in drawn.values())),
        "estimate": dataclasses.asdict(estimate),
        "left_out": sorted(seen - set(seeds)),
        "verdict": verdict_below(estimate),
    }


def _source(runs: Sequence[Run]) -> dict[str, Any]:
    return {"trainings": len(runs), "code": sorted({code_of(run.record) for run in runs})}


def as_markdown(found: Mapping[str, Any]) -> str:
    """The page: for each pair what every seed gave in every repeat, and what all of them say."""
    repeats = found["sources"]
    parts = [
        "# Trainings repeated with the same seeds",
        _provenance(repeats),
        "Held-out loss at the end, difference in per cent, arms paired by training seed. Between repeats: "
        "standard deviation of one training's difference at a fixed seed, pooled over seeds. Brackets: "
        f"{found['confidence']:.0%} interval (Student's t) over the seeds' averages of all repeats, over "
        "seeds alone for a single repeat. Not adjusted for the number of comparisons.",
    ]
    for lower, than in dict.fromkeys((row["lower"], row["than"]) for row in found["rows"]):
        rows = [row for row in found["rows"] if (row["lower"], row["than"]) == (lower, than)]
        parts += [
            section(
                f"{lower} over {than}; claim: lower",
                (
                    "setting",
                    "both" if len(repeats) == 2 else "all",
                    "between repeats",
                    *repeats,
                    "n",
                    "verdict",
                ),
                (_summary(row) for row in rows),
            ),
            section(
                f"{lower} over {than}, seed by seed",
                ("setting", "seed", *repeats, "average"),
                (line for row in rows for line in _by_seed(row)),
            ),
        ]
    return "\n\n".join(parts) + "\n"


def _provenance(sources: Mapping[str, Any]) -> str:
    lines = [
        f"- {name}: {source['trainings']} trainings, code {', '.join(source['code'])}"
        for name, source in sources.items()
    ]
    if len({tuple(source["code"]) for source in sources.values()}) > 1:
        lines.append("- the code differs, so what lies between the repeats is chance and what that changed")
    return "\n".join(lines)


def _summary(row: Mapping[str, Any]) -> tuple[str, ...]:
    left = f"; not in all: seed {', '.join(map(str, row['left_out']))}" if row["left_out"] else ""
    return (
        row["setting"],
        number(row["estimate"], 100.0, "+.2f"),
        format(100 * row["between_repeats"], ".2f"),
        *(number(each, 100.0, "+.2f") for each in row["means"].values()),
        f"{row['estimate']['n']}{left}",
        row["verdict"],
    )


def _by_seed(row: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for seed, average in row["averages"].items():
        drawn = [each[seed] for each in row["differences"].values()]
        yield (row["setting"], seed, *(format(100 * value, "+.2f") for value in (*drawn, average)))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as mistake:
        sys.exit(f"error: {mistake}")
