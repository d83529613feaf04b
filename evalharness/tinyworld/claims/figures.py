"""Plots of a set of trainings as PNG files; the same bytes for the same records and matplotlib."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evalharness.report.drawing import RC, Style, empty_figure, legend, look_of
from evalharness.tinyworld.claims.grid import Grid
from evalharness.tinyworld.claims.runs import NEGLIGIBLE, Run, Setting, by_setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Drawn", "figures"]

Drawn = dict[str, tuple[bytes, str]]
"""File name -> PNG and caption."""

_DPI = 130
_CURVES = {"loss": "training loss", "grad_norm": "gradient norm", "val_loss": "held-out loss"}
_STEPS_SHOWN = 5


def figures(runs: Sequence[Run], found: Mapping[str, Any], grid: Grid) -> Drawn:
    """All plots that the runs have data for."""
    import matplotlib as mpl

    from evalharness.tinyworld.claims.heat_map import heat_maps

    with mpl.rc_context(RC):
        drawn = {
            "curves.png": _curves(runs, grid),
            "finals.png": _finals(found),
            "spectrum.png": _spectrum(runs, grid),
            "map.png": heat_maps(found, grid),
        }
        return {name: (to_png(plot[0]), plot[1]) for name, plot in drawn.items() if plot is not None}


def to_png(figure: Figure) -> bytes:
    """White ground, no date, no version."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _curves(runs: Sequence[Run], grid: Grid) -> tuple[Figure, str] | None:
    """Two arms in every setting without axes: curves, and their relative difference in held-out loss."""
    panels = {
        setting: arms
        for setting, arms in by_setting(runs, grid.names).items()
        if not setting.axes and all(name in arms for name in grid.compare)
    }
    if not panels:
        return None
    figure = empty_figure(1.2 + 2.6 * len(panels), 8.2)
    rows = figure.subplots(len(_CURVES) + 1, len(panels), sharex="col", squeeze=False)
    looks = look_of(name for arms in panels.values() for name in arms)
    for column, (setting, arms) in enumerate(panels.items()):
        for row, (key, title) in enumerate(_CURVES.items()):
            axes = rows[row][column]
            for name in grid.compare:
                _band(axes, [run.curve(key) for run in arms[name].values()], looks[name], name)
            if key != "val_loss":  # it begins where the steep part is over
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_minor_formatter("")
            rows[row][0].set_ylabel(title)
        for name in _compared_by_step(grid):
            differences = _relative_curves(arms.get(name, {}), arms[grid.compare[1]])
            _band(rows[-1][column], differences, looks.get(name), name)
        rows[-1][column].axhline(0.0, color="#808080", lw=0.8)
        rows[-1][0].set_ylabel(f"held-out loss\nover {grid.compare[1]} (%)")
        rows[-1][column].set_xlabel("step")
        rows[0][column].set_title(setting.title, fontsize=9.0)
    for axes in rows.flat:
        axes.grid(lw=0.3, alpha=0.5)
    legend(figure, [rows[0][0], rows[-1][0]])
    caption = "Training: mean over seeds, the band from the lowest seed to the highest."
    return figure, caption


def _compared_by_step(grid: Grid) -> list[str]:
    """The contender, what else a hypothesis sets against the baseline, and the arm that keeps Phi."""
    names = [lower for lower, than in grid.hypotheses if than == grid.compare[1]]
    return list(dict.fromkeys([*names, grid.kept or grid.compare[0]]))


def _band(axes: Axes, curves: Sequence[Mapping[int, float]], style: Style | None, label: str) -> None:
    """Mean over seeds, and from the lowest to the highest, at the steps that all curves have."""
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    if not steps or style is None:
        return
    values = [[curve[step] for curve in curves] for step in steps]
    axes.plot(steps, [statistics.fmean(v) for v in values], color=style.color, lw=1.0, label=label)
    axes.fill_between(
        steps, [min(v) for v in values], [max(v) for v in values], color=style.color, alpha=0.2, lw=0
    )


