"""Rank decay against tables worked out by hand."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvgen.config import Annealing, QuantConfig, QVGenConfig
from qvgen.schedule import RankSchedule, StageState, annealed

SHAPES: tuple[Annealing, ...] = ("cosine", "linear", "quadratic", "cubic", "sqrt")


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


def test_shapes_at_hand_worked_points() -> None:
    # at f = 0.75 a quarter is left: 1/4, its square, its cube, its root, (1 - sqrt(1/2)) / 2
    at = {shape: annealed(0.75, shape) for shape in SHAPES}
    assert at == pytest.approx(
        {"linear": 0.25, "quadratic": 0.0625, "cubic": 0.015625, "sqrt": 0.5, "cosine": 0.1464466}
    )


@given(
    st.integers(1, 70), st.integers(0, 300), st.floats(0.1, 1.0), st.floats(0.0, 0.9),
    st.sampled_from(SHAPES), st.integers(0, 9),
)  # fmt: skip
def test_gamma_never_rises_and_ends_at_zero(
    rank: int, extra: int, ratio: float, hold: float, shape: Annealing, cap: int
) -> None:
    steps = 10 * (rank + 1 + extra)
    schedule = RankSchedule(
        rank=rank, steps=steps, decay_ratio=ratio, hold=hold, annealing=shape, max_stages=cap
    )
    assert schedule.gamma(0) == (1.0,) * rank and schedule.gamma(steps) == (0.0,) * rank
    rows = [schedule.gamma(step) for step in range(0, steps + 1, max(1, steps // 40))]
    assert all(x >= y for a, b in itertools.pairwise(rows) for x, y in zip(a, b, strict=True))
    assert all(list(row) == sorted(row, reverse=True) for row in rows), "the last columns go first"


def test_a_limit_of_stages_is_the_reported_algorithm_of_the_paper() -> None:
    # five stages for rank 32: the fifth takes both columns that are left
    assert RankSchedule(rank=32, steps=60, max_stages=5).ranks == (32, 16, 8, 4, 2, 0)
    assert RankSchedule(rank=32, steps=60, max_stages=1).ranks == (32, 0)
    assert RankSchedule(rank=32, steps=60, max_stages=9).ranks == (32, 16, 8, 4, 2, 1, 0)


def test_hold_table() -> None:
    # rank 2, 10 steps, hold 0.4: 4 whole steps, then 2>1 and 1>0 of 3 steps each; linear: 1, 2/3, 1/3
    schedule = RankSchedule(rank=2, steps=10, hold=0.4, annealing="linear")
    u = [1, 2 / 3, 1 / 3]
    expected = [(1, 1)] * 4 + [(1, v) for v in u] + [(v, 0) for v in u] + [(0, 0)]
    for step, row in enumerate(expected):
        assert schedule.gamma(step) == pytest.approx(row), step
    assert [s for s in range(11) if schedule.at(s).refactor] == [4, 7]
    assert [s for s in range(11) if schedule.at(s).begins] == [0, 4, 7]


def test_early_end_table() -> None:
    # rank 2, 12 steps, decay_until 0.75: 2>1 and 1>0 share round(0.75 * 12) = 9 steps, so 4 each;
    # linear: 1, 3/4, 1/2, 1/4; step 8 is left over and steps 9 to 11 train without Phi
    schedule = RankSchedule(rank=2, steps=12, decay_until=0.75, annealing="linear")
    u = [1, 3 / 4, 1 / 2, 1 / 4]
    expected = [(1, v) for v in u] + [(v, 0) for v in u] + [(0, 0)] * 5
    for step, row in enumerate(expected):
        assert schedule.gamma(step) == pytest.approx(row), step
    assert [s for s in range(13) if schedule.at(s).refactor] == [4]
    assert [s for s in range(13) if schedule.at(s).begins] == [0, 4]


def test_early_end_after_a_hold() -> None:
    # 20 steps: whole up to 20 * 0.2 = 4, gone at 20 * 0.6 = 12, two stages of 4 in between; cosine at halves
    schedule = RankSchedule(rank=2, steps=20, hold=0.2, decay_until=0.6)
    assert (schedule.hold_steps, schedule.decay_steps, schedule.stage_steps) == (4, 8, 4)
    assert [schedule.gamma(step) for step in (3, 4, 6, 8, 10, 12, 19)] == [
        (1, 1), (1, 1), (1, pytest.approx(0.5)), (1, 0), (pytest.approx(0.5), 0), (0, 0), (0, 0),
    ]  # fmt: skip


@given(st.integers(1, 40), st.integers(100, 500), st.floats(0.5, 1.0))
def test_early_end_is_a_shorter_schedule_followed_by_nothing(rank: int, steps: int, until: float) -> None:
    early, short = RankSchedule(rank=rank, steps=steps, decay_until=until), round(until * steps)
    alone = RankSchedule(rank=rank, steps=short)
    assert [early.gamma(s) for s in range(short)] == [alone.gamma(s) for s in range(short)]
    assert all(early.gamma(s) == (0.0,) * rank for s in range(short, steps + 1))


@pytest.mark.parametrize("end", ["drop", "keep"])
def test_a_phi_that_does_not_decay(end: str) -> None:
    schedule = RankSchedule(rank=3, steps=2, phi_end=end)  # type: ignore[arg-type]
    assert [schedule.gamma(step) for step in range(3)] == [(1.0, 1.0, 1.0)] * 3
    assert not any(schedule.at(step).refactor for step in range(3))


def test_without_refactoring_no_step_asks_for_it() -> None:
    schedule = RankSchedule(rank=4, steps=12, refactor=False)
    assert not any(schedule.at(step).refactor for step in range(13))
    assert schedule.gamma(6) == RankSchedule(rank=4, steps=12).gamma(6)


def test_of_a_config() -> None:
    config = QVGenConfig(
        quant=QuantConfig(w_bits=4, a_bits=4), rank=6, decay_ratio=0.75, annealing="cubic",
        direction="large", max_stages=2, hold=0.1,
    )  # fmt: skip
    assert RankSchedule.of(config, 50) == RankSchedule(
        rank=6, steps=50, decay_ratio=0.75, annealing="cubic", direction="large", max_stages=2, hold=0.1
    )


def test_refused_options() -> None:
    with pytest.raises(ValueError, match=r"5 training steps \(after 45 of 50 steps with hold\) are fewer"):
        RankSchedule(rank=32, steps=50, hold=0.9)
    with pytest.raises(ValueError, match=r"5 training steps \(decay_until 0\.1 of 50\) are fewer"):
        RankSchedule(rank=32, steps=50, decay_until=0.1)
    with pytest.raises(ValueError, match=r"decay_until is 0\.3 and hold is 0\.3: Phi must be gone after"):
        RankSchedule(rank=32, steps=50, hold=0.3, decay_until=0.3)
    with pytest.raises(ValueError, match=r"decay_until is 1\.1; expected a number in \(0\.0, 1\.0\]"):
        RankSchedule(rank=32, steps=50, decay_until=1.1)
    with pytest.raises(ValueError, match=r"hold is 1\.0"):
        RankSchedule(rank=32, steps=50, hold=1.0)
    with pytest.raises(ValueError, match="annealing is 'quartic'; allowed: 'cosine', 'linear'"):
        RankSchedule(rank=32, steps=50, annealing="quartic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"refactor is 0\.0; allowed: True, False"):
        RankSchedule(rank=32, steps=50, refactor=0.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="refactor is off but direction is 'large'"):
        RankSchedule(rank=32, steps=50, refactor=False, direction="large")
