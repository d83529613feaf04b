"""What a set of trainings says about each claim: plain JSON values, from which page and plots are made.

Claims, each for itself in every setting (bits, spared layers, axes), arms paired by training seed:

- training: mean of loss and of gradient norm over steps, contender over baseline; while Phi lives the
  contender has more to fit with, so its loss is not yet that of a low-bit model
- final: held-out loss of the exported model, for each hypothesis of the grid
- removal: held-out loss without Phi over that of the ``kept`` arm while it had Phi, minus 1
- spectrum: growth, in the ``kept`` arm, of the share of singular values 14 times below the largest. Where
  none is at either step the measure had nothing to show, and nothing is decided; beside it stands the
  last singular value over the first, mean over layers, which falls where a spectrum gets steeper

A claim is *reproduced* where the 95 % interval lies wholly on its side, *not reproduced* where it lies
wholly on the other, else *undecided*. For the removal, whose claim is "no cost", the line between
the sides is not 0 but ``REMOVAL_MARGIN``.

A training that diverged has no losses, so its pair is left out; ``diverged`` of a row names the seeds.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from evalharness.tinyworld.claims.estimates import (
    CONFIDENCE,
    Estimate,
    mean_estimate,
    paired,
    relative,
    verdict_below,
)
from evalharness.tinyworld.claims.grid import Grid
from evalharness.tinyworld.claims.runs import Run, Setting, by_setting, finals

__all__ = ["REMOVAL_MARGIN", "findings"]

REMOVAL_MARGIN = 0.01  # the paper reports less than 0.6 % of its scores; ours is a loss
UNSEEN = "undecided: none at either step"
TRAINING_MEASURES = {"loss": "training loss", "grad_norm": "gradient norm"}
WINDOWS = {"all steps": (0.0, 1.0), "first third": (0.0, 1 / 3), "last third": (2 / 3, 1.0)}

Arms = Mapping[str, Mapping[int, Run]]
Value = Callable[[Run], float | None]


def findings(runs: Sequence[Run], grid: Grid) -> dict[str, Any]:
    """All comparisons that the runs allow; see the module's docstring."""
    found: dict[str, list[dict[str, Any]]] = {
        part: [] for part in ("finals", "training", "hypotheses", "removal", "spectrum")
    }
    for setting, arms in by_setting(runs, grid.names).items():
        found["finals"] += _finals(setting, arms, grid)
        found["training"] += _training(setting, arms, grid)
        found["hypotheses"] += _hypotheses(setting, arms, grid)
        if grid.kept in arms:
            found["removal"] += _removal(setting, arms, grid.kept)
            found["spectrum"] += _spectrum(setting, arms[grid.kept])
    return {
        "confidence": CONFIDENCE,
        "removal_margin": REMOVAL_MARGIN,
        "compare": list(grid.compare),
        "kept": grid.kept,
        **found,
        "runs": [_run(run) for run in runs],
    }


def _place(setting: Setting) -> dict[str, Any]:
    return {
        "setting": setting.title,
        "w_bits": setting.w_bits,
        "a_bits": setting.a_bits,
        "skip_layers": setting.skip_layers,
        "axes": dict(setting.axes),
    }


def _finals(setting: Setting, arms: Arms, grid: Grid) -> list[dict[str, Any]]:
    baseline = finals(arms.get(grid.compare[1], {}))
    return [
        {
            **_place(setting),
            "arm": name,
            "distill": _json(mean_estimate(finals(runs).values())),
            "task": _json(mean_estimate(run.task for run in runs.values() if run.task is not None)),
            "over_baseline": _json(relative(finals(runs), baseline)),
            "difference": _json(paired(finals(runs), baseline)),
            "diverged": _diverged(runs),
        }
        for name, runs in arms.items()
    ]


def _training(setting: Setting, arms: Arms, grid: Grid) -> list[dict[str, Any]]:
    contender, baseline = (arms.get(name, {}) for name in grid.compare)
    rows = []
    for (key, title), (window, (begin, end)) in itertools.product(TRAINING_MEASURES.items(), WINDOWS.items()):
        mean = partial(Run.mean, name=key, begin=begin, end=end)
        difference = relative(_values(contender, mean), _values(baseline, mean))
        if difference.n:
            row = {**_place(setting), "measure": title, "steps": window, "difference": _json(difference)}
            row["diverged"] = _diverged(contender, baseline)
            rows.append({**row, "verdict": verdict_below(difference)})
    return rows


