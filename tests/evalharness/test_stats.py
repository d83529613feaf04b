"""Intervals against hand-worked cases, SciPy's bootstrap, and properties that any interval must have."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from evalharness.stats import (
    Interval,
    Key,
    Resampler,
    bootstrap_ci,
    joint_mean,
    paired_difference,
    paired_joint_difference,
)

RESAMPLER = Resampler()
FINE = Resampler(resamples=20_000)

UNIT = st.floats(0.0, 1.0, allow_nan=False)
SCORES = st.dictionaries(
    st.builds(Key, st.sampled_from("abcdefgh"), st.integers(0, 3)), UNIT, min_size=1, max_size=30
)


def one_each(values: list[float] | np.ndarray) -> dict[Key, float]:
    """One video for each prompt."""
    return {Key(f"{i:04d}", 0): float(value) for i, value in enumerate(values)}


def clusters(rng: np.random.Generator, prompts: int) -> dict[Key, float]:
    """1 to 5 videos a prompt around the prompt's own level."""
    scores = {}
    for prompt in range(prompts):
        level = rng.normal(0.6, 0.2)
        for sample in range(rng.integers(1, 6)):
            scores[Key(f"{prompt:04d}", sample)] = level + rng.normal(0, 0.05)
    return scores


def sums_and_counts(scores: dict[Key, float]) -> tuple[np.ndarray, np.ndarray]:
    prompts = sorted({key.prompt for key in scores})
    groups = [[v for k, v in scores.items() if k.prompt == prompt] for prompt in prompts]
    return np.array([sum(g) for g in groups]), np.array([float(len(g)) for g in groups])


def scipy_interval(data: tuple[np.ndarray, ...], statistic: object) -> tuple[float, float]:
    found = scipy_stats.bootstrap(
        data,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(7),
    ).confidence_interval
    return found.low, found.high


def assert_close_to(interval: Interval, expected: tuple[float, float]) -> None:
    """Within 4 % of the width: the Monte Carlo error of two runs of 20000."""
    assert interval.lo is not None and interval.hi is not None
    tolerance = 0.04 * (expected[1] - expected[0])
    assert interval.lo == pytest.approx(expected[0], abs=tolerance)
    assert interval.hi == pytest.approx(expected[1], abs=tolerance)


def test_two_prompts_by_hand() -> None:
    # A resample holds a, a (1 in 4), b, b (1 in 4) or both: the outer 2.5 % are the ends themselves.
    assert bootstrap_ci(one_each([0.2, 0.8]), RESAMPLER) == Interval(0.5, 0.2, 0.8, 2, 2)


def test_a_prompt_with_more_videos_weighs_more() -> None:
    scores = {Key("a", 0): 0.0, Key("b", 0): 1.0, Key("b", 1): 1.0, Key("b", 2): 1.0}
    interval = bootstrap_ci(scores, RESAMPLER)
    assert (interval.value, interval.lo, interval.hi) == (0.75, 0.0, 1.0)
    assert (interval.n, interval.prompts) == (4, 2)


def test_without_data_and_from_one_prompt_there_is_no_interval() -> None:
    assert bootstrap_ci({}, RESAMPLER) == Interval(None, None, None, 0, 0)
    one_prompt = {Key("a", 0): 0.25, Key("a", 1): 0.75}
    assert bootstrap_ci(one_prompt, RESAMPLER) == Interval(0.5, None, None, 2, 1)


@given(value=UNIT, prompts=st.integers(2, 40))
def test_constant_scores_have_exactly_zero_width(value: float, prompts: int) -> None:
    interval = bootstrap_ci(one_each([value] * prompts), RESAMPLER)
    assert (interval.value, interval.lo, interval.hi) == (value, value, value)


def test_mean_and_ends_agree_with_scipy() -> None:
    values = np.random.default_rng(0).beta(5, 2, size=60)
    interval = bootstrap_ci(one_each(values), FINE)
    assert interval.value == pytest.approx(np.mean(values), abs=1e-12)
    assert_close_to(interval, scipy_interval((values,), lambda x, axis: np.mean(x, axis=axis)))


