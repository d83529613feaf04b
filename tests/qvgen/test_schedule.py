"""Rank decay against tables worked out by hand."""

from __future__ import annotations

import math

import pytest

from qvgen.schedule import RankSchedule, StageState, annealed


def test_ranks_halve_to_zero() -> None:
    assert RankSchedule(rank=32, steps=60).ranks == (32, 16, 8, 4, 2, 1, 0)
    assert RankSchedule(rank=5, steps=60).ranks == (5, 2, 1, 0)
    assert RankSchedule(rank=32, steps=60, decay_ratio=1.0).ranks == (32, 0)
    assert RankSchedule(rank=32, steps=60, decay_ratio=0.75).ranks == (32, 8, 2, 0)
    assert RankSchedule(rank=10, steps=60, decay_ratio=0.9).ranks == (10, 1, 0)


def test_table_of_a_short_run() -> None:
    # rank 4, 13 steps: stages 4>2>1>0 of 4 steps, one step left over.
    # u = (1 + cos(pi * k / 4)) / 2 for k = 0..3: 1, 0.85355, 0.5, 0.14645
    u = [1.0, 0.853553, 0.5, 0.146447]
    schedule = RankSchedule(rank=4, steps=13)
    expected = (
        [(1, 1, v, v) for v in u] + [(1, v, 0, 0) for v in u] + [(v, 0, 0, 0) for v in u] + [(0, 0, 0, 0)] * 3
    )
    for step, row in enumerate(expected):
        assert schedule.gamma(step) == pytest.approx(row, abs=1e-6), step
    assert [s for s in range(15) if schedule.at(s).refactor] == [4, 8]
    assert schedule.at(5) == StageState(stage=1, rank=2, kept=1, u=annealed(0.25, "cosine"), refactor=False)
    assert schedule.at(12).rank == 0


def test_official_run_vanishes_where_the_paper_code_does() -> None:
    # Wan 1.3B script: 2667 steps, stages of 444, Phi gone at step 2664.
    schedule = RankSchedule(rank=32, steps=2667)
    assert schedule.stage_steps == 444
    assert schedule.gamma(2663)[0] > 0 and schedule.gamma(2664) == (0.0,) * 32


def test_linear_annealing() -> None:
    assert [annealed(f, "linear") for f in (0, 0.25, 1)] == [1, 0.75, 0]
    assert annealed(1, "cosine") == pytest.approx(0) and annealed(1 / 3, "cosine") == pytest.approx(0.75)
    assert math.isclose(annealed(0.5, "cosine"), 0.5)


def test_too_few_steps() -> None:
    with pytest.raises(ValueError, match="5 training steps are fewer than the 6 stages"):
        RankSchedule(rank=32, steps=5)
    with pytest.raises(ValueError, match="decay_ratio"):
        RankSchedule(rank=32, steps=60, decay_ratio=0.0)
