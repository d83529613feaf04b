"""The map: contender minus baseline at the end of training, over two axes of the grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evalharness.report.drawing import empty_figure
from evalharness.tinyworld.claims.grid import Grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["heat_maps"]

Row = Mapping[str, Any]


def heat_maps(found: Mapping[str, Any], grid: Grid) -> tuple[Figure, str] | None:
    """A panel for each bit width and preset; a field for each point of two axes. None without such points.

    A field holds the mean relative difference in per cent; a star marks an interval without zero.
    """
    contender, baseline = grid.compare
    rows = [
        row
        for row in found["finals"]
        if row["arm"] == contender and len(row["axes"]) == 2 and row["over_baseline"]["n"]
    ]
    if not rows:
        return None
    upright, lying = sorted(rows[0]["axes"])
    ticks = {axis: _points(rows, axis) for axis in (upright, lying)}
    panels = list(dict.fromkeys(_panel(row) for row in rows))
    scale = max(abs(100 * row["over_baseline"]["value"]) for row in rows) or 1.0
    figure = empty_figure(
        1.6 + (0.9 + 0.75 * len(ticks[lying])) * len(panels), 1.3 + 0.5 * len(ticks[upright])
    )
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, panel in zip(all_axes, panels, strict=True):
        image = _fields(axes, [row for row in rows if _panel(row) == panel], ticks, (upright, lying), scale)
        axes.set_title(panel, fontsize=9.0)
        axes.set_xticks(range(len(ticks[lying])), ticks[lying])
        axes.set_xlabel(lying)
    all_axes[0].set_yticks(range(len(ticks[upright])), ticks[upright])
    all_axes[0].set_ylabel(upright)
    figure.colorbar(image, ax=list(all_axes), label=f"{contender} over {baseline} (%)")
    caption = (
        f"Held-out distillation loss at the end, {contender} over {baseline}, per cent, mean over seeds. "
        f"Below zero {contender} is better; a star: the 95 % interval over seeds leaves zero out."
    )
    return figure, caption


def _fields(
    axes: Axes, rows: Sequence[Row], ticks: Mapping[str, list[str]], names: tuple[str, str], scale: float
) -> Any:
    upright, lying = names
    values = [[float("nan")] * len(ticks[lying]) for _ in ticks[upright]]
    for row in rows:
        y, x = (ticks[axis].index(row["axes"][axis]) for axis in names)
        estimate = row["over_baseline"]
        values[y][x] = 100 * estimate["value"]
        star = "*" if estimate["lo"] is not None and (estimate["lo"] > 0 or estimate["hi"] < 0) else ""
        ink = "white" if abs(values[y][x]) > 0.6 * scale else "black"
        axes.text(x, y, f"{values[y][x]:+.1f}{star}", ha="center", va="center", fontsize=8.0, color=ink)
    axes.set_facecolor("#dddddd")  # of points that were not trained
    return axes.imshow(values, cmap="RdBu_r", vmin=-scale, vmax=scale, aspect="auto")


def _panel(row: Row) -> str:
    text = f"W{row['w_bits']}A{row['a_bits']}"
    return text if row["skip_layers"] == "std" else f"{text}, skip {row['skip_layers']}"


def _points(rows: Sequence[Row], axis: str) -> list[str]:
    """Names of an axis's points, as numbers where they are."""
    names = {row["axes"][axis] for row in rows}
    try:
        return sorted(names, key=float)
    except ValueError:
        return sorted(names)
