"""What all plots share: looks, interval bars, legend, and the SVG element that a page takes in."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from evalharness.report.rows import scale_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from evalharness.result_schema import Estimate, Results

# Stands for the page's text colour: ``to_svg`` replaces it by ``currentColor``.
INK = "#010203"

RC: dict[Any, Any] = {
    "svg.hashsalt": "evalharness",  # the same ids on every run
    "svg.fonttype": "path",
    "text.parse_math": False,  # a method's name may hold a dollar sign
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}
# Middle tones, legible on white and on near-black; the markers tell them apart without colour.
_COLORS = (
    "#2f7fd0", "#e07b1a", "#2e9e6b", "#c4549b", "#8a6fd1", "#b89500", "#3fa3b9", "#d0493e",
    "#8a5a3c", "#7b8794", "#6d8b22", "#5a63c8",
)  # fmt: skip
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", "p", ">", "h")


LEGEND: Literal["outside upper left"] = (
    "outside upper left"  # on the page: in sight on a phone, which shows the left part first
)
_SERIES = "series:"
_LONGEST = 30  # characters of a name in a legend: one line must not take the figure's room


class Style(NamedTuple):
    """A method's colour and marker, and its shift (-0.5..0.5) beside the others of one place."""

    color: str
    marker: str
    shift: float


def look_of(methods: Iterable[str]) -> dict[str, Style]:
    """Method -> style, by alphabetical order; no two are alike up to 144 methods."""
    names = sorted(set(methods))
    return {
        name: Style(
            _COLORS[place % len(_COLORS)],
            _MARKERS[(place + place // len(_COLORS)) % len(_MARKERS)],
            (place + 0.5) / len(names) - 0.5,
        )
        for place, name in enumerate(names)
    }


def shown(estimate: Estimate | None, results: Results) -> float:
    """The value as the tables show it; nan, drawn as nothing, for none."""
    if estimate is None or estimate.value is None:
        return float("nan")
    return estimate.value * scale_of(results)


def interval_dots(
    axes: Axes,
    places: Sequence[float],
    estimates: Sequence[Estimate | None],
    results: Results,
    style: Style,
    label: str,
    *,
    lying: bool = False,
) -> None:
    """Dots with interval bars: upright, or lying with ``places`` on the upright axis."""
    values = [shown(estimate, results) for estimate in estimates]
    x, y = (values, places) if lying else (places, values)
    dots = axes.scatter(
        x, y, color=style.color, marker=style.marker, s=28, zorder=3, label=label, linewidths=0
    )
    dots.set_gid(series(label))
    for place, estimate in zip(places, estimates, strict=True):
        if estimate is not None and estimate.lo is not None and estimate.hi is not None:
            ends = [estimate.lo * scale_of(results), estimate.hi * scale_of(results)]
            bar = (ends, [place, place]) if lying else ([place, place], ends)
            axes.plot(*bar, color=style.color, lw=1.2, gid=series(label))


def legend(
    figure: Figure,
    all_axes: Sequence[Axes],
    loc: Literal["outside upper center", "outside upper left"] = "outside upper center",
) -> None:
    """One legend above all axes, each label once, in alphabetical order."""
    found: dict[str, Any] = {}
    for axes in all_axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    labels = sorted(found)
    texts = [short(label) for label in labels]
    column = 0.6 + 0.075 * max(map(len, texts), default=0)  # inches of mark and text
    ncols = max(1, min(6, len(labels), int(figure.get_size_inches()[0] / column)))
    made = figure.legend([found[label] for label in labels], texts, loc=loc, ncols=ncols)
    for label, *parts in zip(labels, made.legend_handles, made.get_texts(), strict=True):
        for part in parts:
            if part is not None:
                part.set_gid(series(label))


def series(method: str) -> str:
    """Marks a part of a drawing as a method's; ``to_svg`` makes it what the page highlights by."""
    return f"{_SERIES}{method}"


def short(name: str) -> str:
    """A name as a figure has room for it; the tables have it whole."""
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}\u2026"


def empty_figure(width: float, height: float) -> Figure:
    """A figure of its own, outside pyplot's global list. Inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def to_svg(figure: Figure, prefix: str) -> str:
    """The ``<svg>`` element alone: no date, scalable, ink from the page, ids of its own."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    head, body = text[text.index("<svg") :].replace(INK, "currentColor").split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    body = re.sub(rf' id="{_SERIES}([^"]*)"', r' class="series" data-series="\1"', body)
    body = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}-", body)
    width = round(figure.get_size_inches()[0] * 96)
    return f'{head} aria-hidden="true" style="--drawn: {width}px">{body}'
