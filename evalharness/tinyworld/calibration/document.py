"""``calibration.json`` and ``calibration.md``: the tables, the verdicts, the model's figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evalharness.models.tinyworld import TinyWorld
from evalharness.stats import Interval, Resampler, bootstrap_ci
from evalharness.tinyworld import judge_files
from evalharness.tinyworld.calibration.conditions import CONDITIONS
from evalharness.tinyworld.calibration.rules import Verdict
from evalharness.tinyworld.calibration.scoring import Scores

__all__ = ["as_json", "as_markdown", "intervals"]

MODEL = "model"
MAIN = ("renderings", MODEL, "frozen", "shuffled", "noise", "wrong captions")
INTRODUCTION = """\
# Calibration of tinyworld's scores

Made by `python -m evalharness.tinyworld.calibration`; do not edit. Every video is drawn from a caption of
the held-out split, changed as the column says, written as H.264 and read back, then scored by the
protocol's metrics. Values are percent: mean (95 % bootstrap interval).
"""
KNOWN = """\
## Known properties

- As in VBench, both consistencies and motion smoothness are highest for a frozen frame: nothing that stands
  still can jump. Read them beside `dynamic_degree` and `action`.
- As in VBench, noise counts as movement: `dynamic_degree` does not fall under it. Read it beside
  `imaging_quality`.
- A thing that stands still does so in any order of its frames: rules on `action` look at moving clips only.
- The judges know the world's eight shapes and so on; what is none of them is judged by what it resembles.
- There is no aesthetic score: nothing here could judge it.
"""


def intervals(scores: Mapping[str, Scores], resampler: Resampler) -> dict[str, dict[str, Interval]]:
    """Condition -> dimension -> mean with its interval."""
    return {
        condition: {dimension: bootstrap_ci(values, resampler) for dimension, values in table.items()}
        for condition, table in scores.items()
    }


def as_json(
    table: Mapping[str, Mapping[str, Interval]],
    steps: Mapping[str, Mapping[str, Interval]],
    verdicts: Sequence[Verdict],
    model: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """All figures, raw (0 to 1), and which model and judges they are of."""
    return {
        "format": 1,
        "model_fingerprint": TinyWorld().fingerprint(),
        "judges": {file.path.rsplit("/", 1)[1]: file.sha256 for file in judge_files.weight_files()},
        "conditions": {
            condition: {dimension: _plain(value) for dimension, value in row.items()}
            for condition, row in table.items()
        },
        "noise": {sigma: {d: _plain(v) for d, v in row.items()} for sigma, row in steps.items()},
        "rules": [
            {
                "dimension": verdict.rule.dimension,
                "condition": verdict.rule.condition,
                "verb": verdict.rule.verb,
                "margin": verdict.rule.margin,
                "clips": verdict.rule.clips,
                "reason": verdict.rule.reason,
                "measured": _plain(verdict.measured),
                "passed": verdict.passed,
            }
            for verdict in verdicts
        ],
        "model_card": model,
    }


def as_markdown(
    table: Mapping[str, Mapping[str, Interval]],
    steps: Mapping[str, Mapping[str, Interval]],
    verdicts: Sequence[Verdict],
    model: Mapping[str, Any] | None,
) -> str:
    """The page of the docs."""
    main = [name for name in MAIN if name in table]
    other = [name for name in table if name not in MAIN]
    held = sum(verdict.passed for verdict in verdicts)
    parts = [
        INTRODUCTION,
        _conditions(main) + _by_dimension({name: table[name] for name in main}),
        "## More conditions\n",
        _conditions(other) + _by_dimension({name: table[name] for name in other}),
        "## Growing noise\n\nStandard deviation as a share of the range.\n",
        _by_dimension(steps),
        "## Rules\n\nMargins were fixed before this table was made, after a look at a few raw means; "
        f"{held} of {len(verdicts)} hold.\n",
        _rules(verdicts),
        KNOWN,
    ]
    if model is not None:
        parts.append(_model(model))
    return "\n".join(parts)


def _conditions(names: Sequence[str]) -> str:
    lines = [f"- **{name}**: {CONDITIONS[name].what}" for name in names if name in CONDITIONS]
    if MODEL in names:
        lines.insert(1, f"- **{MODEL}**: the bundled model's own videos of the same captions")
    return "\n".join(lines) + "\n\n"


def _by_dimension(table: Mapping[str, Mapping[str, Interval]]) -> str:
    names = list(table)
    if not names:
        return ""
    counts = {d: table[names[0]][d].n for d in table[names[0]]}
    rows = [
        [f"`{dimension}`", str(n), *(_cell(table[name][dimension]) for name in names)]
        for dimension, n in counts.items()
    ]
    return _grid(["dimension", "n", *names], rows)


def _rules(verdicts: Sequence[Verdict]) -> str:
    rows = []
    for verdict in verdicts:
        rule = verdict.rule
        wanted = {
            "falls": f"falls by more than {_percent(rule.margin)}",
            "holds": f"moves by at most {_percent(rule.margin)}",
            "floor": f"at least {_percent(rule.margin)}",
        }[rule.verb]
        clips = "" if rule.clips == "all" else f" ({rule.clips} clips)"
        rows.append(
            [
                f"`{rule.dimension}`",
                rule.condition + clips,
                wanted,
                _cell(verdict.measured),
                rule.reason,
                "yes" if verdict.passed else "**NO**",
            ]
        )
    return _grid(["dimension", "condition", "expected", "measured", "because", "holds"], rows)


def _model(model: Mapping[str, Any]) -> str:
    rows = []
    for what, share in model["shares"].items():
        bar = (
            ""
            if share["bar"] is None
            else f"{_percent(share['bar'])} ({'met' if share['met'] else 'MISSED'})"
        )
        interval = Interval(share["value"], share["lo"], share["hi"], share["n"], share["n"])
        rows.append([what, str(share["n"]), _cell(interval), bar])
    lines = [
        f"## The bundled model\n\n{model['captions']} held-out captions, {model['steps']} steps, guidance "
        f"{model['guidance']:g}: share of videos that the judges find right, by majority over the frames.\n",
        _grid(["what", "n", "right", "bar"], rows),
    ]
    for title, key in (("motion", "motion_by_name"), ("object, single things", "object_by_shape")):
        split = ", ".join(f"{name} {row['right']}/{row['n']}" for name, row in model[key].items())
        lines.append(f"By {title}: {split}.\n")
    return "\n".join(lines)


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _cell(interval: Interval) -> str:
    if interval.value is None:
        return "–"  # noqa: RUF001 - no score
    text = _percent(interval.value)
    if interval.lo is None or interval.hi is None:
        return text
    return f"{text} ({_percent(interval.lo)} to {_percent(interval.hi)})"


def _percent(value: float) -> str:
    return f"{100.0 * value:.1f}"


def _plain(interval: Interval) -> dict[str, Any]:
    def short(value: float | None) -> float | None:
        return None if value is None else round(value, 5)

    return {
        "n": interval.n,
        "mean": short(interval.value),
        "lo": short(interval.lo),
        "hi": short(interval.hi),
    }
