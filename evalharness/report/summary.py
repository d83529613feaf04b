"""What the tables show, in a sentence or two for the top of the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evalharness.report.rows import bits_label, middle_half, number, scale_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evalharness.ranking import BitsRanking
    from evalharness.result_schema import PooledResult, Results

__all__ = ["summary"]

_NAMED = 3  # more methods that cannot be told from the best are counted


def summary(rankings: Sequence[BitsRanking], results: Results) -> str:
    """For each model how much the best method keeps, and who leads where methods differ most; empty for none.

    "Cannot be told from it" is said of what the ranking calls neither ahead nor ahead with these seeds.
    """
    if not any(not cell.is_reference for cell in results.cells):
        return "Full precision alone: nothing is compared with it." if results.cells else ""
    if not any(group.rows for group in rankings):
        return "Nothing is ranked: no quantized row has every score."
    models = list(dict.fromkeys(group.model for group in rankings if group.rows))
    whole = {row.model: row for row in results.pooled if row.is_reference}
    parts = []
    for model in models:
        groups = [group for group in rankings if group.model == model and group.rows]
        text = _of_model(groups, whole.get(model), results)
        parts.append(f"{model}: {text}" if len(models) > 1 else text)
    return " ".join(parts)


def _of_model(groups: Sequence[BitsRanking], whole: PooledResult | None, results: Results) -> str:
    top = whole.mean.value if whole is not None and whole.mean is not None else None
    methods = {row.result.method for group in groups for row in group.rows}
    count = f"{len(methods)} {'method' if len(methods) == 1 else 'methods'}"
    focus = max(groups, key=lambda group: middle_half([_mean(group, n) for n in range(len(group.rows))]))
    if len(groups) == 1:
        told = f" against full precision's {_shown(top, results)}" if top is not None else ""
        return f"{count} at {_label(focus)}{told}: {_standing(focus, results)}."
    kept = ""
    if top is not None and top > 0:
        shares = [
            f"{100 * _mean(group, 0) / top:.0f} % at {_label(group)}" for group in (groups[0], groups[-1])
        ]
        kept = (
            f" the best keeps {shares[0]} and {shares[1]} of full precision's mean of {_shown(top, results)};"
        )
    where = f"they differ most at {_label(focus)}: " if len(focus.rows) > 1 else f"at {_label(focus)} "
    return f"{count} at {len(groups)} bit widths:{kept} {where}{_standing(focus, results)}."


def _standing(group: BitsRanking, results: Results) -> str:
    best, rest = group.rows[0], group.rows[1:]
    value = _shown(_mean(group, 0), results)
    if not rest:
        return f"{best.result.method} has {value}"
    level = [lead.over for lead in best.leads if not (lead.is_clear or lead.is_clear_here)]
    if not level:
        told = f"ahead of {'all others' if len(rest) > 1 else rest[0].result.method}"
        told += "" if all(lead.is_clear for lead in best.leads) else " with these seeds"
    elif len(level) <= _NAMED:
        told = f"{' and '.join(filter(None, [', '.join(level[:-1]), level[-1]]))} cannot be told from it"
    else:
        told = f"{len(level)} others cannot be told from it"
    text = f"{best.result.method} has the highest mean, {value}, {told}"
    last = rest[-1].result.method
    return text if last in level else f"{text}; {last} has the lowest, {_shown(_mean(group, -1), results)}"


def _mean(group: BitsRanking, place: int) -> float:
    mean = group.rows[place].result.mean
    assert mean is not None and mean.value is not None  # a ranked row has one
    return mean.value


def _shown(value: float, results: Results) -> str:
    return number(value * scale_of(results), 1 if results.percent else 3)


def _label(group: BitsRanking) -> str:
    return bits_label(group.w_bits, group.a_bits)
