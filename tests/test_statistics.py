"""Effects over seeds against SciPy's tests, and what is compared against independent forms."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from randmix.experiments import statistics

numbers = st.floats(-100, 100).map(lambda x: round(x, 3))
pairs = st.lists(st.tuples(numbers, numbers), min_size=2, max_size=8)
probabilities = st.floats(0, 1)


def differences_of(pairs):
    one, other = ({seed: pair[i] for seed, pair in enumerate(pairs)} for i in (0, 1))
    return [*statistics.differences(one, other).values()], [*one.values()], [*other.values()]


@given(pairs, st.sampled_from([0.9, 0.95, 0.99]))
def test_a_paired_interval_is_scipys(pairs, confidence):
    differences, one, other = differences_of(pairs)
    if np.ptp(differences) < 1e-6:
        return  # SciPy warns of a loss of precision
    interval = statistics.t_interval(differences, confidence)
    expected = stats.ttest_rel(one, other).confidence_interval(confidence)
    np.testing.assert_allclose([interval.low, interval.high], expected, rtol=1e-6, atol=1e-6)
    assert interval.n == len(pairs)


@pytest.mark.parametrize("n", [3, 5])
def test_an_interval_covers_the_truth_as_often_as_it_says(n):
    draws = np.random.default_rng(n).normal(2.0, 3.0, (2000, n))
    intervals = [statistics.t_interval(draw) for draw in draws]
    covered = np.mean([interval.low < 2.0 < interval.high for interval in intervals])
    assert covered == pytest.approx(0.95, abs=0.01)


@pytest.mark.slow
@given(pairs, numbers)
def test_a_p_value_is_below_a_level_where_the_interval_excludes_the_threshold(pairs, threshold):
    differences, *_ = differences_of(pairs)
    above, below = (p(differences, threshold) for p in (statistics.p_above, statistics.p_below))
    for level in (0.025, 0.05):
        interval = statistics.t_interval(differences, 1 - 2 * level)
        if min(abs(interval.low - threshold), abs(interval.high - threshold)) > 1e-6:
            assert (above < level) == (interval.low > threshold)
            assert (below < level) == (interval.high < threshold)


@given(pairs, st.floats(0.1, 100))
def test_equivalence_is_an_interval_inside_the_margin(pairs, margin):
    differences, *_ = differences_of(pairs)
    interval = statistics.t_interval(differences, 0.9)
    if min(abs(interval.low + margin), abs(interval.high - margin)) > 1e-6:
        inside = -margin < interval.low and interval.high < margin
        assert (statistics.p_within(differences, margin) < 0.05) == inside


@pytest.mark.parametrize("values", [[], [1.0], [1.0, math.nan], [math.inf, 1.0]])
def test_too_little_decides_nothing(values):
    interval = statistics.t_interval(values)
    assert (interval.low, interval.high) == (-math.inf, math.inf)
    for p in (statistics.p_above, statistics.p_below):
        assert p(values) == 1
    assert statistics.p_within(values, 100) == 1


def test_equal_values_decide_unless_they_touch_the_threshold():
    assert statistics.p_above([1.0, 1.0, 1.0], 0.5) == statistics.p_below([1.0, 1.0], 1.5) == 0
    assert statistics.p_above([1.0, 1.0, 1.0], 1.0) == statistics.p_below([1.0, 1.0], 1.0) == 1
    assert statistics.p_within([0.0, 0.0], 0.5) == 0


def test_rounding_errors_are_no_effect():
    # Two sizes whose differences cancel, for every seed.
    left = [statistics.mean_over([{0: 0.9 - 0.8}, {0: 0.7 - 0.8}])[0]] * 3
    assert left[0] != 0
    for p in (statistics.p_above, statistics.p_below):
        assert p(left) == p([-x for x in left]) == p([1e-16, 2e-16, 3e-16]) == 1
        assert p([0.1 + 0.2] * 3, 0.3) == 1
    assert statistics.t_interval([1e-16, 1e-16]) == statistics.Interval(0, 0, 0, 2)


@given(st.lists(probabilities, min_size=1, max_size=5))
def test_holm_is_the_closure_of_bonferroni(values):
    """A hypothesis falls where Bonferroni rejects every intersection that contains it."""
    places = range(len(values))
    subsets = [s for n in places for s in itertools.combinations(places, n + 1)]
    expected = [
        max(min(1, len(s) * min(values[i] for i in s)) for s in subsets if place in s)
        for place in places
    ]
    np.testing.assert_allclose(statistics.holm(values), expected, rtol=1e-12)


def test_holm_of_nothing():
    assert statistics.holm([]) == []


def test_pairs_and_means_are_of_the_seeds_that_all_have():
    assert statistics.differences({0: 3.0, 1: 5.0, 7: 1.0}, {1: 1.0, 0: 1.0, 2: 9.0}) == {
        0: 2.0,
        1: 4.0,
    }
    assert statistics.mean_over([{0: 1.0, 1: 5.0}, {1: 7.0, 2: 0.0}]) == {1: 6.0}
    assert statistics.mean_over([]) == {}
    assert statistics.slopes({0: {0: 1.0, 1: 0.0}, 1: {0: 3.0}, 2: {0: 5.0, 1: 9.0}}) == {0: 2.0}
    assert statistics.slopes({1: {0: 1.0}}) == {}


@given(
    st.lists(
        st.tuples(numbers, numbers), min_size=3, max_size=8, unique_by=lambda p: round(p[0], 1)
    )
)
def test_a_slope_is_of_least_squares(points):
    by_x = {x: {3: y} for x, y in points}
    slope, _ = np.polyfit([*by_x], [y[3] for y in by_x.values()], 1)
    assert statistics.slopes(by_x)[3] == pytest.approx(slope, rel=1e-5, abs=1e-6)


@given(st.floats(0, 0.999), st.floats(0, 0.999))
def test_error_ratios(one, other):
    expected = math.log((1 - one) / (1 - other))
    assert statistics.log_error_ratio(one, other) == pytest.approx(expected, abs=1e-9)


def test_a_model_without_errors_has_no_ratio():
    assert statistics.log_error_ratio(1.0, 0.9) == -math.inf
    assert math.isnan(statistics.log_error_ratio(1.0, 1.0))


@given(st.floats(0.3, 1), st.floats(0.6, 5), st.floats(0.5, 4))
def test_the_halving_radius_of_a_known_curve(clean, octave, steepness):
    """``clean / (1 + (epsilon / e)^s)`` halves at e; the grid is fine enough for 0.01 octaves."""
    e = 2**octave
    epsilons = 2 ** np.arange(-1, 7, 0.05)
    accuracies = clean / (1 + (epsilons / e) ** steepness)
    radius = statistics.halving_radius(epsilons, accuracies, clean)
    assert abs(math.log2(radius / e)) < 0.01


@given(st.lists(probabilities, min_size=5, max_size=5), st.floats(0.2, 1))
def test_the_halving_radius_is_the_first_crossing(accuracies, clean):
    epsilons = [1.0, 2.0, 4.0, 8.0, 16.0]
    radius = statistics.halving_radius(epsilons, accuracies, clean)
    first = next((i for i, value in enumerate(accuracies) if value <= clean / 2), None)
    if first is None:
        assert radius == math.inf
    elif first == 0:
        assert radius == 0
    else:
        pair = slice(first - 1, first + 1)
        # np.interp needs ascending x: the accuracies, reversed.
        octaves = np.interp(clean / 2, accuracies[pair][::-1], np.log2(epsilons[pair])[::-1])
        assert math.log2(radius) == pytest.approx(octaves, abs=1e-6)


def test_a_model_that_is_always_wrong_has_no_radius():
    assert math.isnan(statistics.halving_radius([1.0], [0.0], 0.0))
