"""Tests marked ``cuda`` are skipped where torch sees no GPU; no example of hypothesis has a deadline."""

from __future__ import annotations

import gc
import importlib.util

import pytest


def pytest_configure() -> None:
    """Where processes share the cores, how long an example or its drawing took says nothing."""
    if importlib.util.find_spec("hypothesis") is not None:
        from hypothesis import HealthCheck, settings

        slow = [HealthCheck.too_slow]
        settings.register_profile("shared cores", deadline=None, suppress_health_check=slow)
        settings.load_profile("shared cores")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device"))


def pytest_collection_finish() -> None:
    """Modules and tests stay to the end: no collection of garbage needs to walk through them again."""
    gc.collect()
    gc.freeze()
