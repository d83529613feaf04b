"""From the scores of all cells to ``results.json``. Imports no torch and no pandas."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from evalharness.result_schema import (
    SCHEMA_VERSION,
    BootstrapInfo,
    CellResult,
    Difference,
    DimensionEstimate,
    Estimate,
    Execution,
    PooledResult,
    Profile,
    Results,
    ScoreRow,
    Source,
)
from evalharness.stats import Interval, Key, Resampler, bootstrap_ci, joint_mean
from evalharness.stats import paired_difference, paired_joint_difference
from evalharness.store import atomic_write_text

__all__ = [
    "CellRecord",
    "CellResult",
    "Difference",
    "DimensionEstimate",
    "Estimate",
    "PooledResult",
    "Profile",
    "Results",
    "ScoreRow",
    "build_results",
    "read_results",
    "write_results",
]

RESULTS_FILE = "results.json"
MAX_LOG_RECORDS = 400

CellScores = Mapping[str, Mapping[Key, float]]


@dataclass(frozen=True, kw_only=True)
class CellRecord:
    """What the earlier stages know about one cell.

    Attributes:
        source: where the quantized weights came from.
        execution: what ran: ``real`` packed weights, ``emulated``, or ``fake`` float quantization.
        n_expected: dimension -> videos that the whole protocol scores in it (a ``--limit`` does not
            lower it: a limited run is a partial run).
        scores: dimension -> rows; a skipped or failed video has no row.
        profile: keys of ``result_schema.Profile``.
        train_minutes: None when nothing was trained in this run.
        train_log: records of ``train.jsonl``.
        method_config: the method's options as JSON values.
    """

    cell_id: str
    model: str
    protocol: str
    method: str
    w_bits: int
    a_bits: int
    seed: int
    source: Source
    execution: Execution
    n_expected: Mapping[str, int]
    scores: Mapping[str, Sequence[ScoreRow]]
    n_videos_expected: int
    n_videos_ok: int
    n_failed: int
    profile: Mapping[str, Any] | None = None
    train_minutes: float | None = None
    train_log: Sequence[Mapping[str, Any]] = ()
    method_config: Mapping[str, Any] = field(default_factory=dict)


def build_results(
    cells: Iterable[CellRecord],
    *,
    protocol: str,
    dimensions: Sequence[str],
    percent: bool,
    label: str,
    manifest: Mapping[str, Any],
    prompts: Mapping[str, str] | None = None,
    resampler: Resampler | None = None,
) -> Results:
    """Estimates, intervals, differences from the reference and pooled rows of all cells.

    Args:
        cells: any order; the results don't depend on it.
        protocol: name of the protocol that all cells ran.
        dimensions: names in the order of the table; every cell must state ``n_expected`` of each.
        percent: whether tables show scores times 100.
        label: what these scores are, e.g. ``tinyworld scores: VBench's dimension names, not VBench
            scores``.
        manifest: JSON values, stored as they are.
        prompts: prompt id -> text, for the report.
        resampler: how to bootstrap; 2000 resamples at 95 % by default.

    Raises:
        ValueError: a cell of another protocol, two cells of one id, unknown dimensions, a repeated
            or non-finite score, or more scores than videos.
    """
    resampler = resampler or Resampler()
    records = sorted(cells, key=_order)
    _check(records, protocol, dimensions)
    keyed = {record.cell_id: _keyed(record, dimensions) for record in records}
    results = [_cell(record, keyed[record.cell_id], resampler) for record in records]
    return Results(
        protocol=protocol,
        label=label,
        dimensions=list(dimensions),
        percent=percent,
        bootstrap=BootstrapInfo(
            resamples=resampler.resamples, confidence=resampler.confidence, seed=resampler.seed
        ),
        prompts=dict(prompts or {}),
        manifest=dict(manifest),
        cells=results,
        differences=_all_differences(results, keyed, resampler),
        pooled=_all_pooled(results, keyed, resampler),
    )
