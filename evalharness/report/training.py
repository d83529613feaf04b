"""How each training went: loss, gradient norm and rank by step, methods beside each other at every width."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from evalharness.report.drawing import LEGEND, Style, empty_figure, legend, series
from evalharness.report.rows import bits_label, sorted_cells

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from evalharness.result_schema import CellResult, Results

Curve = list[tuple[float, float]]

_PANELS = {"loss": "loss", "grad": "gradient norm", "rank": "rank"}
"""Beginning of a logged quantity's name -> what its axis says."""

_MARKS = 7  # markers on a curve: enough to tell it without colour, few enough to see its course
_MOST = 1e100  # beyond it, and below its inverse, matplotlib's logarithmic axes overflow
_MOST_EVENTS = 12  # a rank that falls more often is told by its curve alone


def draw(results: Results, looks: dict[str, Style]) -> tuple[Figure, str, str] | None:
    """The figure, its caption and what it shows in words; None where no cell has a log of its loss."""
    cells = [cell for cell in sorted_cells(results) if curve_of(cell, "loss")]
    if not cells:
        return None
    names = {key: name for key, name in _PANELS.items() if any(curve_of(cell, key) for cell in cells)}
    panels = list(dict.fromkeys(_bits(cell) for cell in cells))
    figure = empty_figure(1.8 + 2.3 * len(panels), 0.8 + 1.9 * len(names))
    grid = figure.subplots(len(names), len(panels), sharex=True, sharey="row", squeeze=False)
    for row_of_axes, (key, name) in zip(grid, names.items(), strict=True):
        for axes, panel in zip(row_of_axes, panels, strict=True):
            _panel(axes, key, [cell for cell in cells if _bits(cell) == panel], looks)
        row_of_axes[0].set_ylabel(name)
    for top, bottom, panel in zip(grid[0], grid[-1], panels, strict=True):
        top.set_title(panel, fontsize=9.0)
        bottom.set_xlabel("step")
    legend(figure, list(grid[0]), LEGEND)
    caption = f"Training of the quantized weights: {', '.join(names.values())} by step, one line a cell."
    if any(falls(curve_of(cell, "rank")) for cell in cells):
        caption += " A dotted upright line is a step at which a method's rank falls, with what it falls to."
    return figure, caption, f"{'; '.join(map(_told, cells))}."


def curve_of(cell: CellResult, prefix: str) -> Curve:
    """(step, value) of the logged quantity whose name starts so, the shortest if several do.

    Losses and norms that are not positive are left out: their axis is logarithmic. So is what no axis can
    show: a log is whatever a method, or a stranger's file, says.
    """
    names = {name for record in cell.train_log for name in record if name.startswith(prefix)}
    if not names:
        return []
    name = min(names, key=lambda each: (len(each), each))
    least = 0.0 if prefix == "rank" else 1 / _MOST
    found = [
        (_shown(record.get("step", n)), _shown(record.get(name))) for n, record in enumerate(cell.train_log)
    ]
    return [(x, y) for x, y in found if x is not None and y is not None and y >= least]


def _shown(value: object) -> float | None:
    """A number that an axis can show; None of anything else."""
    return float(value) if isinstance(value, int | float) and abs(value) <= _MOST else None  # NaN is not


def falls(curve: Curve) -> Curve:
    """The first logged (step, rank) of each smaller rank."""
    return [after for before, after in itertools.pairwise(curve) if after[1] < before[1]]


def _panel(axes: Axes, key: str, cells: Sequence[CellResult], looks: dict[str, Style]) -> None:
    told: set[tuple[str, float]] = set()
    for cell in cells:
        style = looks[cell.method]
        if curve := curve_of(cell, key):
            _line(axes, curve, key, style, cell.method)
        events = falls(curve_of(cell, "rank"))
        for step, rank in events if len(events) <= _MOST_EVENTS else []:
            if (cell.method, step) in told:
                continue
            told.add((cell.method, step))
            upright = axes.axvline(step, color=style.color, lw=0.7, ls=":", alpha=0.8, zorder=1)
            upright.set_gid(series(cell.method))
            if key == "rank":
                name = axes.annotate(
                    f"{rank:g}", (step, rank), (2, 3), textcoords="offset points", fontsize=7.5
                )
                name.set_gid(series(cell.method))
    if key != "rank":
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    axes.grid(lw=0.3, alpha=0.5)


def _line(axes: Axes, curve: Curve, key: str, style: Style, method: str) -> None:
    every = max(1, len(curve) // _MARKS)
    first = int((style.shift + 0.5) * every)  # no two methods' marks lie on one another
    [line] = axes.plot(
        *zip(*curve, strict=True), color=style.color, lw=1.0, alpha=0.9, label=method,
        marker=style.marker, markersize=4.0, markeredgewidth=0, markevery=(first, every),
        drawstyle="steps-post" if key == "rank" else "default",
    )  # fmt: skip
    line.set_gid(series(method))


def _told(cell: CellResult) -> str:
    """``qvgen-w3a3-s0: loss 0.0105 at step 1600; rank 32, 16 from step 340, ...``."""
    step, loss = curve_of(cell, "loss")[-1]
    text = f"{cell.id}: loss {loss:.3g} at step {step:g}"
    if not (ranks := curve_of(cell, "rank")):
        return text
    events = falls(ranks)
    shown = events if len(events) <= _MOST_EVENTS else events[-1:]
    return ", ".join([f"{text}, rank {ranks[0][1]:g}", *(f"{rank:g} from step {at:g}" for at, rank in shown)])


def _bits(cell: CellResult) -> str:
    return bits_label(cell.w_bits, cell.a_bits)
