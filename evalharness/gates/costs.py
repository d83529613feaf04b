"""Gates on times, memory and sizes."""

from __future__ import annotations

import statistics

from evalharness.compare.recipes import changes, hardware
from evalharness.compare.selection import Row, Side
from evalharness.gates.bounds import is_beyond, named, share_of
from evalharness.gates.spec import TIMES, Gate, Gates
from evalharness.gates.status import Status, Verdict
from evalharness.result_schema import CellResult

__all__ = ["judge_cost"]


def judge_cost(gate: Gate, row: Row, ours: Row, run: Side, reference: Side, gates: Gates) -> Verdict:
    """Whether a cost of one row, median over its seeds, stays within the gate's bounds."""
    before, now = (_cost_value(gate, r, side) for r, side in ((row, reference), (ours, run)))
    name = gate.metric + (" / full precision" if gate.over else "")
    if before is None or now is None:
        side = "reference" if before is None else "run"
        return Verdict(
            row=row.name, metric=name, status=Status.INCOMPLETE, reason=f"the {side} did not measure it"
        )
    if gate.metric in TIMES and not gate.over and gates.same_hardware:
        other = [change.key for change in changes(hardware(reference.results), hardware(run.results))]
        if other:
            reason = f"measured on other hardware ({', '.join(other)}); see over and same_hardware"
            return Verdict(row=row.name, metric=name, status=Status.RECIPE_MISMATCH, reason=reason)
    rise = now - before
    bounds = {"max_rise": gate.max_rise, "max_rise_relative": share_of(gate.max_rise_relative, before)}
    change = f"{'up' if rise > 0 else 'down'} by {abs(rise):.3g}"
    change += f" ({100 * rise / before:+.1f} %)" if before else ""
    status, reason = Status.PASS, change
    if is_beyond(rise, bounds):
        status, reason = Status.REGRESSION, f"{change}, beyond {named(bounds)}"
    if gate.max is not None and now > gate.max:
        status, reason = Status.REGRESSION, f"{now:.4g} is above the ceiling of {gate.max:g}"
    return Verdict(row=row.name, metric=name, status=status, reason=reason, run=now, reference=before)


def _cost_value(gate: Gate, row: Row, side: Side) -> float | None:
    """Median over the row's seeds, in which one disturbed measurement does not count."""
    values = []
    for cell in row.cells:
        value = getattr(cell.profile, gate.metric, None)
        if gate.over:
            whole = _full_precision(cell, side)
            divisor = None if whole is None else getattr(whole.profile, gate.metric, None)
            value = None if value is None or not divisor else value / divisor
        if value is None:
            return None
        values.append(float(value))
    return statistics.median(values)


def _full_precision(cell: CellResult, side: Side) -> CellResult | None:
    found = [
        c for c in side.results.cells if c.is_reference and c.model == cell.model and c.seed == cell.seed
    ]
    return found[0] if found else None
