"""The map: contender minus baseline at the end of training, over two axes of the grid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evalharness.report.drawing import empty_figure
from evalharness.tinyworld.claims.estimates import Estimate
from evalharness.tinyworld.claims.grid import Grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["heat_maps"]

Row = Mapping[str, Any]

# The official script for CogVideoX-2B, batch 64, on the axes of a grid that has them; the paper tests
# these bits. A mark of another value or bits would say what the paper does not.
PAPER: Mapping[str, float] = {"lr": 3e-5, "steps": 2000}
PAPER_BITS = (4, 3)
_INK = "#101010"


def heat_maps(found: Mapping[str, Any], grid: Grid) -> tuple[Figure, str] | None:
    """A panel for each bit width and preset; a field for each point of two axes. None without such points.

    A field holds the mean relative difference in per cent and the half-width of its interval; a star and
    a frame mark an interval without zero. A diamond marks where the paper trained, on the edge if beyond.
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
        1.8 + (0.5 + 0.75 * len(ticks[lying])) * len(panels), 1.3 + 0.55 * len(ticks[upright])
    )
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    marked = False
    for axes, panel in zip(all_axes, panels, strict=True):
        inside = [row for row in rows if _panel(row) == panel]
        image = _fields(axes, inside, ticks, (upright, lying), scale)
        if inside[0]["w_bits"] in PAPER_BITS:
            marked |= _mark_paper(axes, ticks, (upright, lying))
        axes.set_title(panel, fontsize=9.0)
        axes.set_xticks(range(len(ticks[lying])), ticks[lying])
        axes.set_xlabel(lying)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    all_axes[0].set_yticks(range(len(ticks[upright])), ticks[upright])
    all_axes[0].set_ylabel(upright)
    figure.colorbar(image, ax=list(all_axes), label=f"{contender} over {baseline} (%)")
    return figure, _caption(contender, baseline, marked=marked)


def _caption(contender: str, baseline: str, *, marked: bool) -> str:
    text = (
        f"Held-out distillation loss at the end, {contender} over {baseline}, per cent, mean over seeds and "
        f"half-width of its 95 % interval. Below zero {contender} is better; star and frame: the interval "
        "leaves zero out. Grey: not trained."
    )
    if not marked:
        return text
    place = ", ".join(f"{axis} {value:g}" for axis, value in PAPER.items())
    return f"{text} Diamond: where the paper trained ({place}); on the edge: beyond the map."


def _fields(
    axes: Axes, rows: Sequence[Row], ticks: Mapping[str, list[str]], names: tuple[str, str], scale: float
) -> Any:
    from matplotlib.patches import Rectangle

    upright, lying = names
    values = [[float("nan")] * len(ticks[lying]) for _ in ticks[upright]]
    for row in rows:
        y, x = (ticks[axis].index(row["axes"][axis]) for axis in names)
        estimate = row["over_baseline"]
        values[y][x] = 100 * estimate["value"]
        outside = Estimate(**estimate).excludes_zero
        ink = "white" if abs(values[y][x]) > 0.6 * scale else _INK
        text = f"{values[y][x]:+.1f}{'*' if outside else ''}\n{_width(estimate)}"
        axes.text(x, y, text, ha="center", va="center", fontsize=7.5, color=ink, linespacing=1.1)
        if outside:
            axes.add_patch(Rectangle((x - 0.46, y - 0.45), 0.92, 0.9, fill=False, ec=ink, lw=1.3))
    axes.set_facecolor("#dddddd")  # of points that were not trained
    return axes.imshow(values, cmap="RdBu_r", vmin=-scale, vmax=scale, aspect="auto")


def _width(estimate: Mapping[str, Any]) -> str:
    """Half-width in per cent; without an interval the number of seeds says why."""
    if estimate["lo"] is None:
        return f"n = {estimate['n']}"
    return f"\N{PLUS-MINUS SIGN}{50 * (estimate['hi'] - estimate['lo']):.1f}"


def _mark_paper(axes: Axes, ticks: Mapping[str, list[str]], names: tuple[str, str]) -> bool:
    """A diamond at the paper's point; False where the axes are others than the paper's."""
    if set(names) != set(PAPER):
        return False
    try:
        y, x = (_place(PAPER[name], [float(tick) for tick in ticks[name]]) for name in names)
    except ValueError:
        return False
    if -0.5 < x < len(ticks[names[1]]) - 0.5:
        y = min(y + 0.4, len(ticks[names[0]]) - 0.5)  # so that it covers no number
    axes.scatter(
        [x], [y], marker="D", s=42, color="#ffd400", edgecolors=_INK, lw=0.9, zorder=5, clip_on=False
    )
    return True


def _place(value: float, points: Sequence[float]) -> float:
    """Where on an axis of evenly spaced points, by logarithms between them; on the edge if beyond.

    Raises:
        ValueError: a point is not above zero.
    """
    import numpy as np

    wanted, logs = math.log(value), [math.log(point) for point in points]
    if not logs[0] <= wanted <= logs[-1]:
        return -0.5 if wanted < logs[0] else len(points) - 0.5
    return float(np.interp(wanted, logs, range(len(logs))))


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
