"""Nothing here is left to chance, so that a test which passed once passes again.

All fixtures and tests begin with the global generators at one seed, whatever ran before them; hypothesis
draws the same examples in every run, with no deadline. Tests marked ``cuda`` are skipped where torch sees
no GPU.

``--rounds SECONDS`` is for little time on a GPU: one case of every test, then a second one of each,
and so on, in an order that is drawn but always the same; no test begins after so many seconds.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import random
import sys
import time
from collections import Counter

import pytest

SEED = 0


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
    """Also for processes that share the tests, and for those that tests start."""
    os.environ.setdefault("PYTHONHASHSEED", "0")
    seconds = config.getoption("--rounds")
    if seconds is not None:
        config.pluginmanager.register(Rounds(seconds))
    if importlib.util.find_spec("hypothesis") is not None:
        _same_examples()


def _same_examples() -> None:
    """Of one test the same in all runs; ``--hypothesis-profile default`` looks for others.

    Where processes share the cores, how long an example or its drawing took says nothing. Hypothesis also
    draws numbers and words that it finds in the modules imported so far, hence by the tests that ran before:
    it is kept from looking, by a name that another version may not have: ``test_chance.py`` would tell.
    """
    from hypothesis import HealthCheck, settings
    from hypothesis.internal.conjecture import providers

    none_found = getattr(providers, "_local_constants", None)
    if none_found is not None:
        providers._get_local_constants = lambda: none_found
    slow = [HealthCheck.too_slow]
    settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=slow)
    settings.load_profile("same")


def seed_all() -> None:
    """The global generators of libraries that are imported; by then, those of all collected tests are."""
    random.seed(SEED)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(SEED)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(SEED)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup() -> None:
    """Each fixture for itself: that of a session is made in whichever test wants it first."""
    seed_all()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    seed_all()


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
