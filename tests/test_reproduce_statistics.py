"""Effects over seeds against SciPy's tests and regression."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from randmix.reproduce import statistics
from randmix.reproduce.statistics import CONFIRMED, REFUTED, UNDECIDED, Interval, outcome

numbers = st.floats(-100, 100).map(lambda x: round(x, 3))


@given(
    st.lists(st.tuples(numbers, numbers), min_size=2, max_size=8),
    st.sampled_from([0.9, 0.95, 0.99]),
)
def test_a_paired_interval_is_scipys(pairs, confidence):
    one, other = ({seed: pair[i] for seed, pair in enumerate(pairs)} for i in (0, 1))
    differences = [*statistics.differences(one, other).values()]
    if np.ptp(differences) < 1e-6:
        return  # SciPy warns of a loss of precision
    interval = statistics.t_interval(differences, confidence)
    expected = stats.ttest_rel([*one.values()], [*other.values()]).confidence_interval(confidence)
    np.testing.assert_allclose([interval.low, interval.high], expected, rtol=1e-6, atol=1e-6)
    assert interval.n == len(pairs)


def test_pairs_are_of_the_seeds_that_both_have():
    assert statistics.differences({0: 3.0, 1: 5.0, 7: 1.0}, {1: 1.0, 0: 1.0, 2: 9.0}) == {
        0: 2.0,
        1: 4.0,
    }


@pytest.mark.parametrize("values", [[], [1.0], [1.0, math.nan], [math.inf, 1.0]])
def test_too_little_decides_nothing(values):
    interval = statistics.t_interval(values)
    assert (interval.low, interval.high) == (-math.inf, math.inf)
    assert outcome(interval, ">", 0.0) == outcome(interval, "<", 0.0) == UNDECIDED


@given(
    st.lists(
        st.tuples(numbers, numbers),
        min_size=3,
        max_size=8,
        unique_by=lambda pair: round(pair[0], 1),
    )
)
def test_a_slope_is_scipys(points):
    x, y = zip(*points, strict=True)
    assert statistics.slope(x, y) == pytest.approx(stats.linregress(x, y).slope, rel=1e-6, abs=1e-9)


def test_a_slope_needs_two_places_and_is_of_the_seeds_that_have_all():
    assert math.isnan(statistics.slope([1, 1], [0, 5]))
    assert statistics.slopes({0: {0: 1.0, 1: 0.0}, 1: {0: 3.0}, 2: {0: 5.0, 1: 9.0}}) == [2.0]
    assert statistics.slopes({1: {0: 1.0}}) == []


@pytest.mark.parametrize(
    ("low", "high", "wants", "threshold", "expected"),
    [
        (0.1, 2.0, ">", 0.0, CONFIRMED),
        (-0.1, 2.0, ">", 0.0, UNDECIDED),
        (-2.0, -0.1, ">", 0.0, REFUTED),
        (0.0, 0.0, ">", 0.0, UNDECIDED),
        (0.0, 0.0, "<", 5.0, CONFIRMED),
        (4.0, 4.9, "<", 5.0, CONFIRMED),
        (4.0, 5.1, "<", 5.0, UNDECIDED),
        (5.1, 9.0, "<", 5.0, REFUTED),
    ],
)
def test_the_whole_interval_decides(low, high, wants, threshold, expected):
    assert outcome(Interval((low + high) / 2, low, high, 3), wants, threshold) == expected


def test_all_and_any():
    assert statistics.all_of([CONFIRMED, CONFIRMED]) == CONFIRMED
    assert statistics.all_of([CONFIRMED, UNDECIDED]) == UNDECIDED
    assert statistics.all_of([UNDECIDED, REFUTED]) == REFUTED
    assert statistics.any_of([UNDECIDED, CONFIRMED]) == CONFIRMED
    assert statistics.any_of([UNDECIDED, REFUTED]) == UNDECIDED
    assert statistics.any_of([REFUTED, REFUTED]) == REFUTED
    assert statistics.all_of([]) == statistics.any_of([]) == UNDECIDED