def _hypotheses(setting: Setting, arms: Arms, grid: Grid) -> list[dict[str, Any]]:
    rows = []
    for lower, than in grid.hypotheses:
        pair = arms.get(lower, {}), arms.get(than, {})
        difference = relative(finals(pair[0]), finals(pair[1]))
        if difference.n:
            row = {**_place(setting), "lower": lower, "than": than, "difference": _json(difference)}
            row["diverged"] = _diverged(*pair)
            rows.append({**row, "verdict": verdict_below(difference)})
    return rows


def _removal(setting: Setting, arms: Arms, kept: str) -> list[dict[str, Any]]:
    """Each arm whose Phi vanished, over the same seed's model that still had it."""
    with_phi = _values(arms[kept], lambda run: run.with_phi)
    rows = []
    for name, runs in arms.items():
        ended = [run for run in runs.values() if run.distill is not None]
        if any(run.without_phi is None for run in ended) or not _same_loss(runs, arms[kept]):
            continue  # it never had Phi, or its held-out loss is another one
        cost = relative(_values(runs, lambda run: run.without_phi), with_phi)
        if cost.n:
            row = {**_place(setting), "arm": name, "at_once": name == kept, "cost": _json(cost)}
            row["diverged"] = _diverged(runs, arms[kept])
            rows.append({**row, "verdict": verdict_below(cost, REMOVAL_MARGIN)})
    return rows


def _same_loss(runs: Mapping[int, Run], others: Mapping[int, Run]) -> bool:
    both = [*runs.values(), *others.values()]
    return len({run.record["options"]["recipe"]["loss"] for run in both if run.record}) < 2


def _spectrum(setting: Setting, runs: Mapping[int, Run]) -> list[dict[str, Any]]:
    share = _ends(runs, Run.negligible)
    ratio = _ends(runs, lambda run: {step: values[-1] for step, values in run.spectrum().items()})
    growth = paired(share.last, share.first)
    if not growth.n:
        return []
    seen = any(share.first.values()) or any(share.last.values())
    return [
        {
            **_place(setting),
            "first_steps": share.first_steps,
            "last_steps": share.last_steps,
            "first": _json(mean_estimate(share.first.values())),
            "last": _json(mean_estimate(share.last.values())),
            "growth": _json(growth),
            "ratio_first": _json(mean_estimate(ratio.first.values())),
            "ratio_last": _json(mean_estimate(ratio.last.values())),
            "ratio_difference": _json(paired(ratio.last, ratio.first)),
            "diverged": _diverged(runs),
            "verdict": verdict_below(growth.negated) if seen else UNSEEN,
        }
    ]


class _Ends(NamedTuple):
    """Seed -> value at the first and at the last step that has one, and which steps those are."""

    first: dict[int, float]
    last: dict[int, float]
    first_steps: list[int]
    last_steps: list[int]


def _ends(runs: Mapping[int, Run], curve: Callable[[Run], Mapping[int, float]]) -> _Ends:
    """Of the trainings that did not diverge and have two steps at least."""
    curves = {seed: curve(run) for seed, run in runs.items() if run.distill is not None}
    curves = {seed: each for seed, each in curves.items() if len(each) > 1}
    ends = {seed: (min(each), max(each)) for seed, each in curves.items()}
    return _Ends(
        {seed: curves[seed][first] for seed, (first, _) in ends.items()},
        {seed: curves[seed][last] for seed, (_, last) in ends.items()},
        sorted({first for first, _ in ends.values()}),
        sorted({last for _, last in ends.values()}),
    )


def _diverged(*arms: Mapping[int, Run]) -> list[int]:
    """Seeds whose training of any of these arms diverged."""
    return sorted({seed for runs in arms for seed, run in runs.items() if run.distill is None})


def _values(runs: Mapping[int, Run], value: Value) -> dict[int, float]:
    """Seed -> value, of those that have one and did not diverge."""
    found = {seed: value(run) for seed, run in runs.items() if run.distill is not None}
    return {seed: number for seed, number in found.items() if number is not None}


def _run(run: Run) -> dict[str, Any]:
    return {
        **_place(run.setting),
        "arm": run.arm,
        "seed": run.seed,
        "distill": run.distill,
        "task": run.task,
        "seconds": run.record.get("seconds"),
        "error": run.record.get("error"),
    }


def _json(estimate: Estimate) -> dict[str, Any]:
    return dataclasses.asdict(estimate)
