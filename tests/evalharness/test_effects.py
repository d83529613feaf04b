"""Effects against SciPy, an analysis of variance by hand, and simulated coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from evalharness.crossed import crossed
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
    # Of the mean, over S P = 4: W = 9/4, B = 4, rest 1. With one degree of freedom each, the doubt is
    # sqrt(2 / 1 * (1 + 1 / 1)) = 2 times the rest, and C = 4 - 1 * (1 + 2) = 1.
    found = effect([one_dimension(row) for row in z])
    assert found.se == pytest.approx(math.sqrt(9 / 4 + 1))
    assert found.df == 1.0


def test_degrees_of_freedom_by_hand() -> None:
    # W 0.2, B 0.5, rest 0, three seeds (k = 2), 41 prompts: C = 0.5, m = 3.1 / 6.2 = 1/2.
    found = crossed(0.2, 0.5, 0.0, seeds=3, prompts=41)
    assert found.variance == pytest.approx(0.7)
    assert found.df == pytest.approx(1 / (math.exp(-0.5 * 0.5 / 0.2) / 2 + (0.5 / 0.7) ** 2 / 40))
    assert float(found.margin(0.95)) == pytest.approx(
        math.sqrt(0.7) * scipy_stats.t(float(found.df)).ppf(0.975)
    )


@given(st.floats(0, 10), st.floats(0.01, 10), st.integers(2, 12), st.integers(20, 1000))
def test_many_seeds_that_differ_are_satterthwaites(rest: float, w: float, seeds: int, prompts: int) -> None:
    """Where seeds make up nearly all, it is a t test over seeds; where none differ, one over prompts."""
    over_seeds = crossed(1000.0 * w, 0.0, rest * 0.001, seeds, prompts)
    assert over_seeds.df == pytest.approx(seeds - 1, rel=1e-3)
    over_prompts = crossed(1e-9, w, 0.0, seeds, prompts)
    assert over_prompts.df == pytest.approx(prompts - 1, rel=1e-3)
    assert over_prompts.variance == pytest.approx(w, rel=1e-3)


def test_seeds_that_agree_by_luck_are_not_believed() -> None:
    """Both seeds have the mean 2 exactly, and prompts too: only the rest speaks, and it does."""
    found = effect([one_dimension([1.0, 3.0] * 10), one_dimension([3.0, 1.0] * 10)])
    assert found.lo is not None and found.hi is not None and found.p is not None
    # Mean squares: rest 40/19 over S P = 40, a quarter of its root, 19 degrees of freedom.
    half = math.sqrt(40 / 19 / 40) / 4 * scipy_stats.t(19).ppf(0.975)
    assert (found.lo, found.hi) == pytest.approx((2 - half, 2 + half))
    assert 0.0 < found.p < 1e-10


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


@pytest.mark.parametrize(
    ("seeds", "prompts", "spread"), [(1, 50, 0), (2, 200, 0.3), (2, 60, 0), (3, 80, 0.3), (5, 50, 1)]
)
def test_the_interval_holds_the_truth_as_often_as_it_says(seeds: int, prompts: int, spread: float) -> None:
    """95 % within what 600 draws can tell; the full simulation is ``benchmarks/interval_coverage.py``."""
    rng = np.random.default_rng([seeds, prompts])
    hits = 0
    for _ in range(600):
        noise = rng.normal(0, spread, (seeds, 1)) + rng.normal(0, 1, (1, prompts))
        found = effect([one_dimension(row) for row in noise + rng.normal(0, 1, (seeds, prompts))])
        assert found.lo is not None and found.hi is not None
        hits += found.lo <= 0 <= found.hi
    assert 0.92 <= hits / 600 <= 0.98
