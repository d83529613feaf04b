"""torchrun starts all anew after an error. A user's mistake is not tried again; a loss is."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import engines
from benchmarks.engines import TOY as RUN
from benchmarks.engines import command
from evalharness.errors import UserError
from evalharness.executor import Failure, Outcome, Task
from evalharness.executors import torchrun
from evalharness.executors.group import PeerError, Readiness, tell_failure, told_failure
from evalharness.runner import Summary
from evalharness.runstate import RunState, StageCount

TWICE = [word if word != "99" else "1" for word in command("torchrun", RUN, 2)]


@pytest.fixture
def environment(toy_site: Path) -> dict[str, str]:
    return engines.environment(toy_site)


def finished(
    folder: Path, environment: dict[str, str], *more: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TWICE, *more], cwd=folder, env={**environment, **variables}, capture_output=True, text=True,
        timeout=500, check=False,
    )  # fmt: skip


def begun(folder: Path) -> int:
    lines = (folder / "out" / "events.jsonl").read_text().splitlines()
    return sum(json.loads(line)["event"] == "begin" for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize(("variable", "times"), [("TOY_REFUSE", 1), ("TOY_FAIL", 2)])
def test_a_cell_that_fails(variable: str, times: int, environment: dict[str, str], tmp_path: Path) -> None:
    """By the user's mistake: one attempt. By anything else: as many as torchrun was told to make."""
    done = finished(tmp_path, environment, **{variable: "prepare/toy-round"})
    assert done.returncode != 0
    assert begun(tmp_path) == times
    assert "could not be prepared" in done.stderr
    assert "asked to " in done.stderr


