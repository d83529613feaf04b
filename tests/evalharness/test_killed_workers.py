"""Workers that die at random, under every executor: nothing is lost, and nothing finished is done twice.

``KILLS=20 pytest tests/evalharness/test_killed_workers.py`` kills more of them.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from benchmarks.engines import TOY as RUN
from benchmarks.engines import disturbed, done_twice, environment, has_ray, in_peace, results_of

KILLS = int(os.environ.get("KILLS", "1"))
PATIENCE = 120.0 + 20 * KILLS
ENGINES = [
    "local",
    "torchrun",
    pytest.param("ray", marks=pytest.mark.skipif(not has_ray(), reason="Ray is not installed")),
]


@pytest.fixture(scope="module")
def undisturbed(toy_site: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return in_peace(tmp_path_factory.mktemp("undisturbed"), RUN, environment(toy_site))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_killed_at_random(engine: str, toy_site: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    found = disturbed(engine, RUN, tmp_path, environment(toy_site), KILLS, PATIENCE)
    assert found["killed"] == KILLS
    assert results_of(tmp_path / "out") == undisturbed
    assert list((tmp_path / "out").glob("cells/*/samples.jsonl")) and not done_twice(tmp_path / "out")


def test_what_was_done_twice_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "cells" / "rtn-w3a3-s0"
    folder.mkdir(parents=True)
    lines = [("a-0", "ok"), ("a-1", "error"), ("a-1", "ok"), ("a-0", "ok")]
    text = "".join(f'{{"sample": "{sample}", "status": "{status}"}}\n' for sample, status in lines)
    (folder / "samples.jsonl").write_text(text)
    assert done_twice(tmp_path) == ["rtn-w3a3-s0 a-0"]


def test_outside_of_torchrun_it_says_so(call: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    finished = call(*RUN, "--executor", "torchrun")
    errors: Sequence[str] = finished.errors  # type: ignore[attr-defined]
    assert finished.code == 2  # type: ignore[attr-defined]
    assert "was not started by torchrun" in errors[-1]


def test_a_cluster_needs_a_number(call: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    finished = call(*RUN, "--executor", "ray")
    assert finished.code == 2  # type: ignore[attr-defined]
    assert "with --workers N" in finished.errors[-1]  # type: ignore[attr-defined]


def test_a_cluster_that_does_not_start(call: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    ray = types.SimpleNamespace(is_initialized=lambda: False)

    def init(**options: object) -> None:
        raise RuntimeError("The current node timed out\nduring startup.")

    ray.init = init
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    finished = call(*RUN, "--executor", "ray")
    assert finished.code == 2  # type: ignore[attr-defined]
    line = finished.errors[-1]  # type: ignore[attr-defined]
    assert "no cluster on this machine: RuntimeError: The current node timed out during startup." in line


def test_without_ray_it_says_so(call: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    finished = call(*RUN, "--executor", "ray")
    assert finished.code == 2  # type: ignore[attr-defined]
    assert 'pip install "evalharness[ray]"' in finished.errors[-1]  # type: ignore[attr-defined]