def test_clustered_ends_agree_with_scipy_on_cluster_sums() -> None:
    scores = clusters(np.random.default_rng(1), prompts=50)
    expected = scipy_interval(sums_and_counts(scores), lambda s, n, axis: s.sum(axis) / n.sum(axis))
    assert_close_to(bootstrap_ci(scores, FINE), expected)


def test_joint_mean_agrees_with_scipy_when_dimensions_share_prompts() -> None:
    rng = np.random.default_rng(2)
    first, second = clusters(rng, 40), clusters(rng, 40)
    data = (*sums_and_counts(first), *sums_and_counts(second))

    def mean_of_means(s1, n1, s2, n2, axis):  # type: ignore[no-untyped-def]
        return (s1.sum(axis) / n1.sum(axis) + s2.sum(axis) / n2.sum(axis)) / 2

    interval = joint_mean([first, second], FINE)
    assert interval.value == pytest.approx(
        np.mean([*map(np.mean, (list(first.values()), list(second.values())))])
    )
    assert_close_to(interval, scipy_interval(data, mean_of_means))
    assert (interval.n, interval.prompts) == (len(first.keys() | second.keys()), 40)


def test_repeating_every_video_adds_no_certainty() -> None:
    values = np.random.default_rng(3).uniform(size=30)
    once = bootstrap_ci(one_each(values), RESAMPLER)
    repeated = {Key(f"{i:04d}", k): float(v) for i, v in enumerate(values) for k in range(5)}
    again = bootstrap_ci(repeated, RESAMPLER)
    assert again[:3] == pytest.approx(once[:3], abs=1e-12)
    assert (again.n, again.prompts) == (150, 30)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(4)
    resampler = Resampler(resamples=500)
    hits = 0
    for _ in range(400):
        interval = bootstrap_ci(clusters(rng, prompts=60), resampler)
        assert interval.lo is not None and interval.hi is not None
        hits += interval.lo <= 0.6 <= interval.hi
    assert 0.90 <= hits / 400 <= 0.98


@settings(max_examples=50)
@given(scores=SCORES, data=st.data())
def test_order_of_rows_changes_nothing(scores: dict[Key, float], data: st.DataObject) -> None:
    shuffled = dict(data.draw(st.permutations(list(scores.items()))))
    assert bootstrap_ci(shuffled, RESAMPLER) == bootstrap_ci(scores, RESAMPLER)


@settings(max_examples=50)
@given(scores=SCORES)
def test_ends_lie_within_the_scores(scores: dict[Key, float]) -> None:
    interval = bootstrap_ci(scores, RESAMPLER)
    if interval.lo is not None and interval.hi is not None:
        assert min(scores.values()) - 1e-12 <= interval.lo <= interval.hi <= max(scores.values()) + 1e-12


def test_another_seed_draws_otherwise_and_the_same_seed_the_same() -> None:
    scores = one_each(np.random.default_rng(5).uniform(size=20))
    assert bootstrap_ci(scores, Resampler(seed=0)) == bootstrap_ci(scores, Resampler(seed=0))
    assert bootstrap_ci(scores, Resampler(seed=0)) != bootstrap_ci(scores, Resampler(seed=1))


@settings(max_examples=50)
@given(scores=SCORES)
def test_nothing_differs_from_itself(scores: dict[Key, float]) -> None:
    interval = paired_difference(scores, scores, RESAMPLER)
    assert interval.value == 0.0
    assert interval.lo in (None, 0.0) and interval.hi in (None, 0.0)


def test_only_videos_that_both_have_are_compared() -> None:
    a = {Key("p", 0): 0.9, Key("q", 0): 0.5, Key("only a", 0): 0.0}
    b = {Key("p", 0): 0.4, Key("q", 0): 0.4, Key("q", 1): 1.0}
    interval = paired_difference(a, b, RESAMPLER)
    assert interval.value == pytest.approx(0.3)
    assert interval[1:] == (pytest.approx(0.1), pytest.approx(0.5), 2, 2)


