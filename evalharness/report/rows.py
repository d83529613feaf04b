"""The leaderboard's rows and how a number is written; every table and page is made from these."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from evalharness.result_schema import CellResult, DimensionEstimate, Estimate, PooledResult, Results

Value = str | int | float | None

COUNTED_COLUMNS = ("weight_bits", "act_bits", "low_bit_macs_pct", "stored_mb")
COST_COLUMNS = ("step_ms", "peak_mem_mb", "weights_mb", *COUNTED_COLUMNS)
SPEEDUP = "step_speedup"
AGAINST_REFERENCE = "against full precision"
_CELL_COLUMNS = ("model", "protocol", "method", "bits_w", "bits_a", "seed")


def leaderboard_columns(results: Results) -> list[str]:
    """Names and order of ``leaderboard.csv``."""
    measured = [
        f"{name}{end}"
        for name in (*results.dimensions, "mean", *total_columns(results))
        for end in ("", "_lo", "_hi")
    ]
    costs = cost_columns(results)
    return [*_CELL_COLUMNS, "source", "execution", "coverage", *measured, *costs, "train_minutes"]


def cost_columns(results: Results) -> list[str]:
    """``COST_COLUMNS``, and behind the step's time its speed-up, where a row has one.

    A ``fake`` row has none, so that a run of such rows has no such column.
    """
    told = any(cost(cell, SPEEDUP) is not None for cell in results.cells)
    first, *others = COST_COLUMNS
    return [first, *([SPEEDUP] if told else []), *others]


def total_columns(results: Results) -> list[str]:
    """Columns of the protocol's totals; none where it declares none."""
    return [f"{name}_score" for name in results.totals]


def score_columns() -> list[str]:
    """Names and order of ``scores.csv``."""
    return ["cell", *_CELL_COLUMNS, "prompt_id", "sample", "dimension", "value"]


def bits_label(w_bits: int, a_bits: int) -> str:
    """``W3A3``, ``BF16`` for full precision, or ``unknown`` (0, 0)."""
    if not w_bits and not a_bits:
        return "unknown"
    return "BF16" if w_bits >= 16 and a_bits >= 16 else f"W{w_bits}A{a_bits}"


def scale_of(results: Results) -> float:
    """What a raw score is multiplied by before it is shown."""
    return 100.0 if results.percent else 1.0


def number(value: float | None, digits: int) -> str:
    """Fixed number of decimals, never ``-0.0``; a dash for no value."""
    if value is None:
        return "-"
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0.0 else text


def estimate_text(estimate: Estimate | None, results: Results, *, signed: bool = False) -> str:
    """``71.2 [69.8, 72.5]`` in percent, ``0.712 [0.698, 0.725]`` otherwise; a dash for none."""
    if estimate is None or estimate.value is None:
        return "-"
    scale, digits = scale_of(results), 1 if results.percent else 3
    value = number(estimate.value * scale, digits)
    if signed and not value.startswith("-"):
        value = f"+{value}"
    if estimate.lo is None or estimate.hi is None:
        return value
    return f"{value} [{number(estimate.lo * scale, digits)}, {number(estimate.hi * scale, digits)}]"


def dimension_text(estimate: DimensionEstimate, results: Results) -> str:
    """The estimate, with how many videos are behind it where some are missing."""
    text = estimate_text(estimate, results)
    return text if estimate.n == estimate.expected else f"{text} ({estimate.n}/{estimate.expected})"


def seed_means_text(row: PooledResult, results: Results) -> str:
    """``0: 71.3, 1: 70.9``: how far seeds differ."""
    digits = 1 if results.percent else 3
    shown = (None if mean is None else mean * scale_of(results) for mean in row.seed_means)
    return ", ".join(f"{seed}: {number(mean, digits)}" for seed, mean in zip(row.seeds, shown, strict=True))


def minus_reference(results: Results) -> dict[str, Estimate | None]:
    """Cell id -> mean difference from the reference of the same seed."""
    return {difference.cell: difference.mean for difference in results.differences}


def coverage_text(coverage: float) -> str:
    """Percent, rounded so that less than everything never reads 100 %."""
    if coverage >= 1.0:
        return "100 %"
    return f"{min(coverage * 100.0, 99.9):.1f} %"


def cost(cell: CellResult, column: str) -> float | None:
    """One of ``cost_columns`` of a cell, None if it was not measured."""
    value: float | None = getattr(cell.profile, column) if cell.profile else None
    return value


def sorted_cells(results: Results) -> list[CellResult]:
    """Reference first, then from many bits to few, the best mean first, partial rows last."""
    return sorted(results.cells, key=lambda cell: (*_order(cell), cell.seed))


def sorted_pooled(results: Results) -> list[PooledResult]:
    """The rows over all seeds, in the order of ``sorted_cells``."""
    return sorted(results.pooled, key=_order)


def _order(row: CellResult | PooledResult) -> tuple[str, bool, int, int, float, str]:
    mean = row.mean.value if row.mean and row.mean.value is not None else float("-inf")
    return (row.model, not row.is_reference, -row.w_bits, -row.a_bits, -mean, row.method)


def leaderboard_rows(results: Results) -> list[dict[str, Value]]:
    """One row a cell, the columns of ``leaderboard.csv``; scores times 100 if ``percent``."""
    return [_row(cell, results) for cell in sorted_cells(results)]


def _row(cell: CellResult, results: Results) -> dict[str, Value]:
    row: dict[str, Value] = {
        **_named(cell),
        "source": cell.source,
        "execution": cell.execution,
        "coverage": cell.coverage,
    }
    for dimension in results.dimensions:
        row.update(_ends(dimension, cell.dimensions[dimension], scale_of(results)))
    row.update(_ends("mean", cell.mean, scale_of(results)))
    for name, column in zip(results.totals, total_columns(results), strict=True):
        row.update(_ends(column, cell.totals.get(name), scale_of(results)))
    row.update({column: cost(cell, column) for column in cost_columns(results)})
    row["train_minutes"] = cell.train_minutes
    return row


def _named(cell: CellResult) -> dict[str, Value]:
    """The columns that tell which cell it is."""
    return {
        "model": cell.model,
        "protocol": cell.protocol,
        "method": cell.method,
        "bits_w": cell.w_bits,
        "bits_a": cell.a_bits,
        "seed": cell.seed,
    }


def _ends(name: str, estimate: Estimate | None, scale: float) -> dict[str, Value]:
    parts = (estimate.value, estimate.lo, estimate.hi) if estimate else (None, None, None)
    names = (name, f"{name}_lo", f"{name}_hi")
    return {key: None if part is None else part * scale for key, part in zip(names, parts, strict=True)}


def score_rows(results: Results) -> Iterator[list[Value]]:
    """Long form, the columns of ``scores.csv``; ``value`` raw, as the metric returned it."""
    for cell in sorted_cells(results):
        named = [cell.id, *_named(cell).values()]
        for dimension in results.dimensions:
            for prompt, sample, value in cell.scores[dimension]:
                yield [*named, prompt, sample, dimension, value]


def middle_half(values: Sequence[float]) -> float:
    """The interquartile range: how far methods lie apart, whatever a single one of many does."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low
