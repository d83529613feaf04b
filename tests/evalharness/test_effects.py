"""Effects against SciPy, an analysis of variance by hand, and simulated coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from evalharness.effects import Components, components, effect, holm, table
from evalharness.stats import Key


def one_dimension(values: list[float] | np.ndarray, name: str = "color") -> dict[str, dict[Key, float]]:
    return {name: {Key(f"{i:04d}", 0): float(value) for i, value in enumerate(values)}}


def test_one_seed_is_a_one_sample_t_test() -> None:
    values = np.random.default_rng(0).normal(0.02, 0.1, 40)
    found = effect([one_dimension(values)])
    expected = scipy_stats.ttest_1samp(values, 0.0)
    ends = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.lo, found.hi) == pytest.approx((ends.low, ends.high))
    assert (found.n, found.prompts, found.seeds, found.df) == (40, 40, 1, 39.0)


def test_seeds_that_differ_and_prompts_that_do_not_leave_a_t_test_over_seeds() -> None:
    means = [0.01, 0.03, 0.08]
    found = effect([one_dimension([mean] * 30) for mean in means])
    expected = scipy_stats.ttest_1samp(means, 0.0)
    assert found.value == pytest.approx(0.04)
    assert found.df == pytest.approx(2.0)
    assert found.p == pytest.approx(expected.pvalue)


def test_variance_components_by_hand() -> None:
    # Rows 1 3 / 2 8: grand mean 3.5; MS_seed = 2((2-3.5)^2 + (5-3.5)^2) = 9, MS_prompt = 16, MS_rest = 4.
    z = np.array([[1.0, 3.0], [2.0, 8.0]])
    assert components(z) == pytest.approx(Components(seed=2.5, prompt=6.0, rest=4.0))
    found = effect([one_dimension(row) for row in z])
    assert found.se == pytest.approx(math.sqrt((9 + 16 - 4) / 4))
    assert found.df == pytest.approx(21**2 / (9**2 + 16**2 + 4**2))


def test_dimensions_weigh_alike_whatever_their_number_of_videos() -> None:
    differences = {
        "color": {Key("0000", 0): 0.4},
        "scene": {Key("0000", 0): 0.1, Key("0001", 0): 0.2, Key("0002", 0): 0.3},
    }
    z, videos = table([differences])
    assert z.mean() == pytest.approx(0.3)
    assert videos == 3
    # Parts by hand: color's single prompt does not deviate; scene deviates by -0.1, 0, 0.1, halved.
    assert z[0] == pytest.approx([0.25, 0.3, 0.35])


def test_a_video_that_one_seed_lacks_is_left_out_of_all() -> None:
    found = effect([one_dimension([0.1, 0.2, 0.9]), one_dimension([0.3, 0.4])])
    assert (found.n, found.value) == (2, pytest.approx(0.25))


def test_nothing_in_common_says_nothing() -> None:
    found = effect([{"color": {Key("0000", 0): 0.1}}, {"color": {Key("0001", 0): 0.1}}])
    assert (found.value, found.p, found.seeds) == (None, None, 2)
    assert effect([]).value is None


def test_one_prompt_has_a_mean_and_no_interval() -> None:
    found = effect([one_dimension([0.5])])
    assert (found.value, found.lo, found.p) == (0.5, None, None)


def test_no_difference_at_all_is_p_one_and_a_constant_one_is_p_zero() -> None:
    same, shifted = effect([one_dimension([0.0] * 5)]), effect([one_dimension([0.1] * 5)])
    assert (same.p, same.lo, same.hi) == (1.0, 0.0, 0.0)
    assert shifted.p == 0.0
    assert shifted.excludes_zero and not same.excludes_zero


def test_scores_must_be_finite() -> None:
    with pytest.raises(ValueError, match="color: scores must be finite"):
        effect([one_dimension([0.1, math.nan])])


def test_holm_is_statsmodels_textbook_case() -> None:
    # Worked by hand: sorted 0.01 0.02 0.03 0.04, times 4 3 2 1, made monotone.
    assert holm([0.04, 0.01, None, 0.03, 0.02]) == pytest.approx([0.06, 0.04, None, 0.06, 0.06])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_p_and_bonferroni_and_keeps_the_order(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for p, q in zip(p_values, adjusted, strict=True):
        assert q is not None and p <= q <= min(1.0, p * len(p_values)) + 1e-12
    order = np.argsort(p_values, kind="stable")
    assert all(np.diff([adjusted[i] for i in order]) >= 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("seeds", "prompts", "spread"), [(1, 50, 0), (1, 400, 0), (3, 80, 0.3), (5, 50, 1)])
def test_the_interval_holds_the_truth_as_often_as_it_says(seeds: int, prompts: int, spread: float) -> None:
    """95 % within what 600 draws can tell; the full simulation is ``benchmarks/coverage.py``."""
    rng = np.random.default_rng([seeds, prompts])
    hits = 0
    for _ in range(600):
        noise = rng.normal(0, spread, (seeds, 1)) + rng.normal(0, 1, (1, prompts))
        found = effect([one_dimension(row) for row in noise + rng.normal(0, 1, (seeds, prompts))])
        assert found.lo is not None and found.hi is not None
        hits += found.lo <= 0 <= found.hi
    assert 0.92 <= hits / 600 <= 0.98
