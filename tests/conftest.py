"""Tests marked ``cuda`` are skipped where torch sees no GPU; no example of hypothesis has a deadline.

``--rounds SECONDS`` is for little time on a GPU: one case of every test, then a second one of each,
and so on, in an order that is drawn but always the same; no test begins after so many seconds.
"""

from __future__ import annotations

import gc
import importlib.util
import random
import time
from collections import Counter

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "cases of all tests in turns; none begins after so many seconds"
    parser.addoption("--rounds", type=float, metavar="SECONDS", help=text)


class Rounds:
    """Ends a session that was given ``--rounds`` in time, so that it still says what failed."""

    session: pytest.Session

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self.session = session

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = in_rounds(items)

    def pytest_runtest_logfinish(self) -> None:
        if time.monotonic() > self._end:
            self.session.shouldstop = "the time of --rounds is over"


def in_rounds(items: list[pytest.Item]) -> list[pytest.Item]:
    """The cases of each test in an order of their own, and of all tests in turns."""
    shuffled = sorted(items, key=lambda item: random.Random(item.nodeid).random())
    seen: Counter[str] = Counter()
    turn = {}
    for item in shuffled:
        name = item.nodeid.partition("[")[0]
        turn[item.nodeid] = seen[name]
        seen[name] += 1
    return sorted(items, key=lambda item: turn[item.nodeid])


def pytest_configure(config: pytest.Config) -> None:
    """Where processes share the cores, how long an example or its drawing took says nothing."""
    seconds = config.getoption("--rounds")
    if seconds is not None:
        config.pluginmanager.register(Rounds(seconds))
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
