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
from evalharness.errors import UserError
from evalharness.executor import Failure, Task, WorkerSpec
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
                "run": run, "ready": lambda kind: (here, "", object())}.items()}  # fmt: skip
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
        if not answer[1]:
            return {}  # ready
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


class BadNode(FewPlaces):
    """Workers are told by their numbers: those that never can work, and those that cannot after a task."""

    def __init__(self, never: Sequence[int], later: Sequence[int], dies: Sequence[int] = ()) -> None:
        super().__init__(99)
        self.never, self.later, self.dies = never, later, dies
        self.tried: list[tuple[int, str]] = []

    def remote(self, **options: object) -> object:
        def actor(spec: object) -> object:
            self.made += 1
            number = self.made

            def run(kind: str, payload: dict[str, str]) -> tuple[object, str, object]:
                self.tried.append((number, payload["name"]))
                return (True, payload["name"], number)

            ready = types.SimpleNamespace(remote=lambda kind: (True, "", number))
            return types.SimpleNamespace(ready=ready, run=types.SimpleNamespace(remote=run))

        return lambda cls: types.SimpleNamespace(remote=actor)

    def get(self, answer: tuple[bool, str, object]) -> dict[str, object]:
        _, name, number = answer
        if not name:
            return {"failure": "user", "error": "no weights here"} if number in self.never else {}
        if number in self.dies:
            error = self.exceptions.RayError("its constructor raised")
            error.actor_init_failed = True  # type: ignore[attr-defined]
            raise error
        if number in self.later and len([mine for mine, _ in self.tried if mine == number]) > 1:
            return {"unready": {"failure": "user", "error": "no weights here now"}}
        self.done.append(name)
        return {"value": {}}


def run_on(ray: BadNode, workers: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of ten tasks, as they ended."""
    monkeypatch.setitem(sys.modules, "ray", ray)  # type: ignore[arg-type]
    executor = RayExecutor(WorkerSpec(model="m", protocol="p", device="cpu", skip_layers="none"), workers)
    tasks = [Task(kind="generate", key=str(number), payload={"name": str(number)}) for number in range(10)]
    outcomes = list(executor.run(tasks, lambda *_: None))
    assert [outcome.failure for outcome in outcomes] == [None] * 10
    return sorted(outcome.task.key for outcome in outcomes)


def test_a_worker_that_cannot_work_gets_no_task(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first is put elsewhere twice in vain, and given up; the second does all."""
    ray = BadNode(never=(1, 3, 4), later=())
    ray.first = -1  # whoever was asked last answers first
    assert run_on(ray, 2, monkeypatch) == [str(number) for number in range(10)]
    assert {number for number, _ in ray.tried} == {2} and ray.made == 4 and ray.killed == 3
    assert "could not be started 3 times and is given up: no weights here\n" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["later", "dies"])
def test_a_task_of_a_worker_that_can_work_no_more_is_done_by_another(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = BadNode(never=(), later=(1,) if how == "later" else (), dies=(1,) if how == "dies" else ())
    assert run_on(ray, 1, monkeypatch) == [str(number) for number in range(10)]
    assert sorted(ray.done) == [str(number) for number in range(10)], "each once"
    again = [name for number, name in ray.tried if number == 1][-1]
    assert (2, again) in ray.tried and ray.made == 2 and ray.killed == 1


def test_without_any_worker_the_run_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = BadNode(never=range(99), later=())
    with pytest.raises(UserError, match=r"^--executor ray: no worker could be started: no weights here$"):
        run_on(ray, 2, monkeypatch)
    assert ray.made == ray.killed == 2 * 3 and not ray.tried


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


def refusing(folder: Path, kept: str) -> WorkerSpec:
    """Workers that only start where ``kept`` holds: of ``number``, how many have tried."""
    tries, plugin = folder / "tries", folder / "refusing.py"
    tries.mkdir()
    plugin.write_text(
        "import itertools, pathlib\n"
        "for number in itertools.count(1):\n"
        "    try:\n"
        f"        (pathlib.Path({str(tries)!r}) / str(number)).touch(exist_ok=False)\n"
        "        break\n"
        "    except FileExistsError:\n"
        "        pass\n"
        f"if not ({kept}):\n"
        "    raise OSError('no weights on this node')\n"
        "PLUGINS = {'methods': {}}\n"
    )
    return WorkerSpec(model="m", protocol="p", device="cpu", skip_layers="none", plugin_files=(str(plugin),))


def unknown_tasks(count: int) -> list[Task]:
    """A worker that can start answers each at once: there is no such protocol."""
    return [Task(kind="score", key=str(number), payload={"no": "handler"}) for number in range(count)]


@pytest.mark.slow
@pytest.mark.skipif(not has_ray(), reason="Ray is not installed")
@pytest.mark.parametrize(("kept", "given_up"), [("number == 1", 1), ("False", 2)])
def test_workers_that_cannot_start(
    kept: str,
    given_up: int,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of two workers with three tries each: all is done by those that start, or it ends in one line."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    executor = RayExecutor(refusing(tmp_path, kept), 2)
    outcomes = []
    try:
        if given_up == 2:
            with pytest.raises(UserError, match=r"^--executor ray: no worker could be started: .*no weights"):
                list(executor.run(unknown_tasks(5), lambda *_: None))
            assert len(list((tmp_path / "tries").iterdir())) == 2 * 3
        else:
            outcomes = list(executor.run(unknown_tasks(40), lambda *_: None))
    finally:
        executor.close()
    told = capfd.readouterr().err.count("could not be started 3 times and is given up")
    assert told <= given_up, "the other may have done all before"
    assert len({outcome.task.key for outcome in outcomes}) == len(outcomes) == (0 if given_up == 2 else 40)
    assert {(outcome.failure, outcome.error[:20]) for outcome in outcomes} <= {
        (Failure.USER, "unknown protocol 'p'")
    }


def test_a_folder_called_ray_is_not_ray(call: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", types.ModuleType("ray"))
    assert 'pip install "evalharness[ray]"' in call(*RUN, "--executor", "ray").errors[-1]  # type: ignore[attr-defined]


def test_without_ray_it_says_so(call: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    finished = call(*RUN, "--executor", "ray")
    assert finished.code == 2  # type: ignore[attr-defined]
    assert 'pip install "evalharness[ray]"' in finished.errors[-1]  # type: ignore[attr-defined]
