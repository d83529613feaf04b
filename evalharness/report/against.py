"""One method against every other at each bit width, as a Markdown table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evalharness.errors import unknown

if TYPE_CHECKING:
    from evalharness.ranking import BitsRanking, Lead
    from evalharness.result_schema import Results

__all__ = ["against"]

NOTE = (
    "Each method minus `{method}`: mean over dimensions of paired differences, same prompt, sample and seed, "
    "with its 95 % interval over prompts."
)
MARKS = (
    " Bold: p < 0.05 with seeds drawn at random and all pairs of a bit width counted in (Holm); a star: for "
    "the seeds that were run."
)


def against(results: Results, method: str) -> str:
    """Rows are methods, columns bit widths (many bits first), best mean over the columns on top.

    Args:
        results: of a run or of joined runs.
        method: one of the results' methods, or the name of the full-precision row, which is compared with
            at every bit width.

    Raises:
        UserError: no such method in these results.
    """
    from evalharness.ranking import ranking
    from evalharness.report.rows import bits_label
    from evalharness.report.tables import table

    references = {row.method for row in results.pooled if row.is_reference}
    names = sorted({row.method for row in results.pooled})
    if method not in names:
        raise unknown("method", method, names)
    models = {row.model for row in results.pooled}
    columns = {}
    for group in ranking(results):
        label = bits_label(group.w_bits, group.a_bits)
        label += f" of {group.model}" if len(models) > 1 else ""
        columns[label] = (
            _to_reference(group, results) if method in references else _column(group, method, results)
        )
    columns = {label: column for label, column in columns.items() if column}
    means = _means(results)
    rows = sorted(
        {name for column in columns.values() for name in column}, key=lambda name: (-means[name], name)
    )
    cells = [[name, *(column.get(name, "") for column in columns.values())] for name in rows]
    note = NOTE.format(method=method) + ("" if method in references else MARKS)
    return f"{note}\n\n{table(['method', *columns], cells)}\n"


def _to_reference(group: BitsRanking, results: Results) -> dict[str, str]:
    """Texts of the rows' differences to full precision, which have no p-values of their own."""
    from evalharness.report.rows import estimate_text

    return {
        row.result.method: estimate_text(row.result.minus_reference, results, signed=True)
        for row in group.rows
    }


def _column(group: BitsRanking, method: str, results: Results) -> dict[str, str]:
    """Texts by method; empty where the one compared with has no mean at this width."""
    from evalharness.report.rows import estimate_text

    place = next((i for i, row in enumerate(group.rows) if row.result.method == method), None)
    if place is None:
        return {}
    found = {}
    for row in group.rows[:place]:
        lead = next(lead for lead in row.leads if lead.over == method)
        found[row.result.method] = _marked(lead, estimate_text(lead.by, results, signed=True))
    for lead in group.rows[place].leads:
        behind = lead.by.model_copy(
            update={
                "value": _minus(lead.by.value),
                "lo": _minus(lead.by.hi),
                "hi": _minus(lead.by.lo),
            }
        )
        found[lead.over] = _marked(lead, estimate_text(behind, results, signed=True))
    return found


def _minus(value: float | None) -> float | None:
    return None if value is None else -value


def _marked(lead: Lead, text: str) -> str:
    return f"**{text}**" if lead.is_clear else f"{text}*" if lead.is_clear_here else text


def _means(results: Results) -> dict[str, float]:
    """By method: mean over the bit widths that it has a mean at."""
    found: dict[str, list[float]] = {}
    for row in results.pooled:
        if row.mean is not None and row.mean.value is not None:
            found.setdefault(row.method, []).append(row.mean.value)
    return {name: sum(values) / len(values) for name, values in found.items()}