def test_pairing_removes_the_difficulty_of_prompts() -> None:
    rng = np.random.default_rng(6)
    difficulty = rng.uniform(0.1, 0.9, size=50)
    a, b = one_each(difficulty + 0.02 + rng.normal(0, 0.01, 50)), one_each(difficulty)
    difference, single = paired_difference(a, b, RESAMPLER), bootstrap_ci(a, RESAMPLER)
    assert difference.lo is not None and difference.hi is not None and single.lo is not None
    assert 0.0 < difference.lo < 0.02 < difference.hi
    assert single.hi is not None and (difference.hi - difference.lo) < 0.1 * (single.hi - single.lo)


def test_joint_difference_is_the_difference_of_joint_means() -> None:
    rng = np.random.default_rng(8)
    a = [one_each(rng.uniform(size=n)) for n in (10, 25)]
    b = [{key: float(rng.uniform()) for key in scores} for scores in a]
    difference = paired_joint_difference(a, b, RESAMPLER)
    means = joint_mean(a, RESAMPLER).value, joint_mean(b, RESAMPLER).value
    assert means[0] is not None and means[1] is not None
    assert difference.value == pytest.approx(means[0] - means[1], abs=1e-12)


def test_joint_mean_needs_every_dimension() -> None:
    full = one_each([0.2, 0.8])
    assert joint_mean([full, {}], RESAMPLER)[:3] == (None, None, None)
    assert joint_mean([], RESAMPLER)[:3] == (None, None, None)
    assert joint_mean([full, {Key("0000", 0): 1.0}], RESAMPLER)[:3] == (0.75, None, None)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_must_be_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        bootstrap_ci(one_each([0.1, bad]), RESAMPLER)


@pytest.mark.parametrize("arguments", [{"resamples": 0}, {"confidence": 1.0}, {"confidence": 0.0}])
def test_senseless_settings_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected at least 1 resample"):
        Resampler(**arguments)  # type: ignore[arg-type]


def test_a_large_table_takes_well_under_five_seconds() -> None:
    rng = np.random.default_rng(9)
    table = [one_each(rng.uniform(size=100)) for _ in range(60 * 12)]
    start = time.process_time()
    for scores in table:
        bootstrap_ci(scores, RESAMPLER)
    assert time.process_time() - start < 5.0


def skew(confidence: float = 0.95, bounds: tuple[float, float] | None = None) -> Resampler:
    return Resampler(kind="skew-t", confidence=confidence, bounds=bounds)


def test_without_skewness_the_interval_is_students() -> None:
    """Symmetric values, one video a prompt: SciPy's t interval of the mean."""
    values = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    found = bootstrap_ci({Key(str(i), 0): float(v) for i, v in enumerate(values)}, skew())
    error = values.std(ddof=1) / np.sqrt(len(values))
    lo, hi = scipy_stats.t.interval(0.95, len(values) - 1, loc=values.mean(), scale=error)
    assert (found.value, found.lo, found.hi) == pytest.approx((0.4, lo, hi))


def test_with_skewness_it_is_halls_cubic_solved() -> None:
    """The transformed ends must be Student's quantiles: g1(T) = T + g T^2/3 + g^2 T^3/27 + g/6."""
    values = np.random.default_rng(0).beta(4.0, 0.4, 40)
    found = bootstrap_ci({Key(str(i), 0): float(v) for i, v in enumerate(values)}, skew())
    n = len(values)
    error = values.std(ddof=1) / np.sqrt(n)
    g = ((values - values.mean()) ** 3).sum() / n**3 * (n / (n - 1)) ** 1.5 / error**3
    for end, probability in ((found.lo, 0.975), (found.hi, 0.025)):
        t = (values.mean() - end) / error
        assert t + g * t**2 / 3 + g**2 * t**3 / 27 + g / 6 == pytest.approx(
            scipy_stats.t.ppf(probability, n - 1)
        )
    assert found.value is not None and found.hi is not None and found.lo is not None
    assert found.hi - found.value < found.value - found.lo, "the tail is below"


