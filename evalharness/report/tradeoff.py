"""Quality against what it costs: one panel for each cost, with the rows that no other row beats."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from evalharness.report.drawing import (
    INK,
    LEGEND,
    Style,
    empty_figure,
    interval_dots,
    legend,
    series,
    short,
    shown,
)
from evalharness.report.rows import bits_label, cost, sorted_pooled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from evalharness.result_schema import CellResult, PooledResult, Results

_NAME = (0.3, 0.06)  # of a panel's width and height
RUNS_FOR_REAL = ("real", "emulated")


class Cost(NamedTuple):
    """One panel.

    Attributes:
        columns: columns of the profile, the first that a row has.
        is_timed: whether only rows that ran packed weights have it; a simulation's cost says nothing.
    """

    label: str
    columns: tuple[str, ...]
    is_timed: bool


COSTS = (
    Cost("bits for a weight", ("weight_bits", "w_bits"), False),
    Cost("MB of weights", ("stored_mb", "weights_mb"), False),
    Cost("peak MB of a step", ("peak_mem_mb",), True),
    Cost("ms of a step", ("step_ms",), True),
)


class Point(NamedTuple):
    """A row with its cost and mean, as shown."""

    row: PooledResult
    cost: float
    mean: float


def points(results: Results, of: Cost) -> list[Point]:
    """The rows that have a mean and that cost; of several seeds the median cost."""
    found = []
    for row in sorted_pooled(results):
        if of.is_timed and not set(row.executions) <= set(RUNS_FOR_REAL):
            continue
        values = [value for cell in row.cells if (value := _cost(results.cell(cell), of)) is not None]
        if values and row.mean is not None and row.mean.value is not None:
            found.append(Point(row, median(values), shown(row.mean, results)))
    return found


def front(found: Iterable[Point]) -> list[Point]:
    """Those that no other beats: none costs at most as much and is better. Cheapest first."""
    best: list[Point] = []
    for point in sorted(found, key=lambda each: (each.cost, -each.mean)):
        if not best or point.mean > best[-1].mean:
            best.append(point)
    return best


def named(line: Sequence[Point], room: tuple[float, float]) -> list[Point]:
    """Of a front those whose names of that width and height do not meet; the best comes first."""
    found: list[Point] = []
    for point in reversed([point for point in line if not point.row.is_reference]):
        near = (
            abs(point.cost - other.cost) < room[0] and abs(point.mean - other.mean) < room[1]
            for other in found
        )
        if not any(near):
            found.append(point)
    return found


def panels(results: Results) -> list[tuple[Cost, list[Point]]]:
    """The costs for which there is a quantized row."""
    drawn = [(each, points(results, each)) for each in COSTS]
    return [(each, found) for each, found in drawn if any(not point.row.is_reference for point in found)]


def draw(results: Results, looks: dict[str, Style], unit: str) -> tuple[Figure, str, str] | None:
    """The figure, its caption and what it shows in words; None where no row has a mean and a cost."""
    drawn = panels(results)
    if not drawn:
        return None
    figure = empty_figure(1.2 + 2.6 * len(drawn), 3.4)
    all_axes = list(figure.subplots(1, len(drawn), sharey=True, squeeze=False)[0])
    for axes, (of, found) in zip(all_axes, drawn, strict=True):
        _panel(axes, of, found, results, looks)
    all_axes[0].set_ylabel(f"mean of {len(results.dimensions)} dimensions{unit}")
    legend(figure, all_axes, LEGEND)
    caption = "Quality against cost, all seeds together. The line joins the rows that no other row beats."
    if not any(of.is_timed for of, _ in drawn):
        caption += " Every quantized row is simulated, so neither its time nor its peak memory is drawn."
    words = "; ".join(f"{of.label}: {_names(front(found))}" for of, found in drawn)
    return figure, caption, f"Not beaten, cheapest first, by {words}."


def _panel(axes: Axes, of: Cost, found: Sequence[Point], results: Results, looks: dict[str, Style]) -> None:
    line = front(found)
    axes.plot([p.cost for p in line], [p.mean for p in line], color=INK, lw=0.8, alpha=0.5)
    for point in found:
        style = looks.get(point.row.method, Style(INK, "o", 0.0))
        interval_dots(axes, [point.cost], [point.row.mean], results, style, point.row.method)
    low, high = axes.get_xlim()
    axes.set_xlim(low - 0.35 * (high - low), high)  # left of a front and above it is room for names
    sizes = [most - least for least, most in (axes.get_xlim(), axes.get_ylim())]
    for point in named(line, (_NAME[0] * sizes[0], _NAME[1] * sizes[1])):
        text = f"{point.row.method} {bits_label(point.row.w_bits, point.row.a_bits)}"
        place = (point.cost, point.mean)
        above = 10 if point is line[-1] else 4  # the best has the others' intervals to its left
        name = axes.annotate(
            short(text), place, (-5, above), textcoords="offset points", ha="right", fontsize=7.5
        )
        name.set_gid(series(point.row.method))
        name.set_in_layout(False)  # a long name must not take the panel's room
    axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= high])  # no cost is below nothing
    axes.set_xlabel(of.label)
    axes.grid(lw=0.3, alpha=0.5)


def _names(line: Sequence[Point]) -> str:
    return ", ".join(
        f"{p.row.method} {bits_label(p.row.w_bits, p.row.a_bits)} ({p.cost:.4g}, {p.mean:.1f})" for p in line
    )


def _cost(cell: CellResult, of: Cost) -> float | None:
    for column in of.columns:
        value = float(cell.w_bits) if column == "w_bits" else cost(cell, column)
        if value:
            return value
    return None
