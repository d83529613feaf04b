"""Planning against statsmodels' formulas worked by hand, simulation, and the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from evalharness.effects import Components, effect
from evalharness.power import Design, detectable, prompts_needed, seeds_needed, simulated_power
from evalharness.stats import Key

SHIPPED = str(Path(__file__).parents[2] / "results" / "tinyworld" / "cpu")
VARIANCE = st.floats(0.001, 4.0)


def test_one_seed_is_the_textbook_sample_size() -> None:
    # d = 0.5, power 0.8, two-sided 5 %: the standard table of the paired t test says 34.
    design = Design(components=Components(0.0, 1.0, 0.0))
    assert prompts_needed(design, 0.5, 1) == 34
    t = scipy_stats.t(33)
    assert detectable(design, 34, 1) == pytest.approx((t.ppf(0.975) + t.ppf(0.8)) / np.sqrt(34))


@pytest.mark.parametrize(
    ("seeds", "prompts", "components"),
    [
        (1, 60, Components(0.02, 1.0, 1.0)),
        (2, 60, Components(0.0, 1.0, 1.0)),
        (2, 60, Components(0.1, 0.1, 1.0)),
        (3, 60, Components(0.02, 1.0, 1.0)),
        (5, 60, Components(0.02, 1.0, 1.0)),
    ],
)
def test_a_difference_of_that_size_is_found_as_often_as_promised(
    seeds: int, prompts: int, components: Components
) -> None:
    """Tables drawn here, judged by the comparison that ``compare`` makes."""
    rng, c = np.random.default_rng(0), components
    size = detectable(Design(components=c), prompts, seeds)
    found = 0
    for _ in range(500):
        z = size + rng.normal(0, c.prompt**0.5, (1, prompts)) + rng.normal(0, c.rest**0.5, (seeds, prompts))
        z += rng.normal(0, c.seed**0.5, (seeds, 1)) if seeds > 1 else 0.0
        rows = [{"d": {Key(f"{i:03d}", 0): float(v) for i, v in enumerate(row)}} for row in z]
        p = effect(rows).p
        found += p is not None and p < 0.05
    assert 0.74 <= found / 500 <= 0.86
    share, draws = simulated_power(Design(components=c), size, prompts, seeds)
    assert draws == 400 and abs(share - found / 500) < 0.1


def test_no_true_difference_is_found_as_seldom_as_the_interval_says() -> None:
    share, _ = simulated_power(Design(components=Components(0.02, 1.0, 1.0)), 0.0, 50, 3, draws=1000)
    assert 0.02 <= share <= 0.07
    with pytest.raises(ValueError, match=r"made at 0\.95"):
        simulated_power(Design(components=Components(0, 1, 1), confidence=0.9), 0.1, 50, 3)


@settings(deadline=None)
@given(VARIANCE, VARIANCE, VARIANCE, st.integers(2, 6))
def test_what_is_needed_is_enough_and_one_less_is_not(s: float, p: float, r: float, seeds: int) -> None:
    design = Design(components=Components(s, p, r))
    wanted = 2 * detectable(design, 10_000, seeds)
    prompts = prompts_needed(design, wanted, seeds)
    assert prompts is not None
    assert detectable(design, prompts, seeds) <= wanted
    assert prompts == 2 or detectable(design, prompts - 1, seeds) > wanted


def test_no_number_of_prompts_makes_good_seeds_that_differ() -> None:
    design = Design(components=Components(1.0, 0.1, 0.1))
    assert prompts_needed(design, 0.1, 3) is None
    needed = seeds_needed(design, 1.0, 50)
    assert needed is not None and 8 <= needed <= 12  # about (1.96 + 0.84)^2 = 7.8 and some for t
    assert seeds_needed(Design(components=Components(0.0, 100.0, 0.0)), 0.1, 10) is None


@pytest.mark.parametrize(("prompts", "seeds"), [(1, 1), (5, 0)])
def test_too_few_are_refused(prompts: int, seeds: int) -> None:
    with pytest.raises(ValueError, match="at least 2 prompts and 1 seed"):
        detectable(Design(components=Components(0, 1, 0)), prompts, seeds)


def test_a_power_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Design(components=Components(0, 1, 0), power=1.0)


def test_the_command_speaks_of_the_pilot(call: Callable[..., Any]) -> None:
    arguments = ("plan", f"{SHIPPED}:qvgen-w3a3", f"{SHIPPED}:kd-qat-w3a3")
    record = json.loads(call(*arguments, "--effect", "2", "--json").out)
    assert (record["prompts"], record["seeds"]) == (80, 3)
    assert record["difference"] == pytest.approx(-0.775, abs=0.001)
    # Of these methods' differences nearly all is "rest": five seeds need a third of what three do, and two
    # seeds tell so little that it takes a thousand prompts.
    needed = record["prompts_needed"]
    assert needed["10"] < needed["5"] < 80 < needed["1"] < needed["3"] < 1000 < needed["2"]
    assert 3 < record["seeds_needed"] <= 5
    assert set(record["tried"]) == set(needed)
    assert all(0.7 <= each["found"] <= 0.9 for each in record["tried"].values())
    assert 0.7 <= record["detectable_tried"] <= 0.9
    # What the pilot could find, tried on the pilot's own numbers: that many points need that many prompts.
    again = json.loads(call(*arguments, "--effect", str(record["detectable"]), "--json").out)
    assert again["prompts_needed"]["3"] in (79, 80, 81)
    text = call(*arguments, "--dimension", "action", "--effect", "10").out
    assert text.startswith("pilot: action, 80 prompts, 3 seeds, in points of 100: difference -0.23")
    single = call("plan", f"{SHIPPED}:qvgen-w3a3-s0", f"{SHIPPED}:rtn-w3a3-s0").out
    assert "one seed tells nothing of how seeds differ" in single


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([SHIPPED, SHIPPED], "16 rows are in both; name one cell"),
        ([f"{SHIPPED}:rtn-w3a3", SHIPPED, "--power", "1"], "--power 1.0"),
        ([f"{SHIPPED}:rtn-w3a3", SHIPPED, "--effect", "0"], "--effect 0.0"),
        ([f"{SHIPPED}:rtn-w3a3", SHIPPED, "--dimension", "acton"], "did you mean 'action'"),
        (["nowhere", SHIPPED], "nowhere: no such run folder"),
    ],
)
def test_mistakes(call: Callable[..., Any], arguments: list[str], words: str) -> None:
    result = call("plan", *arguments)
    assert (result.code, result.out) == (2, "")
    assert words in result.errors[0]
