"""Executors run the same tasks alike, and survive what tasks do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from evalharness.executor import (
    Executor,
    Failure,
    InlineExecutor,
    Outcome,
    SubprocessExecutor,
    Task,
    WorkerSpec,
)

Events = list[tuple[str, Mapping[str, Any]]]
SPEC = WorkerSpec(model="toy", protocol="toy", device="cpu", skip_layers="std")
CELL = {"model": "toy", "method": "toy-train", "w_bits": 3, "a_bits": 3, "seed": 0, "options": {}}


def prepare(folder: Path, number: int, **options: Any) -> Task:
    target = folder / str(number)
    target.mkdir()
    payload = {
        "cell": {**CELL, "options": options},
        "source": None,
        "target": str(target),
        "train_log": str(folder / f"{number}.jsonl"),
    }
    return Task(kind="prepare", key=f"cell {number}", payload=payload)


def collect(executor: Executor, tasks: list[Task]) -> tuple[dict[str, Outcome], Events]:
    events: Events = []
    outcomes = executor.run(tasks, lambda task, event: events.append((task.key, event)))
    return {outcome.task.key: outcome for outcome in outcomes}, events


@pytest.fixture(params=["inline", "processes"])
def executor(
    request: pytest.FixtureRequest, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Executor]:
    made = InlineExecutor(SPEC) if request.param == "inline" else SubprocessExecutor(SPEC, 2)
    yield made
    made.close()


def test_values_failures_and_events_come_back_with_their_task(executor: Executor, tmp_path: Path) -> None:
    tasks = [
        prepare(tmp_path, 0),
        prepare(tmp_path, 1, steps="many"),
        Task(kind="generate", key="nonsense", payload={}),
        prepare(tmp_path, 2, steps=2),
    ]
    outcomes, events = collect(executor, tasks)
    assert outcomes.keys() == {"cell 0", "cell 1", "nonsense", "cell 2"}
    assert outcomes["cell 0"].failure is None
    assert outcomes["cell 0"].value["seconds"] > 0
    assert outcomes["cell 1"].failure is Failure.USER
    assert outcomes["cell 1"].error == "option toy-train.steps='many': expected int"
    assert outcomes["nonsense"].failure is Failure.ERROR
    assert outcomes["nonsense"].error == "KeyError: 'cell'"
    assert "Traceback" in outcomes["nonsense"].traceback
    assert ("cell 2", {"what": "training", "done": 2, "total": 2}) in events
    assert (tmp_path / "0" / "w.safetensors").read_bytes() != (tmp_path / "2" / "w.safetensors").read_bytes()


def test_a_dead_worker_is_replaced_and_only_its_task_fails(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_DIE", "prepare/toy-round")
    executor = SubprocessExecutor(SPEC, 1)
    deadly = Task(
        kind="prepare",
        key="deadly",
        payload={**prepare(tmp_path, 0).payload, "cell": {**CELL, "method": "toy-round"}},
    )
    try:
        outcomes, _ = collect(executor, [deadly, prepare(tmp_path, 1)])
        assert outcomes["deadly"].failure is Failure.CRASH
        assert "signal 9" in outcomes["deadly"].error
        assert outcomes["cell 1"].failure is None
        again, _ = collect(executor, [prepare(tmp_path, 2)])
        assert again["cell 2"].failure is None
    finally:
        executor.close()


def test_no_task_starts_no_worker(toy: Path) -> None:
    executor = SubprocessExecutor(SPEC, 4)
    assert list(executor.run([], lambda task, event: None)) == []
    assert executor._pool == []
