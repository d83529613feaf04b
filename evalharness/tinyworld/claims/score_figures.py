"""Dot plots of ``score_findings`` as PNG files; the same bytes for the same scores and matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evalharness.report.drawing import RC, empty_figure, legend, look_of
from evalharness.tinyworld.claims.figures import Drawn, to_png
from evalharness.tinyworld.claims.score_document import scale_of
from evalharness.tinyworld.claims.score_findings import MEAN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["score_figures"]

Row = Mapping[str, Any]
_GREY = "#808080"


def score_figures(found: Mapping[str, Any]) -> Drawn:
    """The plots that there are differences for."""
    import matplotlib as mpl

    with mpl.rc_context(RC):
        drawn = {"claims-scores.png": _means(found), "claims-scores-dimensions.png": _dimensions(found)}
        return {name: (to_png(plot[0]), plot[1]) for name, plot in drawn.items() if plot is not None}


def _means(found: Mapping[str, Any]) -> tuple[Figure, str] | None:
    """A panel for each setting, a line for each hypothesis."""
    rows = [row for row in found["hypotheses"] if row["dimension"] == MEAN and row["value"] is not None]
    if not rows:
        return None
    names = list(dict.fromkeys(_pair(row) for row in rows))
    figure, panels = _panels(_settings(found, rows), names, width=2.5, line=0.42)
    color = next(iter(look_of(["any"]).values())).color
    for setting, axes in panels.items():
        for row in (row for row in rows if row["setting"] == setting):
            place = names.index(_pair(row))
            _bars(axes, row, place, scale_of(found), color)
            points = [scale_of(found) * value for value in row["by_seed"].values()]
            axes.scatter(points, [place - 0.25] * len(points), color=_GREY, s=7, linewidths=0)
        axes.set_xlabel("difference of means")
    caption = (
        "Difference of the mean over dimensions, first arm minus second. Thin line: 95 % interval with "
        "training seeds and prompts taken as random, which decides; thick line: prompts alone; small grey "
        "dots above: each training."
    )
    return figure, caption


def _dimensions(found: Mapping[str, Any]) -> tuple[Figure, str] | None:
    """A panel for each setting, a line for each dimension, a colour for each hypothesis."""
    rows = [row for row in found["hypotheses"] if row["dimension"] != MEAN and row["value"] is not None]
    if not rows:
        return None
    names = [name for name in found["dimensions"] if any(row["dimension"] == name for row in rows)]
    looks = look_of(_pair(row) for row in rows)
    figure, panels = _panels(_settings(found, rows), names, width=2.6, line=0.13 + 0.13 * len(looks))
    for setting, axes in panels.items():
        for row in (row for row in rows if row["setting"] == setting):
            style = looks[_pair(row)]
            place = names.index(row["dimension"]) + 0.8 * style.shift
            _bars(axes, row, place, scale_of(found), style.color, style.marker, _pair(row))
        axes.set_xlabel("difference")
    legend(figure, list(panels.values()))
    caption = (
        "The same by dimension: thin line: 95 % interval with training seeds and prompts taken as random; "
        "thick line: prompts alone."
    )
    return figure, caption


def _settings(found: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """Those that the rows have, in the order of all."""
    there = {row["setting"] for row in rows}
    return [name for name in dict.fromkeys(row["setting"] for row in found["hypotheses"]) if name in there]


def _panels(
    settings: Sequence[str], names: Sequence[str], *, width: float, line: float
) -> tuple[Figure, dict[str, Axes]]:
    figure = empty_figure(1.8 + width * len(settings), 1.0 + line * len(names))
    all_axes = figure.subplots(1, len(settings), sharey=True, squeeze=False)[0]
    for axes, setting in zip(all_axes, settings, strict=True):
        axes.axvline(0.0, color=_GREY, lw=0.8)
        axes.set_title(setting, fontsize=9.0)
        axes.grid(lw=0.3, alpha=0.5)
    all_axes[0].set_yticks(range(len(names)), names)
    all_axes[0].set_ylim(len(names) - 0.5, -0.5)
    return figure, dict(zip(settings, all_axes, strict=True))


def _bars(
    axes: Axes, row: Row, place: float, scale: float, color: str, marker: str = "o", label: str | None = None
) -> None:
    """A dot, the deciding interval as a thin line, the one over prompts as a thick one."""
    axes.scatter(
        [scale * row["value"]], [place], color=color, marker=marker, s=20, zorder=3, linewidths=0, label=label
    )
    for name, weight in (("both", 1.0), ("prompts", 2.6)):
        if row[name]["lo"] is not None:
            axes.plot([scale * row[name][end] for end in ("lo", "hi")], [place] * 2, color=color, lw=weight)


def _pair(row: Row) -> str:
    return f"{row['higher']} minus {row['than']}"
