"""Whether a change passes its bounds."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["is_beyond", "named", "share_of"]


def share_of(share: float | None, level: float) -> float | None:
    """A relative bound as an absolute one; None for no bound."""
    return None if share is None else share * abs(level)


def is_beyond(change: float, bounds: Mapping[str, float | None]) -> bool:
    """Whether every given bound is passed; no given bound is never passed."""
    given = [bound for bound in bounds.values() if bound is not None]
    return bool(given) and all(change > bound for bound in given)


def named(bounds: Mapping[str, float | None]) -> str:
    """The given bounds in words."""
    return " and ".join(f"{name} ({bound:.3g})" for name, bound in bounds.items() if bound is not None)
