"""One method against every other at each bit width, as a Markdown table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evalharness.errors import UserError, unknown

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
    """Rows are methods, best mean over the widths that all have on top; columns are widths, many bits first.

    Args:
        results: of a run or of joined runs.
        method: one of the results' methods, or the name of the full-precision row, which is compared with
            at every bit width.

    Raises:
        UserError: no such method in these results, or nothing to compare it with.
    """
    from evalharness.ranking import ranking
    from evalharness.report.tables import table

    names = sorted({row.method for row in results.pooled})
    if not names:
        raise UserError("there are no results of any method to compare")
    if method not in names:
        raise unknown("method", method, names)
    is_reference = method in {row.method for row in results.pooled if row.is_reference}
    groups = {_label(group, results): group for group in ranking(results)}
    columns = {
        label: _to_reference(group, results) if is_reference else _column(group, method, results)
        for label, group in groups.items()
    }
    columns = {label: column for label, column in columns.items() if column}
    if not columns:
        raise UserError(f"no other method has a mean at a bit width at which {method} has one")
    rows = _ordered(columns, groups)
    cells = [[name, *(column.get(name, "") for column in columns.values())] for name in rows]
    note = NOTE.format(method=method) + ("" if is_reference else MARKS)
    lines = [f"{note}\n\n{table(['method', *columns], cells)}\n", *_left_out(groups, results)]
    return "\n".join(lines)


def _label(group: BitsRanking, results: Results) -> str:
    from evalharness.report.rows import bits_label

    several = len({row.model for row in results.pooled}) > 1
    return bits_label(group.w_bits, group.a_bits) + (f" of {group.model}" if several else "")


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
        turned = {"value": _minus(lead.by.value), "lo": _minus(lead.by.hi), "hi": _minus(lead.by.lo)}
        behind = lead.by.model_copy(update=turned)
        found[lead.over] = _marked(lead, estimate_text(behind, results, signed=True))
    return found


def _minus(value: float | None) -> float | None:
    return None if value is None else -value


def _marked(lead: Lead, text: str) -> str:
    return f"**{text}**" if lead.is_clear else f"{text}*" if lead.is_clear_here else text


def _ordered(columns: dict[str, dict[str, str]], groups: dict[str, BitsRanking]) -> list[str]:
    """Names, best mean first; over the columns that all have, since one with few bits more would sink."""
    names = sorted({name for column in columns.values() for name in column})
    common = [label for label, column in columns.items() if len(column) == len(names)] or list(columns)
    values: dict[str, list[float]] = {name: [] for name in names}
    for label in common:
        for row in groups[label].rows:
            if row.result.method in values and row.result.mean and row.result.mean.value is not None:
                values[row.result.method].append(row.result.mean.value)
    means = {name: sum(found) / len(found) if found else 0.0 for name, found in values.items()}
    return sorted(names, key=lambda name: (-means[name], name))


def _left_out(groups: dict[str, BitsRanking], results: Results) -> list[str]:
    """A line for what has no mean, and one for rows that lack a seed which others have."""
    partial = [f"{name} at {label}" for label, group in groups.items() for name in group.unranked]
    fewer = [
        f"{row.result.method} at {label} ({', '.join(str(seed) for seed in row.result.seeds)})"
        for label, group in groups.items()
        for row in group.rows
        if row.result.seeds != results.seeds
    ]
    lines = [f"\nNo mean, for want of full coverage: {', '.join(partial)}.\n"] if partial else []
    if fewer:
        every = ", ".join(map(str, results.seeds))
        lines.append(f"\nNot of every seed ({every}), in brackets those they have: {', '.join(fewer)}.\n")
    return lines