def test_ends_stay_within_the_bounds_of_a_score_and_hold_the_mean() -> None:
    scores = {Key(str(i), 0): v for i, v in enumerate([1.0, 1.0, 1.0, 0.9])}
    free, bound = bootstrap_ci(scores, skew()), bootstrap_ci(scores, skew(bounds=(0.0, 1.0)))
    assert free.lo == bound.lo and free.hi is not None and bound.hi is not None
    assert bound.hi == min(free.hi, 1.0)
    outside = bootstrap_ci({Key(str(i), 0): 1.5 for i in range(3)}, skew(bounds=(0.0, 1.0)))
    assert (outside.lo, outside.value, outside.hi) == (1.5, 1.5, 1.5)
    zeros = {key: 0.0 for key in scores}
    difference = paired_difference(zeros, scores, skew(bounds=(0.0, 1.0)))
    assert difference.lo is not None and difference.lo < -0.9, "a difference has no bounds"


def test_a_cosine_keeps_its_negative_end_and_a_mean_has_the_mean_of_the_bounds() -> None:
    resampler = replace(skew(bounds=(0.0, 1.0)), ranges={"cosine": (-1.0, 1.0)})
    scores = {Key(str(i), 0): v for i, v in enumerate([0.02, -0.03, 0.05, 0.01])}
    free = bootstrap_ci(scores, skew())
    assert free.lo is not None and free.lo < 0
    assert bootstrap_ci(scores, resampler.of("cosine")) == free
    assert bootstrap_ci(scores, resampler.of("color")).lo == 0.0
    assert resampler.of("color") is resampler
    assert resampler.over(["cosine", "color", "scene", "cosine "]).bounds == (-0.25, 1.0)
    assert resampler.unbounded().over(["cosine"]).bounds is None


@given(st.lists(st.floats(0, 1), min_size=2, max_size=40), st.integers(1, 3))
def test_the_interval_holds_the_mean_in_any_order(values: list[float], videos: int) -> None:
    scores = {Key(f"{i:03d}", j): v for i, v in enumerate(values) for j in range(1 + i % videos)}
    found = bootstrap_ci(scores, skew())
    assert found.value is not None and found.lo is not None and found.hi is not None
    assert found.lo <= found.value <= found.hi and np.isfinite([found.lo, found.hi]).all()
    assert bootstrap_ci(dict(reversed(scores.items())), skew()) == found
    assert bootstrap_ci({Key("a", 0): 0.5}, skew())[1:3] == (None, None)


@pytest.mark.parametrize("population", [(8.0, 2.0), (4.0, 0.4), (0.4, 0.2)])
def test_fifty_prompts_are_enough_for_the_nominal_coverage(population: tuple[float, float]) -> None:
    """600 simulated runs of four dimensions of one level, 17 to 50 prompts each; 93 to 97 % wanted, +-0.9."""
    rng, truth, hits = np.random.default_rng(1), population[0] / sum(population), 0
    for _ in range(600):
        level = rng.beta(*population, 50)
        dimensions = [
            {Key(f"{i:02d}", 0): float(level[i] + rng.uniform(-0.1, 0.1)) for i in range(0, 50, step)}
            for step in (1, 2, 3, 1)
        ]
        found = joint_mean(dimensions, skew())
        assert found.lo is not None and found.hi is not None
        hits += found.lo <= truth <= found.hi
    assert 0.92 <= hits / 600 <= 0.98


def test_scores_that_differ_by_next_to_nothing_have_an_interval() -> None:
    """The cube of their error is no number any more; the interval is that of the same scores, enlarged."""
    small = bootstrap_ci({Key(str(i), 0): i * 6e-141 for i in range(3)}, Resampler(kind="skew-t"))
    large = bootstrap_ci({Key(str(i), 0): i * 6.0 for i in range(3)}, Resampler(kind="skew-t"))
    assert small.lo is not None and large.lo is not None and small.hi is not None and large.hi is not None
    assert small.lo * 1e141 == pytest.approx(large.lo) and small.hi * 1e141 == pytest.approx(large.hi)
