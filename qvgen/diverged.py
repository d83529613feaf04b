"""The one error for a training whose numbers are no longer finite."""

from __future__ import annotations

__all__ = ["DivergedError"]


class DivergedError(ValueError, FloatingPointError):
    """A result of a recipe, where any other ValueError is a mistake of its user.

    Callers who do not know this library tell it by ``FloatingPointError``.
    """
