"""Plots as inline SVG. Ink is ``currentColor``, so that they follow a page's light or dark theme."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from evalharness.report.drawing import (
    INK,
    LEGEND,
    RC,
    Style,
    empty_figure,
    interval_dots,
    legend,
    look_of,
    series,
    shown,
    to_svg,
)
from evalharness.report.rows import bits_label, estimate_text, scale_of, sorted_pooled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from evalharness.result_schema import CellResult, PooledResult, Results


class Plot(NamedTuple):
    """An SVG element with its caption; ``alt`` says in words what it shows."""

    svg: str
    caption: str
    alt: str
    is_wide: bool = False


def plots(results: Results) -> list[Plot]:
    """All plots that the results have data for."""
    import matplotlib as mpl

    with mpl.rc_context(RC):
        drawn = (
            _mean_by_bits(results),
            _tradeoff(results),
            _dimension_dots(results),
            _training_curves(results),
        )
        return [plot for plot in drawn if plot is not None]


def _bits(row: PooledResult | CellResult) -> str:
    return bits_label(row.w_bits, row.a_bits)


def _looks(results: Results) -> dict[str, Style]:
    """The same look for a method in every plot."""
    return look_of(row.method for row in results.pooled if not row.is_reference)


def _unit(results: Results) -> str:
    return " (%)" if results.percent else ""


def _mean_by_bits(results: Results) -> Plot | None:
    rows = [row for row in sorted_pooled(results) if row.mean is not None]
    quantized = [row for row in rows if not row.is_reference]
    if not quantized:
        return None
    figure = empty_figure(6.4, 3.4)
    axes = figure.subplots()
    ticks = list(dict.fromkeys(_bits(row) for row in quantized))
    for reference in (row for row in rows if row.is_reference):
        _reference_band(axes, reference, results)
    for method, style in _looks(results).items():
        mine = [row for row in quantized if row.method == method]
        x = [ticks.index(_bits(row)) + 0.6 * style.shift for row in mine]
        if not mine:
            continue
        values = [shown(row.mean, results) for row in mine]
        [line] = axes.plot(x, values, color=style.color, lw=0.8, alpha=0.4)
        line.set_gid(series(method))
        interval_dots(axes, x, [row.mean for row in mine], results, style, method)
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set_xlim(-0.6, len(ticks) - 0.4)
    axes.set_ylabel(f"mean of {len(results.dimensions)} dimensions{_unit(results)}")
    axes.grid(axis="y", lw=0.3, alpha=0.5)
    legend(figure, [axes], LEGEND)
    alt = "; ".join(f"{row.method} {_bits(row)}: {estimate_text(row.mean, results)}" for row in rows)
    caption = "Mean by bit width, all seeds together, with 95 % intervals. The band is full precision."
    return Plot(to_svg(figure, "mean"), caption, f"{alt}.")


def _tradeoff(results: Results) -> Plot | None:
    from evalharness.report.tradeoff import draw

    drawn = draw(results, _looks(results), _unit(results))
    if drawn is None:
        return None
    figure, caption, alt = drawn
    return Plot(to_svg(figure, "tradeoff"), caption, alt, is_wide=len(figure.axes) > 2)


def _reference_band(axes: Axes, row: PooledResult, results: Results) -> None:
    if row.mean is None or row.mean.value is None:
        return
    scale = scale_of(results)
    axes.axhline(row.mean.value * scale, color=INK, lw=0.9, ls="--", label=row.method)
    if row.mean.lo is not None and row.mean.hi is not None:
        axes.axhspan(row.mean.lo * scale, row.mean.hi * scale, color=INK, alpha=0.1, lw=0)


def _dimension_dots(results: Results) -> Plot | None:
    rows = sorted_pooled(results)
    if not any(estimate.n for row in rows for estimate in row.dimensions.values()):
        return None
    panels = list(dict.fromkeys(_bits(row) for row in rows if not row.is_reference)) or ["BF16"]
    height = 1.1 + len(results.dimensions) * (0.2 + 0.07 * len(_looks(results)))
    figure = empty_figure(1.8 + 2.3 * len(panels), height)
    all_axes = list(figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0])
    for axes, panel in zip(all_axes, panels, strict=True):
        _dimension_panel(axes, panel, rows, results)
    all_axes[0].set_yticks(range(len(results.dimensions)), results.dimensions)
    all_axes[0].set_ylim(len(results.dimensions) - 0.4, -0.6)
    for axes in all_axes[1:]:
        axes.spines["left"].set_visible(False)
    for place in range(0, len(results.dimensions), 2):
        for axes in all_axes:
            axes.axhspan(place - 0.5, place + 0.5, color=INK, alpha=0.045, lw=0)
    legend(figure, all_axes, LEGEND)
    caption = "Every dimension, all seeds together, with 95 % intervals. The upright bar is full precision."
    alt = "The values stand in the leaderboard's columns for each dimension."
    return Plot(to_svg(figure, "dimensions"), caption, alt, is_wide=len(panels) > 2)


def _dimension_panel(axes: Axes, panel: str, rows: Sequence[PooledResult], results: Results) -> None:
    looks = _looks(results)
    for row in rows:
        estimates = [row.dimensions[name] for name in results.dimensions]
        if row.is_reference:
            values = [shown(estimate, results) for estimate in estimates]
            axes.scatter(values, range(len(values)), marker="|", s=140, color=INK, label=row.method)
        elif _bits(row) == panel:
            style = looks[row.method]
            places = [place + 0.7 * style.shift for place in range(len(estimates))]
            interval_dots(axes, places, estimates, results, style, row.method, lying=True)
    axes.set_title(panel, fontsize=9.0)
    axes.set_xlabel(f"score{_unit(results)}")
    axes.grid(lw=0.3, alpha=0.5)
    axes.tick_params(axis="y", length=0)


def _training_curves(results: Results) -> Plot | None:
    from evalharness.report.training import draw

    drawn = draw(results, _looks(results))
    if drawn is None:
        return None
    figure, caption, alt = drawn
    panels = len({_bits(cell) for cell in results.cells if cell.train_log})
    return Plot(to_svg(figure, "training"), caption, alt, is_wide=panels > 2)
