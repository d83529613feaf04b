"""Two facts about codes that every implementation of the quantizers shares. No torch here."""

from __future__ import annotations

SCALE_FLOOR = 1e-9


def positive_levels(q_max: int, symmetric: bool) -> int:
    """Steps that a range is divided into: q_max, or 2^(b-1)-1 on each side of zero."""
    return q_max // 2 if symmetric else q_max
