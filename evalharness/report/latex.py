"""``leaderboard.tex``: a ``tabular`` with booktabs rules, from the same rows as the other tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from evalharness.report.rows import bits_label, number, scale_of, sorted_pooled, total_columns
from evalharness.report.wording import warnings
from evalharness.visible import visible

if TYPE_CHECKING:
    from evalharness.result_schema import Estimate, PooledResult, Results

__all__ = ["escape", "latex"]

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


def escape(text: str) -> str:
    """Text that LaTeX prints as it stands, on one line."""
    return "".join(_ESCAPES.get(character, character) for character in " ".join(visible(text).split()))


def latex(results: Results) -> str:
    """The text of the file; needs the package booktabs."""
    names = [*results.totals, "mean", *results.dimensions]
    headers = ["method", "bits", *total_columns(results), "mean", *results.dimensions]
    notes = [results.label, *warnings(results)]
    lines = [f"% {' '.join(note.split())}" for note in notes]
    lines += [
        f"% Protocol {' '.join(results.protocol.split())}; 95 % intervals; needs \\usepackage{{booktabs}}."
    ]
    lines += [rf"\begin{{tabular}}{{ll{'r' * len(names)}}}", r"\toprule", _line(map(escape, headers))]
    previous: tuple[int, int] | None = None
    for row in sorted_pooled(results):
        if (row.w_bits, row.a_bits) != previous:
            lines.append(r"\midrule")
            previous = (row.w_bits, row.a_bits)
        lines.append(_line([escape(row.method), bits_label(*previous), *_values(row, results)]))
    return visible("\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n")


def _values(row: PooledResult, results: Results) -> list[str]:
    estimates: list[Estimate | None] = [row.totals.get(name) for name in results.totals]
    estimates += [row.mean, *(row.dimensions[name] for name in results.dimensions)]
    return [_estimate(estimate, results) for estimate in estimates]


def _estimate(estimate: Estimate | None, results: Results) -> str:
    """Value with its interval beneath it in small print; a dash for none."""
    if estimate is None or estimate.value is None:
        return "--"
    scale, digits = scale_of(results), 1 if results.percent else 3
    text = number(estimate.value * scale, digits)
    if estimate.lo is None or estimate.hi is None:
        return text
    ends = (number(end * scale, digits) for end in (estimate.lo, estimate.hi))
    return rf"{text} {{\scriptsize [{', '.join(ends)}]}}"


def _line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"
