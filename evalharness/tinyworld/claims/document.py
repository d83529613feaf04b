"""``claims.md``: the tables and verdicts of ``findings``, in words and numbers. No torch, no plots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evalharness.tinyworld.claims.runs import NEGLIGIBLE, Run

__all__ = ["as_markdown", "code_of", "number", "section"]

_NONE = "-"


def as_markdown(found: Mapping[str, Any], runs: Sequence[Run], figures: Mapping[str, str]) -> str:
    """The page.

    Args:
        found: of ``findings``.
        runs: the same, for what they were made with.
        figures: file name -> caption, in order.
    """
    contender, baseline = found["compare"]
    parts = [
        "# Trainings compared",
        _provenance(runs),
        f"Differences are in per cent, arms paired by training seed. Brackets: {found['confidence']:.0%} "
        "interval (Student's t) over training seeds; none from one seed, and such a row stays undecided. "
        "Intervals are not adjusted for the number of comparisons.",
        section(
            f"Training: {contender} over {baseline}, means over steps; claim: lower",
            ("setting", "measure", "steps", "difference", "n", "verdict"),
            (
                (r["setting"], r["measure"], r["steps"], *_share(r, "difference"), r["verdict"])
                for r in found["training"]
                if not r["axes"]  # a map has too many; they are in the JSON file
            ),
        ),
        section(
            "Held-out loss at the end",
            ("setting", "arm", "distillation loss", "loss to the model's target", f"over {baseline}", "n"),
            (_final(row) for row in found["finals"]),
        ),
        section(
            "Hypotheses: held-out loss of the first is lower than of the second",
            ("setting", "lower", "than", "difference", "n", "verdict"),
            (
                (r["setting"], r["lower"], r["than"], *_share(r, "difference"), r["verdict"])
                for r in found["hypotheses"]
            ),
        ),
        section(
            f"Cost of removing Phi, over {found['kept']} while it had Phi; claim: below "
            f"{found['removal_margin']:.0%}",
            ("setting", "arm", "how", "cost", "n", "verdict"),
            (_removal(row) for row in found["removal"]),
        ),
        section(
            f"Share of Phi's singular values {NEGLIGIBLE:g} times below the largest, in {found['kept']}; "
            "claim: it grows",
            ("setting", "steps", "first", "last", "growth (points)", "n", "verdict"),
            (_spectrum(row) for row in found["spectrum"]),
        ),
        section(
            f"Phi's last singular value over its first, mean over layers, in {found['kept']}",
            ("setting", "steps", "first", "last", "difference", "n"),
            (_ratio(row) for row in found["spectrum"]),
        ),
        *(f"![{caption}]({name})\n\n{caption}" for name, caption in figures.items()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _provenance(runs: Sequence[Run]) -> str:
    records = [run.record for run in runs if run.record]
    diverged = [f"{run.arm} {run.setting.title} seed {run.seed}" for run in runs if run.distill is None]
    names = f": {'; '.join(diverged)}" if diverged else ""
    lines = [f"- {len(runs)} trainings, {len(diverged)} of them diverged{names}"]
    if records:
        seconds = sum(record.get("seconds") or 0 for record in records)
        gpus = {gpu for record in records for gpu in record["hardware"]["gpus"]}
        recipes = [record["options"]["recipe"] for record in records]
        validation = {(r["validation"]["batch"], r["validation"]["clips"]) for r in records}
        lines += [
            f"- {seconds / 60:.1f} minutes of training on {_list(gpus) or 'CPU'}",
            f"- steps {_list({str(r['steps']) for r in recipes})}, batch "
            f"{_list({str(r['batch_size'] * r['accumulate']) for r in recipes})}, learning rate of weights "
            f"{_list({format(r['lr_weights'], 'g') for r in recipes})}",
            *(
                f"- held out: one batch of {batch} samples of {clips} clips"
                for batch, clips in sorted(validation)
            ),
            f"- float32 products: {_list({_products(record) for record in records})}",
            f"- code {_list({code_of(record) for record in records})}; torch "
            f"{_list({str(record['versions']['torch']) for record in records})}",
        ]
    return "\n".join(lines)


def _products(record: Mapping[str, Any]) -> str:
    """``highest``: exact; ``high``: TF32 on GPUs that have it."""
    return str(record.get("float32_products", "not recorded"))


def code_of(record: Mapping[str, Any]) -> str:
    """The commit; where there was no checkout, the hash of the method's sources."""
    if record["git"] is None:
        return f"{record['method']} with sources {record['method_code'][:12]}"
    dirty = " with changes" if record["git"]["dirty"] else ""
    return f"{record['git']['commit'][:12]}{dirty}"


def _list(values: Iterable[str]) -> str:
    return ", ".join(sorted(values))


def section(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table under a heading; an empty text without rows."""
    body = ["| " + " | ".join(row) + " |" for row in rows]
    if not body:
        return ""
    return "\n".join([f"## {title}\n", "| " + " | ".join(head) + " |", "|---" * len(head) + "|", *body])


def _final(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        row["setting"],
        row["arm"],
        number(row["distill"], 1.0, ".5f"),
        number(row["task"], 1.0, ".5f"),
        number(row["over_baseline"], 100.0, "+.2f"),
        _count(row, row["distill"]),
    )


def _removal(row: Mapping[str, Any]) -> tuple[str, ...]:
    how = "at once, after training" if row["at_once"] else "by decay"
    return (row["setting"], row["arm"], how, *_share(row, "cost"), row["verdict"])


def _spectrum(row: Mapping[str, Any]) -> tuple[str, ...]:
    first, last = (number(row[key], 100.0, ".1f") for key in ("first", "last"))
    return (row["setting"], _steps(row), first, last, *_share(row, "growth"), row["verdict"])


def _ratio(row: Mapping[str, Any]) -> tuple[str, ...]:
    first, last = (number(row[key], 1.0, ".3f") for key in ("ratio_first", "ratio_last"))
    difference = row["ratio_difference"]
    return (
        row["setting"],
        _steps(row),
        first,
        last,
        number(difference, 1.0, "+.4f"),
        _count(row, difference),
    )


def _steps(row: Mapping[str, Any]) -> str:
    """The first and the last that have a spectrum, of all seeds where they differ."""
    return " to ".join("/".join(map(str, row[key])) for key in ("first_steps", "last_steps"))


def _share(row: Mapping[str, Any], key: str) -> tuple[str, str]:
    return number(row[key], 100.0, "+.2f"), _count(row, row[key])


def _count(row: Mapping[str, Any], estimate: Mapping[str, Any]) -> str:
    """Seeds behind the estimate, and those that it lacks."""
    lost = f"; diverged: seed {', '.join(map(str, row['diverged']))}" if row["diverged"] else ""
    return f"{estimate['n']}{lost}"


def number(estimate: Mapping[str, Any], scale: float, form: str) -> str:
    """``value [lo, hi]``, times ``scale``; a dash without a value, no brackets without an interval."""
    if estimate["value"] is None:
        return _NONE
    text = format(estimate["value"] * scale, form)
    if estimate["lo"] is None:
        return text
    return f"{text} [{format(estimate['lo'] * scale, form)}, {format(estimate['hi'] * scale, form)}]"
