"""What counts as a training that diverged, and so as a result. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping

__all__ = ["is_divergence", "not_finite"]


def is_divergence(failure: BaseException) -> bool:
    """Whether a method says that its loss or its weights left the finite numbers.

    By contract a method raises ``ValueError`` for mistakes too, so it must say which it is: by a class
    called ``Diverged`` or by a message that begins with "training diverged".
    """
    if not isinstance(failure, (ValueError, ArithmeticError)):
        return False
    named = any(each.__name__ == "Diverged" for each in type(failure).__mro__)
    return named or str(failure).startswith("training diverged")


def not_finite(losses: Mapping[str, float]) -> str | None:
    """The same of a model that trained to the end, by its held-out losses; None if all are finite."""
    bad = [f"{name} {value}" for name, value in losses.items() if not math.isfinite(value)]
    return f"training diverged: held-out {', '.join(bad)}" if bad else None
