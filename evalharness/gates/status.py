"""What a check says: a status for each gate and row, and one for all."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from evalharness.compare.recipes import Change

__all__ = ["CheckReport", "Status", "Verdict"]


class Status(StrEnum):
    """Of one gate and of the whole check; ``exit_code`` is for CI."""

    PASS = "PASS"  # noqa: S105 - no password
    REGRESSION = "REGRESSION"
    RECIPE_MISMATCH = "RECIPE_MISMATCH"
    INCOMPLETE = "INCOMPLETE"

    @property
    def exit_code(self) -> int:
        """0, 1, 3 and 4; 2 is a mistake of the caller, as for every verb."""
        return {"PASS": 0, "REGRESSION": 1, "RECIPE_MISMATCH": 3, "INCOMPLETE": 4}[self.value]


_WORST_FIRST = (Status.RECIPE_MISMATCH, Status.REGRESSION, Status.INCOMPLETE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One gate on one row.

    Attributes:
        run, reference: the two values in the unit of the tables; None where they cannot be had.
        p: one-sided, of a drop, corrected by Holm; None for costs, and without a significance level.
        reason: one line that says why.
    """

    row: str
    metric: str
    status: Status
    reason: str
    run: float | None = None
    reference: float | None = None
    p: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """All verdicts; ``notes`` are what differs without being judged."""

    run: str
    reference: str
    label: str
    verdicts: list[Verdict]
    recipe: list[Change]
    notes: list[str]

    @property
    def status(self) -> Status:
        found = {verdict.status for verdict in self.verdicts}
        return next((status for status in _WORST_FIRST if status in found), Status.PASS)