def _relative_curves(arm: Mapping[int, Run], baseline: Mapping[int, Run]) -> list[dict[int, float]]:
    """Seed by seed, per cent, at the steps that both validated at. Empty if the losses differ in kind."""
    curves = []
    for seed in sorted(arm.keys() & baseline.keys()):
        if _loss(arm[seed]) != _loss(baseline[seed]):
            return []
        mine, other = arm[seed].curve("val_loss"), baseline[seed].curve("val_loss")
        curves.append({s: 100 * (mine[s] / other[s] - 1) for s in sorted(mine.keys() & other.keys())})
    return curves


def _loss(run: Run) -> str:
    return str(((run.record.get("options") or {}).get("recipe") or {}).get("loss", "distill"))


def _finals(found: Mapping[str, Any]) -> tuple[Figure, str] | None:
    """Dots with intervals: every arm over the baseline, in settings without axes."""
    baseline = found["compare"][1]
    rows = [
        row
        for row in found["finals"]
        if not row["axes"] and row["arm"] != baseline and row["over_baseline"]["n"]
    ]
    if not rows:
        return None
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    figure = empty_figure(1.8 + 2.4 * len(settings), 0.9 + 0.3 * len(arms))
    all_axes = figure.subplots(1, len(settings), sharey=True, squeeze=False)[0]
    for axes, setting in zip(all_axes, settings, strict=True):
        axes.axvline(0.0, color="#808080", lw=0.8)
        for row in (row for row in rows if row["setting"] == setting):
            place, estimate = arms.index(row["arm"]), row["over_baseline"]
            axes.scatter([100 * estimate["value"]], [place], color="#2f7fd0", s=24, zorder=3, linewidths=0)
            if estimate["lo"] is not None:
                ends = [100 * estimate["lo"], 100 * estimate["hi"]]
                axes.plot(ends, [place, place], color="#2f7fd0", lw=1.2)
        axes.set_title(setting, fontsize=9.0)
        axes.set_xlabel(f"over {baseline} (%)")
        axes.grid(lw=0.3, alpha=0.5)
    all_axes[0].set_yticks(range(len(arms)), arms)
    all_axes[0].set_ylim(len(arms) - 0.5, -0.5)
    caption = f"Held-out distillation loss at the end over {baseline}, with 95 % intervals over seeds."
    return figure, caption


def _spectrum(runs: Sequence[Run], grid: Grid) -> tuple[Figure, str] | None:
    """Of the first seed of every setting without axes: singular values at several steps, two arms."""
    names = list(dict.fromkeys(name for name in (grid.kept, grid.compare[0]) if name))
    chosen: dict[tuple[str, Setting], Run] = {}
    for run in runs:
        if run.arm in names and not run.setting.axes and len(run.spectrum()) > 1:
            chosen.setdefault((run.arm, run.setting), run)
    if not chosen:
        return None
    settings = sorted({setting for _, setting in chosen}, key=lambda each: each.order)
    figure = empty_figure(1.2 + 2.6 * len(settings), 0.8 + 2.2 * len(names))
    rows = figure.subplots(len(names), len(settings), sharex=True, sharey=True, squeeze=False)
    for (name, setting), run in chosen.items():
        axes = rows[names.index(name)][settings.index(setting)]
        found = run.spectrum()
        steps = list(found)[:: max(1, len(found) // _STEPS_SHOWN)]
        for place, step in enumerate(steps):
            shade = 0.15 + 0.7 * place / max(1, len(steps) - 1)
            axes.plot(
                range(1, len(found[step]) + 1), found[step], color=str(0.9 - shade), lw=1.0, label=f"{step}"
            )
        axes.axhline(1 / NEGLIGIBLE, color="#d0493e", lw=0.8, ls="--")
        axes.set_yscale("log")
        axes.set_ylim(1e-3, 1.5)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(lw=0.3, alpha=0.5)
        axes.legend(title="step", fontsize=7.0, title_fontsize=7.0)
    for column, setting in enumerate(settings):
        rows[0][column].set_title(setting.title, fontsize=9.0)
        rows[-1][column].set_xlabel("singular value")
    for row, name in enumerate(names):
        rows[row][0].set_ylabel(f"{name}\nover the largest")
    caption = "Singular values of Phi over the largest, mean over layers, one seed; dashed: 1/14."
    return figure, caption
