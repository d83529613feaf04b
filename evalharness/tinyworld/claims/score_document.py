"""``claims-scores.md`` and ``claims-scores.csv``: what ``score_findings`` found. No torch, no plots."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from evalharness.tinyworld.claims.document import number, section
from evalharness.tinyworld.claims.score_findings import MEAN

__all__ = ["as_csv", "as_markdown", "scale_of"]

Row = Mapping[str, Any]

_INTERVALS = ("both", "seeds", "prompts")
_HEAD = ("difference", "trainings alone", "prompts alone", "by training", "n", "verdict")


def scale_of(found: Mapping[str, Any]) -> float:
    """What raw scores are multiplied with in tables and plots."""
    return 100.0 if found["percent"] else 1.0


def as_markdown(found: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    """The page; ``figures`` is file name -> caption."""
    scale, seeds = scale_of(found), list(found["sources"])
    parts = [
        "# Scores of several trainings compared",
        _provenance(found),
        f"{found['label']}. Differences are in {'points (scores times 100)' if scale > 1 else 'raw scores'}, "
        "paired by training seed, prompt, video seed and dimension. Brackets behind a difference: "
        f"{found['confidence']:.0%} interval (Student's t) with training seeds and prompts both taken as "
        "random; the verdict goes by it. Beside it the interval over training seeds alone (these prompts) "
        "and over prompts alone (these trainings). None from one seed or one prompt: then a row stays "
        "undecided. Not adjusted for the number of comparisons.",
        section(
            "Mean over dimensions: the first arm scores higher than the second",
            ("setting", "higher", "than", *_HEAD),
            (
                (r["setting"], r["higher"], r["than"], *_cells(r, seeds, scale))
                for r in _means(found["hypotheses"])
            ),
        ),
        section(
            "Trend: that difference is larger at the first setting than at the second",
            ("setting", "over", "higher", "than", *_HEAD),
            (
                (r["setting"], r["over"], r["higher"], r["than"], *_cells(r, seeds, scale))
                for r in _means(found["trends"])
            ),
        ),
        *(f"![{caption}]({name})\n\n{caption}" for name, caption in figures.items()),
        section(
            "Mean over dimensions by arm; brackets: over training seeds",
            ("setting", "arm", "mean", "by training", "n"),
            (_level(row, seeds, scale) for row in found["levels"] if row["mean"]["n"]),
        ),
        *_dimensions(found, scale),
        _missing(found["missing"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def as_csv(found: Mapping[str, Any]) -> str:
    """Every difference, means and dimensions, in raw scores; an empty field where there is none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ends = [f"{end}_{name}" for name in _INTERVALS for end in ("lo", "hi")]
    head = ["setting", "over", "higher", "than", "dimension", "difference", *ends]
    writer.writerow([*head, "seeds", "prompts", "videos", "verdict"])
    for row in [*found["hypotheses"], *found["trends"]]:
        values = [row["value"], *(row[name][end] for name in _INTERVALS for end in ("lo", "hi"))]
        writer.writerow(
            [
                *(row["setting"], row.get("over", ""), row["higher"], row["than"], row["dimension"]),
                *("" if value is None else format(value, ".6f") for value in values),
                *(row["seeds"]["n"], row["prompts"]["n"], row["videos"], row["verdict"] or ""),
            ]
        )
    return text.getvalue()


def _provenance(found: Mapping[str, Any]) -> str:
    sources = found["sources"]
    lines = [f"- {len(sources)} training seeds: {', '.join(sources)}"]
    for title, key in (("code", "commit"), ("torch", "torch"), ("videos made on", "device")):
        values = sorted({_fact(source, key) for source in sources.values() if source.get(key)})
        lines += [f"- {title} {', '.join(values)}"] if values else []
    return "\n".join(lines)


def _fact(source: Mapping[str, Any], key: str) -> str:
    text = str(source[key])
    if key != "commit":
        return text
    return text[:12] + (" with changes" if source.get("dirty") else "")


def _means(rows: Sequence[Row]) -> Iterator[Row]:
    return (row for row in rows if row["dimension"] == MEAN)


def _cells(row: Row, seeds: Iterable[str], scale: float) -> tuple[str, ...]:
    return (
        number(row["both"], scale, "+.2f"),
        *(_ends(row[name], scale) for name in ("seeds", "prompts")),
        _by_seed(row, seeds, scale, "+.2f"),
        _n(row["both"]),
        row["verdict"],
    )


def _ends(estimate: Mapping[str, Any], scale: float) -> str:
    if estimate["lo"] is None:
        return "-"
    return f"[{estimate['lo'] * scale:+.2f}, {estimate['hi'] * scale:+.2f}]"


def _by_seed(row: Row, seeds: Iterable[str], scale: float, form: str) -> str:
    """In the order of the seeds, a dash for one without a value."""
    values = (row["by_seed"].get(seed) for seed in seeds)
    return " ".join("-" if value is None else format(value * scale, form) for value in values)


def _level(row: Row, seeds: Iterable[str], scale: float) -> tuple[str, ...]:
    mean = number(row["mean"], scale, ".2f")
    return row["setting"], row["arm"], mean, _by_seed(row, seeds, scale, ".2f"), _n(row["mean"])


def _n(estimate: Mapping[str, Any]) -> str:
    return str(estimate["n"])


def _dimensions(found: Mapping[str, Any], scale: float) -> Iterator[str]:
    """A table for each hypothesis: a line for each dimension, a column for each setting."""
    rows = [row for row in found["hypotheses"] if row["dimension"] != MEAN]
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    for pair in dict.fromkeys((row["higher"], row["than"]) for row in rows):
        by_place = {(r["dimension"], r["setting"]): r for r in rows if (r["higher"], r["than"]) == pair}
        if all(row["value"] is None for row in by_place.values()):
            continue
        yield section(
            f"{pair[0]} minus {pair[1]} by dimension, brackets as for the mean",
            ("dimension", *settings),
            (
                (name, *(number(by_place[name, setting]["both"], scale, "+.2f") for setting in settings))
                for name in found["dimensions"]
            ),
        )


def _missing(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    head = "A mean needs every score of the protocol; a training that lacks one is left out of the means."
    return "\n".join(["## Missing", "", head, "", *(f"- {line}" for line in lines)])
