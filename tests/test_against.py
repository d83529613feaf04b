"""Times of two checkouts in turns: from end to end in small, and the document."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from benchmarks import against
from benchmarks.against import collect, document, of_turns, until_told
from benchmarks.hot_paths import HOT_PATHS
from evalharness.gates.status import Status, Verdict

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_slowed_side_is_slower_and_a_broken_path_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(against, "BLOCK_SECONDS", 0.5)
    sides = {"reference": (ROOT, 0.0), "run": (ROOT, 1.0)}
    found = collect(sides, ["tables", "no such path"], 2)
    assert found["no such path"].startswith("KeyError")
    pairs = zip(found["tables"]["reference"], found["tables"]["run"], strict=True)
    assert all(1.25 < run / reference < 4.0 for reference, run in pairs), "twice as slow, on a busy machine"


class Machine:
    """Stands for the measuring processes: the one that was started first is a tenth faster."""

    started: ClassVar[list[str]] = []
    turns: ClassVar[list[str]] = []

    def __init__(self, root: Path, slower: float) -> None:
        self.name = root.name
        self.is_first = len(self.started) % 2 == 0
        self.started.append(self.name)

    def ask(self, **question: Any) -> dict[str, Any]:
        if "loops" in question:
            self.turns.append(self.name)
        return {"seconds": 0.9 if self.is_first else 1.0}

    def close(self) -> None:
        pass


def test_a_coin_says_who_begins_so_that_a_place_is_no_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(against, "Side", Machine)
    monkeypatch.setattr(Machine, "started", [])
    monkeypatch.setattr(Machine, "turns", [])
    sides = {"reference": (Path("old"), 0.0), "run": (Path("new"), 0.0)}
    found = collect(sides, ["a"], 200)["a"]
    ratios = [run / old for run, old in zip(found["run"], found["reference"], strict=True)]
    assert 60 < sum(ratio < 1 for ratio in ratios) < 140, "a fair coin leaves this once in 10^8"
    assert sorted(set(Machine.started[:80:2])) == ["new", "old"]
    pairs = [Machine.turns[place : place + 2] for place in range(0, 30, 2)]
    assert all(pair == other[::-1] for pair, other in itertools.pairwise(pairs)), "they take turns"


class Steady(Machine):
    """Exact times, until someone presses Ctrl-C."""

    blocks = 0

    def __init__(self, root: Path, slower: float) -> None:
        type(self).blocks += 1
        if self.blocks > 3 * 13:
            raise KeyboardInterrupt
        self.seconds = 0.03 * (1 + slower)

    def ask(self, **question: Any) -> dict[str, Any]:
        return {"seconds": self.seconds}


def test_the_judge_is_tried_on_the_blocks_that_there_are(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ended in the fourteenth block: each draw takes twelve of thirteen."""
    monkeypatch.setattr(against, "Side", Steady)
    monkeypatch.setattr(Steady, "blocks", 0)
    found = against.planted(20, ["tables"], 12, 1, 0.025)
    assert len(found["milliseconds"]["tables"]["no-op"]) == 13
    assert (found["tables"]["5 % slower"]["regressions"], found["tables"]["no-op"]["passes"]) == (20, 20)
    assert "block 13 of 24" in capfd.readouterr().err
    with pytest.raises(SystemExit, match="too early: a verdict may take 12 blocks"):
        against.planted(20, ["tables"], 12, 1, 0.025)


def test_fewer_paths_have_more_turns_and_long_ones_fewer() -> None:
    least, most = against.TURNS
    assert [against.turns_of(0.02, paths) for paths in (1, 4, 11, 100)] == [most, 75, 27, least]
    assert against.turns_of(0.2, 1) == 30 and against.turns_of(5.0, 1) == least


def test_a_cold_call_and_an_interrupted_one_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, costs = [0.0], iter([9.0, 1.0, 1.1, 50.0, 1.2, 1.0])
    monkeypatch.setattr(against.time, "process_time", lambda: clock[0])

    def action() -> None:
        clock[0] += next(costs)

    assert against._timed(action, 6, 0.0) == pytest.approx(1.1)


def test_a_block_is_told_by_its_neighbouring_turns() -> None:
    """A machine that becomes twice as slow in between: each ratio is 1.1, those of medians would not be."""
    times = {"reference": [1.0, 1.0, 2.0, 2.0], "run": [1.1, 1.1, 2.2, 2.2]}
    assert of_turns(times, "reference") == pytest.approx({"reference": 1.5, "run": 1.65})
    times["run"][0] = 50.0
    assert of_turns(times, "reference")["run"] == pytest.approx(1.65), "one wild turn changes nothing"


def test_what_cannot_be_told_is_measured_on_and_nothing_else() -> None:
    """Three paths: one the same, one clearly slower, one whose noise needs more than twelve pairs."""
    asked: list[list[str]] = []
    rng = random.Random(1)

    def measure(paths: Sequence[str], look: int) -> dict[str, Any]:
        asked.append(list(paths))
        found: dict[str, Any] = {}
        for name in paths:
            noise, slower = {"same": (0.005, 1.0), "slow": (0.005, 1.05), "noisy": (0.1, 1.0)}[name]
            run = [slower * rng.lognormvariate(0, noise) for _ in range(12)]
            found[name] = {"reference": [1.0] * 12, "run": run}
        return found

    times, verdicts = until_told(measure, ["same", "slow", "noisy"], 0.025, 6)
    assert asked[0] == ["same", "slow", "noisy"]
    assert len(asked) > 1 and all(names == ["noisy"] for names in asked[1:])
    assert {v.row: v.status for v in verdicts} == {
        "same": Status.PASS,
        "slow": Status.REGRESSION,
        "noisy": Status.PASS,
    }
    assert [len(times[name]["run"]) for name in ("same", "slow", "noisy")] == [12, 12, 12 * len(asked)]


def test_the_document_has_the_slowest_first_and_what_was_not_timed() -> None:
    verdicts = [
        Verdict(row=name, metric="time", status=status, reason=reason, run=run, reference=0.01)
        for name, status, reason, run in (
            ("same", Status.PASS, "+0.0 %", 0.01),
            ("slow", Status.REGRESSION, "+5.0 %, beyond 2.5 %", 0.0105),
        )
    ]
    lines = document(verdicts, {"new": "KeyError: 'new'"}).splitlines()
    assert lines[4] == "| slow | 10 | 10.5 | +5.0 %, beyond 2.5 % | REGRESSION |"
    assert lines[5].startswith("| same |") and lines[6].startswith("| new | - | - | not timed: KeyError")


@pytest.mark.parametrize(
    "name", ["weight_quantizer", "activation_quantizer", "packing", "aggregation", "tables"]
)
def test_hot_paths_can_be_called_again_and_again(name: str) -> None:
    action = HOT_PATHS[name]()
    assert action() is not None and action() is not None