@pytest.mark.slow
def test_a_wrong_option(environment: dict[str, str], tmp_path: Path) -> None:
    """Known before anything runs: each attempt says the same line, and looks at nothing again."""
    log = tmp_path / "log"
    done = finished(
        tmp_path, environment, "--method-options", '{"toy-round": {"shrink": 7}}', TOY_LOG=str(log)
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode != 0
    assert len(lines) == 2 and len(set(lines)) == 1 and "shrink" in lines[0]
    assert not (tmp_path / "out" / "events.jsonl").exists()


class Store:
    """Of the job, as torchrun's lasts."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def set(self, key: str, value: str) -> None:
        self.kept[key] = value.encode()

    def get(self, key: str) -> bytes:
        return self.kept[key]

    def add(self, key: str, amount: int) -> int:
        total = int(self.kept.get(key, b"0")) + amount
        self.kept[key] = str(total).encode()
        return total

    def check(self, keys: list[str]) -> bool:
        return all(key in self.kept for key in keys)

    def delete_key(self, key: str) -> bool:
        return self.kept.pop(key, None) is not None


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store()
    monkeypatch.setattr(torchrun, "_tcp_store", lambda master: store)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    attempt(monkeypatch, 0)
    return store


def attempt(monkeypatch: pytest.MonkeyPatch, number: int, rank: int = 0) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(number))
    monkeypatch.setenv("RANK", str(rank))


def raising(error: Exception) -> tuple[int, bool]:
    raise error


def never() -> tuple[int, bool]:
    raise AssertionError("tried again")


def test_a_mistake_is_remembered_by_all_ranks(job: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no such model"):
        torchrun.once(lambda: raising(UserError("no such model")))
    attempt(monkeypatch, 1)
    with pytest.raises(UserError, match="no such model"):
        torchrun.once(never)
    attempt(monkeypatch, 1, rank=1)
    assert torchrun.once(never) == 2


def test_an_end_that_would_come_again(job: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert torchrun.once(lambda: (1, True)) == 1
    attempt(monkeypatch, 1)
    assert torchrun.once(never) == 1


@pytest.mark.parametrize(
    "error", [RuntimeError("lost"), torchrun.LostRankError("one rank failed"), KeyboardInterrupt()]
)
def test_a_loss_is_tried_again(error: BaseException, job: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(type(error)):
        torchrun.once(lambda: raising(error))  # type: ignore[arg-type]
    attempt(monkeypatch, 1)
    assert torchrun.once(lambda: (1, False)) == 1
    attempt(monkeypatch, 2)
    assert torchrun.once(lambda: (0, True)) == 0


@pytest.mark.parametrize(
    ("failed", "mistakes", "is_final"), [((1, 0), 1, True), ((2, 0), 1, False), ((1, 3), 1, False)]
)
def test_what_is_final(failed: Sequence[int], mistakes: int, is_final: bool) -> None:
    counts = {f"stage {n}": StageCount(failed=count) for n, count in enumerate(failed)}
    assert Summary(counts=counts, seconds=1.0, mistakes=mistakes).is_final == is_final


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ValueError("no clip"), UserError, "no clip"),
        (OSError(28, "No space left on device"), UserError, "No space left on device"),
        (KeyError("w"), PeerError, "KeyError: 'w'"),
    ],
)
def test_one_rank_is_not_ready(error: Exception, kind: type[Exception], text: str) -> None:
    store = Store()
    for number in (0, 1, 2):
        Readiness(store, number, 3).tell(error if number == 1 else None)
    with pytest.raises(kind, match=text):
        Readiness(store, 0, 3).wait()


def test_the_first_answer_of_a_failed_group_counts() -> None:
    """Those of lower ranks that lost it afterwards are not the cause."""
    executor = object.__new__(torchrun.TorchrunExecutor)
    executor._groups, executor._others, executor._sent = 0, [1], {1: 0}
    executor._store = Store()
    order = iter([(1, "NaN", Failure.USER), (0, "connection closed", Failure.ERROR)])

    def collect(running: dict[int, Task], on_event: object, done: list[tuple[int, Outcome]]) -> None:
        lane, text, failure = next(order)
        done.append((lane, Outcome(task=running[lane], failure=failure, error=text)))

    executor._collect = collect  # type: ignore[method-assign, assignment]
    executor._run_here = lambda *_: None  # type: ignore[method-assign, assignment]
    task = Task(kind="prepare", key="cell", payload={})
    outcome = executor._run_together(task, lambda task, event: None)
    assert (outcome.error, outcome.failure, outcome.task) == ("NaN", Failure.USER, task)


def test_what_was_told_before_an_answer_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank told of its failure and hangs; rank 0 answers for what it lost by that, others never do."""
    executor = object.__new__(torchrun.TorchrunExecutor)
    executor._groups, executor._others, executor._sent = 0, [1, 2], {1: 0, 2: 0}
    executor._store = store = Store()
    within = Store()
    for lane, error in ((2, FloatingPointError("loss is NaN")), (1, OSError("connection closed"))):
        tell_failure(within, lane, error)
    store.set("group/1/failed", within.get("failed").decode())
    assert told_failure(store, "2") is None

    def collect(running: dict[int, Task], on_event: object, done: list[tuple[int, Outcome]]) -> None:
        if not executor._closed:
            done.append((0, Outcome(task=running[0], failure=Failure.ERROR, error="connection closed")))
        executor._closed = True

    executor._closed = False
    executor._collect = collect  # type: ignore[method-assign, assignment]
    executor._run_here = lambda *_: None  # type: ignore[method-assign, assignment]
    monkeypatch.setattr(torchrun, "_FINAL_GRACE_SECONDS", 0.1)
    task = Task(kind="prepare", key="cell", payload={})
    with pytest.raises(UserError, match="the others were left waiting: loss is NaN") as caught:
        executor._run_together(task, lambda task, event: None)
    assert not isinstance(caught.value, torchrun.LostRankError), "it would diverge again"


@pytest.mark.parametrize("failure", [Failure.DIVERGED, Failure.ERROR])
def test_one_that_writes_a_state_is_waited_for(failure: Failure, monkeypatch: pytest.MonkeyPatch) -> None:
    """All ranks diverge together; rank 0 answers once what it saves beside is on the disk."""
    executor = object.__new__(torchrun.TorchrunExecutor)
    executor._groups, executor._others, executor._sent = 0, [1], {1: 0}
    executor._store = Store()
    now, answered = 0.0, set[int]()

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    def collect(running: dict[int, Task], on_event: object, done: list[tuple[int, Outcome]]) -> None:
        for lane, after in ((1, 0.0), (0, 0.3)):
            if lane not in answered and now >= after:
                answered.add(lane)
                done.append((lane, Outcome(task=running[lane], failure=failure, error="NaN")))

    executor._collect = collect  # type: ignore[method-assign, assignment]
    executor._run_here = lambda *_: None  # type: ignore[method-assign, assignment]
    monkeypatch.setattr(torchrun, "_GRACE_SECONDS", 0.05)
    monkeypatch.setattr(torchrun, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    task = Task(kind="prepare", key="cell", payload={})
    if failure is Failure.ERROR:
        with pytest.raises(torchrun.LostRankError):
            executor._run_together(task, lambda task, event: None)
    else:
        assert executor._run_together(task, lambda task, event: None).failure is failure


@pytest.mark.parametrize(
    ("failure", "mistakes"),
    [(Failure.USER, 40), (Failure.DIVERGED, 40), (Failure.ERROR, 0), (Failure.CRASH, 0)],
)
def test_a_refused_batch_is_as_many_mistakes_as_videos(failure: Failure, mistakes: int) -> None:
    """The stage counts its videos as failed; of one task and 40 videos torchrun would try again."""
    state: Any = SimpleNamespace(mistakes=0, event=lambda *_, **__: None)
    task = Task(kind="generate", key="rtn-w4a4-s0/0001-0", payload={}, items=40)
    RunState.record_failure(state, Outcome(task=task, failure=failure))
    assert state.mistakes == mistakes
