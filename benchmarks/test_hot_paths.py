"""pytest-benchmark over the hot paths: ``python -m pytest benchmarks/test_hot_paths.py --benchmark-only``."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.hot_paths import HOT_PATHS


@pytest.mark.parametrize("name", HOT_PATHS)
def test_hot_path(benchmark: Any, name: str) -> None:
    """A few rounds of each."""
    action = HOT_PATHS[name]()
    assert benchmark.pedantic(action, rounds=5, iterations=1, warmup_rounds=1) is not None
