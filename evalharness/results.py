"""From the scores of all cells to ``results.json`` and back. Imports no torch and no pandas."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from evalharness.api import Total
from evalharness.columns import Columns
from evalharness.comparison import differences, dimension_estimate, joint_estimate, pool
from evalharness.errors import UserError
from evalharness.linesums import KEY, fits, with_sum
from evalharness.redaction import redact
from evalharness.result_reading import read_document
from evalharness.result_schema import (
    READABLE_VERSIONS,
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
from evalharness.scoretable import CHUNK, ScoreTable
from evalharness.stats import Resampler
from evalharness.store import atomic_write_pieces
from evalharness.totals import total_estimates

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

MAX_LOG_RECORDS = 400
_SCALE = (0.0, 1.0)
_WIDEST = (-1.0, 1.0)  # of files from before ranges were written, which may hold a cosine's
_ROUNDING = 1e-3  # what a score may pass its range by


@dataclass(frozen=True, kw_only=True)
class CellRecord:
    """What the earlier stages know about one cell.

    Attributes:
        source: where the quantized weights came from.
        execution: what ran: ``real`` packed weights, ``emulated``, or ``fake`` float
            quantization; ``unknown`` for videos made elsewhere.
        n_expected: dimension -> videos that the whole protocol scores in it (a ``--limit`` does not
            lower it: a limited run is a partial run).
        scores: dimension -> rows; a skipped or failed video has no row.
        profile: keys of ``result_schema.Profile``.
        train_minutes: None when nothing was trained in this run.
        train_log: records of ``train.jsonl``.
        train_log_damage: what is wrong with that file, in words.
        method: name of the row: the method's, or a variant's label.
        method_config: the method's options as JSON values.
        variant_of: of a variant, its method.
        options: those of ``method_config`` that were asked for.
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
    train_log_damage: str | None = None
    method_config: Mapping[str, Any] = field(default_factory=dict)
    variant_of: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


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
    totals: Sequence[Total] = (),
    ranges: Mapping[str, tuple[float, float]] | None = None,
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
        resampler: how to make intervals; ``skew-t`` at 95 % by default, with ``percent`` within ``ranges``.
        totals: the protocol's own, over these dimensions.
        ranges: dimension -> least and largest score that its metric declares, where that is not 0..1.

    Raises:
        ValueError: a total over a dimension that is not there, a cell of another protocol, two cells of
            one id, unknown dimensions, a repeated or non-finite score, or more scores than videos.
    """
    own = {name: ends for name, ends in (ranges or {}).items() if ends != _SCALE}
    resampler = resampler or Resampler(kind="skew-t", bounds=_SCALE if percent else None, ranges=own)
    records = sorted(cells, key=_order)
    _check(records, protocol, dimensions)
    _check_totals(totals, dimensions)
    results = [_cell(record, dimensions, resampler, totals) for record in records]
    return Results(
        protocol=protocol,
        label=label,
        dimensions=list(dimensions),
        percent=percent,
        totals=[total.name for total in totals],
        ranges=own,
        bootstrap=BootstrapInfo(
            kind=resampler.kind,
            resamples=resampler.resamples,
            confidence=resampler.confidence,
            seed=resampler.seed,
        ),
        prompts=dict(prompts or {}),
        manifest=redact(manifest),
        cells=results,
        differences=differences(results, resampler),
        pooled=pool(results, resampler, totals),
    )


def write_results(results: Results, path: Path) -> None:
    """Write ``results.json`` atomically, one line for each cell, with a checksum as the last key."""
    atomic_write_pieces(path, with_sum(_dump(results)))


def read_results(path: Path) -> Results:
    """Read what ``write_results`` wrote.

    Raises:
        UserError: the file is missing, not JSON, of another schema version, malformed, or not as it was
            written.
    """
    try:
        data, is_whole = _document(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `evalharness run` writes it at its end") from None
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({error})") from None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version not in READABLE_VERSIONS or isinstance(version, bool):
        readable = ", ".join(str(each) for each in READABLE_VERSIONS)
        raise UserError(
            f"{path}: schema version {repr(version)[:80]}, this evalharness reads {readable}; "
            "use the version of evalharness that wrote it, or run `evalharness run` again"
        )
    if not is_whole:
        raise UserError(
            f"{path}: not as it was written, by its checksum; `evalharness run` and `evalharness score` make "
            f"it again from the records of its run; without its {KEY!r} it is read as it is"
        )
    try:
        results = Results.model_validate(_upgraded(data))
        _check_read(results)
        return results
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {where}: {first['msg']} ({error.error_count()} problems)") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def _document(path: Path) -> tuple[Any, bool]:
    """What is in a file, and whether that fits its sum, if it has one; its text is not kept."""
    text = path.read_text(encoding="utf-8")
    data = read_document(text)
    return data, not isinstance(data, dict) or KEY not in data or fits(text)


def _check_read(results: Results) -> None:
    """What a schema cannot say: each cell and each video counts once, and scores lie where scores can."""
    ids = [cell.id for cell in results.cells]
    if len(set(ids)) < len(ids):
        raise UserError(f"cell {next(name for name in ids if ids.count(name) > 1)[:80]}: given twice")
    _check_named(results, set(ids))
    for cell in results.cells:
        for dimension, rows in cell.scores.items():
            table, where = ScoreTable.of(rows), f"cell {cell.id[:80]}, {dimension[:80]}"
            _check_table(table, where)
            low, high = results.ranges.get(dimension, _WIDEST)
            outside = (table.value < low - _ROUNDING) | (table.value > high + _ROUNDING)
            if results.percent and outside.any():
                raise UserError(f"{where}: a score is not within {low:g} to {high:g}")


def _check_named(results: Results, ids: set[str]) -> None:
    """What one part of the file names, the others have."""
    named = [(f"differences.{n}", {each.cell, each.reference}) for n, each in enumerate(results.differences)]
    named += [(f"pooled.{n}", set(each.cells)) for n, each in enumerate(results.pooled)]
    for where, cells in named:
        if lost := sorted(cells - ids):
            raise UserError(f"{where}: it names cell {repr(lost[0])[:80]}, which is not there")
    parts: list[tuple[str, Mapping[str, Any]]] = []
    for n, cell in enumerate(results.cells):
        parts += [(f"cells.{n}.dimensions", cell.dimensions), (f"cells.{n}.scores", cell.scores)]
    parts += [(f"differences.{n}.dimensions", each.dimensions) for n, each in enumerate(results.differences)]
    parts += [(f"pooled.{n}.dimensions", each.dimensions) for n, each in enumerate(results.pooled)]
    for where, part in parts:
        if lost := [name for name in results.dimensions if name not in part]:
            raise UserError(f"{where}: dimension {repr(lost[0])[:80]} is missing")


def _upgraded(data: Mapping[str, Any]) -> dict[str, Any]:
    """The same results in the present schema; what an older one did not say keeps its old meaning."""
    upgraded = {key: value for key, value in data.items() if key != KEY} | {"schema_version": SCHEMA_VERSION}
    if data["schema_version"] == 1 and isinstance(data.get("bootstrap"), Mapping):
        upgraded["bootstrap"] = {**data["bootstrap"], "kind": "percentile"}
    return upgraded


def _dump(results: Results) -> Iterator[str]:
    """JSON that a person can page through: a line for each key, and for each item of a list; not its end."""
    start = "{\n"
    for key, value in results:
        yield f"{start} {json.dumps(key)}: "
        start = ",\n"
        if key == "cells" and value:
            yield from _lines(_dump_cell(cell) for cell in value)
            continue
        plain = results.model_dump(mode="json", include={key})[key]
        if isinstance(plain, list) and plain:
            yield from _lines([json.dumps(item, allow_nan=False)] for item in plain)
        else:
            yield json.dumps(plain, allow_nan=False)


def _lines(items: Iterable[Iterable[str]]) -> Iterator[str]:
    start = "[\n  "
    for item in items:
        yield start
        yield from item
        start = ",\n  "
    yield "\n ]"


def _dump_cell(cell: CellResult) -> Iterator[str]:
    """Its scores come last and in parts, so that no more than one part is text at a time."""
    yield json.dumps(cell.model_dump(mode="json", exclude={"scores"}), allow_nan=False)[:-1]
    yield ', "scores": {'
    start = ""
    for name, rows in cell.scores.items():
        yield f"{start}{json.dumps(name)}: ["
        start, comma = ", ", ""
        table = ScoreTable.of(rows)
        for first in range(0, len(table), CHUNK):
            yield comma + json.dumps(list(table.chunk(first)), allow_nan=False)[1:-1]
            comma = ", "
        yield "]"
    yield "}}"


def _order(record: CellRecord) -> tuple[Any, ...]:
    """Reference first, then from many bits to few, then by name and seed."""
    is_reference = record.source == "reference"
    return (record.model, not is_reference, -record.w_bits, -record.a_bits, record.method, record.seed)


def _check(records: Sequence[CellRecord], protocol: str, dimensions: Sequence[str]) -> None:
    seen: set[str] = set()
    for record in records:
        if record.protocol != protocol:
            raise ValueError(f"cell {record.cell_id}: protocol {record.protocol!r}, expected {protocol!r}")
        if record.cell_id in seen:
            raise ValueError(f"cell {record.cell_id}: given twice")
        seen.add(record.cell_id)
        unknown = sorted(set(record.scores) - set(dimensions))
        missing = sorted(set(dimensions) - set(record.n_expected))
        if unknown or missing:
            raise ValueError(
                f"cell {record.cell_id}: scores of unknown dimensions {unknown}, "
                f"n_expected lacks {missing}; the protocol has {list(dimensions)}"
            )
        for dimension in dimensions:
            _check_scores(record, dimension)


def _check_totals(totals: Sequence[Total], dimensions: Sequence[str]) -> None:
    for total in totals:
        if unknown := sorted(set(total.terms) - set(dimensions)):
            raise ValueError(f"total {total.name}: no dimension {unknown}; there are {list(dimensions)}")


def _check_scores(record: CellRecord, dimension: str) -> None:
    table = ScoreTable.of(record.scores.get(dimension, ()))
    where = f"cell {record.cell_id}, {dimension}"
    if len(table) > record.n_expected[dimension]:
        raise ValueError(f"{where}: {len(table)} scores, {record.n_expected[dimension]} expected")
    _check_table(table, where)


def _check_table(table: ScoreTable, where: str) -> None:
    if table.repeats():
        raise ValueError(f"{where}: a video is scored twice")
    if not np.isfinite(table.value).all():
        raise ValueError(f"{where}: a score is not a finite number; leave it out instead")


def _cell(
    record: CellRecord, dimensions: Sequence[str], resampler: Resampler, totals: Sequence[Total]
) -> CellResult:
    scores = {d: ScoreTable.of(record.scores.get(d, ())).ordered() for d in dimensions}
    keyed = {d: Columns.of([(record.seed, scores[d])]) for d in dimensions}
    coverage = _coverage(record, dimensions)
    estimates = {d: dimension_estimate(keyed[d], record.n_expected[d], resampler.of(d)) for d in dimensions}
    return CellResult(
        id=record.cell_id,
        model=record.model,
        protocol=record.protocol,
        method=record.method,
        w_bits=record.w_bits,
        a_bits=record.a_bits,
        seed=record.seed,
        source=record.source,
        execution=record.execution,
        n_videos_expected=record.n_videos_expected,
        n_videos_ok=record.n_videos_ok,
        n_failed=record.n_failed,
        coverage=coverage,
        dimensions=estimates,
        mean=joint_estimate(keyed, resampler) if coverage == 1.0 else None,
        totals=total_estimates(totals, keyed, estimates, resampler),
        profile=None if record.profile is None else Profile.model_validate(_finite(record.profile)),
        train_minutes=record.train_minutes,
        train_log=_thin(record.train_log),
        train_log_damage=record.train_log_damage,
        method_config=redact(record.method_config),
        variant_of=record.variant_of,
        options=redact(record.options),
        scores=scores,
    )


def _coverage(record: CellRecord, dimensions: Sequence[str]) -> float:
    """Share of the expected scores that are there; below 1 also if only a video is missing."""
    expected = sum(record.n_expected[d] for d in dimensions)
    scored = sum(len(record.scores.get(d, ())) for d in dimensions) / expected if expected else 0.0
    made = record.n_videos_ok / record.n_videos_expected if record.n_videos_expected else 0.0
    return min(scored, made)


def _thin(log: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """At most 400 evenly spread records, the last one kept; the whole log stays in ``train.jsonl``."""
    stride = math.ceil(len(log) / MAX_LOG_RECORDS) or 1
    return [_finite(record) for record in log[::-stride][::-1]]


def _finite(record: Mapping[str, Any]) -> dict[str, Any]:
    """A flat record with None for nan and infinity, which JSON lacks."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
