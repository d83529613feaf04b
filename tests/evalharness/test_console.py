"""What a log says of a long stage: how much is done, how fast, and when it will end."""

from __future__ import annotations

import pytest

from evalharness import console
from evalharness.console import Console


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_a_log_has_lines_now_and_then(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """One video in ten seconds: lines after 60, 180, 420, 900 and 1500 seconds."""
    with Console().progress("generate", 360, "video") as progress:
        for _ in range(360):
            clock[0] += 10
            progress.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "generate: 360 videos" and lines[-1] == "generate: 360 videos (3600.0 s)"
    assert lines[1] == "  generate: 6 of 360 videos, 6 a minute, about 59 min left"
    done = [int(line.split()[1]) for line in lines[1:-1]]
    assert done == [6, 18, 42, 90, 150, 210, 270, 330]
    assert lines[3].endswith("42 of 360 videos, 6 a minute, about 53 min left")
    assert lines[-2].endswith("about 5 min left")


def test_steps_of_a_training_that_went_on(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """From step 500 of 4000, 30 s each: what was done before is no part of the rate."""
    with Console().progress("prepare", 1, "cell") as progress:
        for done in range(500, 504):
            progress.step("qvgen-w4a4-s0", {"what": "train", "done": done, "total": 4000})
            clock[0] += 30
        progress.step("qvgen-w4a4-s0", {"what": "hashing"})
    lines = capsys.readouterr().err.splitlines()
    assert lines[1:-1] == ["  qvgen-w4a4-s0 train: 502 of 4000 steps, 2 a minute, about 29 h 9 min left"]


def test_a_task_that_is_run_again_is_counted_anew(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its worker died after 40 steps; those again, 6 s each, are as many a minute as they were."""
    with Console().progress("prepare", 1, "cell") as progress:
        for done in (*range(1, 41), *range(1, 41)):
            progress.step("qvgen-w4a4-s0", {"what": "train", "done": done, "total": 100})
            clock[0] += 6
    lines = capsys.readouterr().err.splitlines()[1:-1]
    assert [line.split(": ")[1].split()[0] for line in lines] == ["11", "31", "11", "31"]
    assert all("steps, 10 a minute" in line for line in lines)


def test_tasks_that_have_ended_are_forgotten(clock: list[float]) -> None:
    """A run has 100,000 of them."""
    with Console().progress("generate", 50, "video") as progress:
        for number in range(50):
            for done in (1, 2):
                progress.step(f"video {number}", {"what": "denoise", "done": done, "total": 2})
            progress.advance()
        assert list(progress._rates) == ["generate"]


def test_short_stages_say_nothing_more(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Console().progress("score", 3, "part") as progress:
        for _ in range(3):
            clock[0] += 19
            progress.advance()
    assert capsys.readouterr().err == "score: 3 parts\nscore: 3 parts (57.0 s)\n"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(50, "50 s"), (119, "2 min"), (3599, "1 h 0 min"), (172_799, "2 d 0 h"), (190_000, "2 d 4 h")],
)
def test_durations(seconds: float, words: str) -> None:
    assert console._duration(seconds) == words
