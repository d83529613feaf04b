"""Versions of installed packages, read from their metadata without importing them."""

from __future__ import annotations

import importlib.metadata

__all__ = ["package_version"]


def package_version(name: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
