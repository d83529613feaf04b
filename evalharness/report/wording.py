"""Sentences that are true of a set of results: warnings, the ranking in words, the legend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from evalharness.report.rows import (
    COUNTED_COLUMNS,
    SPEEDUP,
    bits_label,
    cost,
    coverage_text,
    estimate_text,
    total_columns,
)

if TYPE_CHECKING:
    from evalharness.ranking import BitsRanking, Ranked
    from evalharness.result_schema import CellResult, Estimate, Results

_SOURCES = {
    "loaded": "quantized weights read from a published checkpoint",
    "trained": "quantized weights trained in this run",
    "computed": "quantized weights computed in this run, without training",
    "reference": "the model in full precision",
    "given": "videos made elsewhere; the harness knows nothing of how",
}


def warnings(results: Results) -> list[str]:
    """What a reader must know before any number; empty for a complete run."""
    if not results.cells:
        return ["No cell has results."]
    partial = [cell for cell in results.cells if not cell.is_complete]
    lines = []
    if partial:
        lines.append(
            f"PARTIAL RUN: {len(partial)} of {len(results.cells)} cells lack scores. "
            "A mean is printed at full coverage only; values of partly covered dimensions "
            "are not comparable between rows."
        )
        alike: dict[str, list[str]] = {}
        for cell in partial:
            alike.setdefault(_missing(cell), []).append(cell.id)
        lines += [f"{', '.join(ids)}: {missing}" for missing, ids in alike.items()]
    return lines + _damaged_logs(results) + _unequal_budgets(results)


def _damaged_logs(results: Results) -> list[str]:
    return [
        f"TRAINING LOG of {cell.id}: {cell.train_log_damage}. Its curves show what is left; "
        "no score depends on it."
        for cell in results.cells
        if cell.train_log_damage
    ]


def coverage_line(results: Results) -> str:
    """How much of what was planned is there, in one sentence; empty without cells."""
    if not results.cells:
        return ""
    complete = sum(cell.is_complete for cell in results.cells)
    least = min(results.cells, key=lambda cell: cell.coverage)
    failed = sum(cell.n_failed for cell in results.cells)
    text = f"Coverage: {complete} of {len(results.cells)} cells have every score"
    if complete < len(results.cells):
        text += f"; least: {least.id}, {coverage_text(least.coverage)}"
    if logs := sum(cell.train_log_damage is not None for cell in results.cells):
        text += f"; {logs} training log{'' if logs == 1 else 's'} damaged"
    return f"{text}{f'; {failed} videos failed' if failed else ''}."


def _unequal_budgets(results: Results) -> list[str]:
    """One line for each bit width at which the training recipes saw different numbers of samples."""
    groups: dict[tuple[str, int, int], dict[str, int]] = {}
    for cell in results.cells:
        seen = _samples_seen(cell.method_config.get("recipe"))
        if seen is not None:
            groups.setdefault((cell.model, cell.w_bits, cell.a_bits), {})[cell.method] = seen
    return [
        f"UNEQUAL TRAINING at {bits_label(w_bits, a_bits)}: samples seen: "
        f"{', '.join(f'{method} {seen}' for method, seen in sorted(seen_by.items()))}. "
        "Differences between these methods are differences of budget, too."
        for (_, w_bits, a_bits), seen_by in groups.items()
        if len(set(seen_by.values())) > 1
    ]


def _samples_seen(recipe: Any) -> int | None:
    if not isinstance(recipe, Mapping) or not {"steps", "batch_size"} <= recipe.keys():
        return None
    return int(recipe["steps"]) * int(recipe["batch_size"]) * int(recipe.get("accumulate", 1))


def _missing(cell: CellResult) -> str:
    lacking = [
        f"{name} {estimate.n}/{estimate.expected}"
        for name, estimate in cell.dimensions.items()
        if estimate.n < estimate.expected
    ]
    failed = f", {cell.n_failed} failed" if cell.n_failed else ""
    scores = f"; scores: {', '.join(lacking)}" if lacking else ""
    return (
        f"coverage {coverage_text(cell.coverage)}, "
        f"{cell.n_videos_ok} of {cell.n_videos_expected} videos{failed}{scores}."
    )


_ALL_PAIRS = 5  # with more methods only the best is compared with all others in words: 55 pairs nobody reads


def ranking_sentences(rankings: list[BitsRanking], results: Results) -> list[str]:
    """One sentence for each bit width, most bits first; the model is named if there are several."""
    models = {ranked.model for ranked in rankings}
    sentences = []
    for group in rankings:
        where = bits_label(group.w_bits, group.a_bits) + (f" of {group.model}" if len(models) > 1 else "")
        compared = len(group.rows) if len(group.rows) <= _ALL_PAIRS else 1
        parts = [_standing(row, results) for row in group.rows[:compared]]
        if rest := group.rows[compared:]:
            texts = [f"{row.result.method} {estimate_text(row.result.mean, results)}" for row in rest]
            parts.append(f"below it in this order {_list(texts)}")
        if group.unranked:
            parts.append(f"not ranked, for want of full coverage: {_list(group.unranked)}")
        sentences.append(f"At {where}: {'; '.join(parts)}.")
    if any(len(group.rows) > _ALL_PAIRS for group in rankings):
        sentences.append(
            "`evalharness leaderboard against METHOD RUN` compares any one method with all others."
        )
    return sentences


def _standing(row: Ranked, results: Results) -> str:
    clear = [f"{lead.over} by {estimate_text(lead.by, results)}" for lead in row.leads if lead.is_clear]
    rest = [lead for lead in row.leads if not lead.is_clear]
    here = [f"{lead.over} by {estimate_text(lead.by, results)}" for lead in rest if lead.is_clear_here]
    unclear = [f"{lead.over} ({_signed(lead.by, results)})" for lead in rest if not lead.is_clear_here]
    text = f"{row.result.method} {estimate_text(row.result.mean, results)}"
    if clear:
        text += f", ahead of {_list(clear)}"
    if here:
        text += f", with these seeds ahead of {_list(here)}"
    if unclear:
        text += f", not distinguishable from {_list(unclear)}"
    return text


def _signed(estimate: Estimate, results: Results) -> str:
    return estimate_text(estimate, results, signed=True)


def _list(items: list[str] | tuple[str, ...]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _variants(results: Results) -> list[str]:
    """What each variant is; one line for all, none where there are no variants."""
    named = {
        cell.method: f"`{cell.method}` is {cell.variant_of} ({_options(cell.options) or 'no options'})"
        for cell in results.cells
        if cell.variant_of is not None
    }
    return [f"variants: {'; '.join(named[name] for name in sorted(named))}."] if named else []


def _options(options: Mapping[str, Any]) -> str:
    """``rank=16, recipe.steps=100``."""
    flat: dict[str, Any] = {}
    for key, value in options.items():
        parts = value.items() if isinstance(value, Mapping) else [("", value)]
        flat |= {f"{key}.{part}".rstrip("."): item for part, item in parts}
    return ", ".join(f"{key}={value}" for key, value in flat.items())


def legend(results: Results) -> list[str]:
    """How to read the tables; names only what occurs in them."""
    info, unit = results.bootstrap, "percent" if results.percent else "raw scores"
    made = (
        f"interval from Student's t over whole {info.cluster}s, corrected for skewness (Hall 1992)"
        if info.kind == "skew-t"
        else f"percentile bootstrap, {info.resamples} resamples of whole {info.cluster}s"
    )
    lines = [
        f"Values are in {unit}, as `value [lo, hi]`: {info.confidence * 100:g} % {made}. The interval covers "
        f"the choice of {info.cluster}s; how far seeds differ stands beside it.",
        "mean: unweighted mean of the dimensions, at full coverage only. Methods are compared by paired "
        "differences: same prompt, same sample, same seed. `ahead` means that the interval lies above "
        "zero and that p < 0.05 with seeds drawn at random too, corrected "
        "for all pairs of that width (Holm); `with these seeds ahead`, that this is so of the seeds that "
        "were run, while others might tell otherwise.",
    ]
    if results.totals:
        lines.append(
            f"{_list([f'`{name}`' for name in total_columns(results)])}: weighted means of the dimensions, "
            "each stretched from the protocol's minimum and maximum to 0..1 without clipping; printed only "
            "where every dimension that belongs to it is fully scored."
        )
    sources = {cell.source for cell in results.cells}
    named = [f"`{source}`: {text}" for source, text in _SOURCES.items() if source in sources]
    if named:
        lines.append(f"source: {'; '.join(named)}.")
    lines += _variants(results)
    executions = {cell.execution for cell in results.cells}
    if "real" in executions:
        lines.append("execution `real`: packed low-bit weights or the full-precision model itself ran.")
    if "emulated" in executions:
        lines.append("execution `emulated`: packed weights, unpacked for the arithmetic.")
    if "fake" in executions:
        lines.append(
            "execution `fake`: quantization is simulated in floating point. Its step time is the cost "
            "of the simulation, so no speed-up is given."
        )
    if any(cost(cell, SPEEDUP) is not None for cell in results.cells):
        lines.append(
            f"`{SPEEDUP}`: time of a step at full precision over that of the row, both measured in turns in "
            "one process; `fake` rows have none."
        )
    if any(cost(cell, column) is not None for cell in results.cells for column in COUNTED_COLUMNS):
        lines.append(
            "`weight_bits`, `act_bits`, `low_bit_macs_pct` and `stored_mb` are counted, not measured: mean "
            "stored bits for a weight of a linear (scales, zero points, branches and layers kept at 16 bits "
            "included), mean bits of the inputs of linears over their multiply-accumulates, percent of all "
            "multiply-accumulates of a step, attention included, with both operands of at most 8 bits, and "
            "MB of all weights."
        )
    return lines
