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
from evalharness.executor import Task, WorkerSpec
from evalharness.executors.ray import RayExecutor

KILLS = int(os.environ.get("KILLS", "1"))
PATIENCE = 400.0 + 20 * KILLS
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


class FewPlaces:
    """Ray's calls on a cluster of two places: further workers never come, and a task of theirs never ends."""

    first = 0  # of the answers that have come

    class exceptions:
        class RayError(Exception):
            pass

    def __init__(self, places: int) -> None:
        self.places, self.made, self.killed, self.waited = places, 0, 0, 0
        self.done: list[str] = []

    def is_initialized(self) -> bool:
        return True

    def init(self) -> None: ...

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": float(self.places)}

    def remote(self, **options: object) -> object:
        def actor(spec: object) -> object:
            self.made += 1
            number, here = self.made, self.made <= self.places

            def run(kind: str, payload: dict[str, str]) -> tuple[object, str, object]:
                return (here and self.works(number), payload["name"], object())

            calls = {name: types.SimpleNamespace(remote=call) for name, call in {
                "run": run, "process": lambda: (here, "", object())}.items()}  # fmt: skip
            return types.SimpleNamespace(**calls)

        return lambda cls: types.SimpleNamespace(remote=actor)

    def wait(
        self, answers: Sequence[tuple[bool, str, object]], *, num_returns: int, timeout: float | None = None
    ) -> tuple[list[object], list[object]]:
        come = [answer for answer in answers if answer[0]]
        if not come:
            assert timeout is not None, "this would wait for ever"
            self.waited += 1
            self.places += 1  # the cluster grows, too late for those that were asked for: a test's way out
            return [], []
        return [come[self.first]], []

    def get(self, answer: tuple[bool, str, object]) -> dict[str, object]:
        self.done.append(answer[1])
        return {"value": {}}

    def kill(self, actor: object) -> None:
        self.killed += 1

    def works(self, number: int) -> object:
        return True

    def nodes(self) -> list[dict[str, bool]]:
        return [{"Alive": True}]


class LostNode(FewPlaces):
    """The node of the second worker is gone; it goes on when another gives up its place."""

    first = -1  # both are there before any task is done

    def works(self, number: int) -> object:
        class GivenUp:
            def __bool__(this) -> bool:
                return self.killed > 0

        return GivenUp() if number == 2 else True

    def nodes(self) -> list[dict[str, bool]]:
        return [{"Alive": True}, {"Alive": False}]


def test_an_idle_worker_gives_up_its_place_for_one_that_lost_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = LostNode(2)
    monkeypatch.setitem(sys.modules, "ray", ray)  # type: ignore[arg-type]
    executor = RayExecutor(WorkerSpec(model="m", protocol="p", device="cpu", skip_layers="none"), 2)
    tasks = [Task(kind="generate", key=str(number), payload={"name": str(number)}) for number in range(5)]
    assert [outcome.failure for outcome in executor.run(tasks, lambda *_: None)] == [None] * 5
    assert sorted(ray.done) == ["0", "1", "2", "3", "4"] and ray.killed == 1


def test_no_task_waits_for_a_worker_without_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight workers asked for, two places: two of them do all."""
    ray = FewPlaces(2)
    monkeypatch.setitem(sys.modules, "ray", ray)  # type: ignore[arg-type]
    executor = RayExecutor(WorkerSpec(model="m", protocol="p", device="cpu", skip_layers="none"), 8)
    tasks = [Task(kind="generate", key=str(number), payload={"name": str(number)}) for number in range(9)]
    outcomes = list(executor.run(tasks, lambda *_: None))
    assert ray.made == 8 and sorted(ray.done) == [str(number) for number in range(9)]
    assert [outcome.failure for outcome in outcomes] == [None] * 9
    assert len(list(executor.run(tasks[:3], lambda *_: None, width=1))) == 3
    assert ray.made == 8 and ray.waited == 0
    executor.close()
    assert ray.killed == 8


def test_a_folder_called_ray_is_not_ray(call: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", types.ModuleType("ray"))
    assert 'pip install "evalharness[ray]"' in call(*RUN, "--executor", "ray").errors[-1]  # type: ignore[attr-defined]


def test_without_ray_it_says_so(call: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    finished = call(*RUN, "--executor", "ray")
    assert finished.code == 2  # type: ignore[attr-defined]
    assert 'pip install "evalharness[ray]"' in finished.errors[-1]  # type: ignore[attr-defined]
