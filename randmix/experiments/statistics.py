"""Effects over seeds: intervals, tests against thresholds, equivalence, and what is compared.

A value is one number per seed; a difference is between runs of one seed. All tests are Student's,
as in SciPy. Two rules hold for small samples: fewer than two values, or one that isn't finite,
decide nothing, and values that are all equal lie on a side of a threshold unless they touch it.
Numbers are equal if they agree to nine decimals: differences that cancel leave rounding errors,
which would otherwise be an effect without variance.
"""

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
_DECIMALS = 9


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval.

    Attributes:
        mean: mean of the values; NaN if there are none or one isn't finite.
        low, high: ends of the interval; infinite with fewer than two values or a NaN mean.
        n: number of values.
    """

    mean: float
    low: float
    high: float
    n: int


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Two-sided Student's t interval for the mean of independent values.

    At 95 % confidence the interval extends 12.7 standard errors to each side with two values, 4.3
    with three and 2.8 with five. Equal values give an interval of width 0.

    >>> interval = t_interval([1.0, 2.0, 3.0])
    >>> print(f"{interval.mean:.3f} from {interval.low:.3f} to {interval.high:.3f}")
    2.000 from -0.484 to 4.484
    """
    array = _rounded(values)
    n = len(array)
    if not n or not np.isfinite(array).all():
        return Interval(math.nan, -math.inf, math.inf, n)
    mean = float(array.mean())
    if n < 2:
        return Interval(mean, -math.inf, math.inf, n)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1) * array.std(ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)


def p_above(values: Sequence[float], threshold: float = 0.0) -> float:
    """One-sided p-value for a mean above a threshold; 1 where the values can't decide.

    >>> round(p_above([1.0, 2.0, 3.0]), 4)
    0.0371
    """
    distances = _rounded(np.asarray(values, float) - threshold)
    if len(distances) < 2 or not np.isfinite(distances).all():
        return 1.0
    with warnings.catch_warnings():  # equal values: SciPy warns, and its result is right
        warnings.simplefilter("ignore", RuntimeWarning)
        test: Any = stats.ttest_1samp(distances, 0.0, alternative="greater")
    return 1.0 if math.isnan(test.pvalue) else float(test.pvalue)


def p_below(values: Sequence[float], threshold: float = 0.0) -> float:
    """One-sided p-value for a mean below a threshold; 1 where the values can't decide."""
    return p_above([-value for value in values], -threshold)


def _rounded(values: Sequence[float] | np.ndarray) -> np.ndarray:
    return np.round(np.asarray(values, float), _DECIMALS)


def p_within(values: Sequence[float], margin: float) -> float:
    """P-value for a mean within +-margin: the larger of two one-sided tests (Schuirmann, 1987).

    At a level of 5 %, values are equivalent to 0 where the 90 % interval lies inside the margin.

    >>> round(p_within([0.1, 0.2, 0.0], margin=1.0), 4)
    0.002
    """
    return max(p_above(values, -margin), p_below(values, margin))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number by Holm's method (Scandinavian J. Statistics 6, 1979).

    Rejecting where an adjusted value is at most alpha gives any false rejection in the family a
    probability of at most alpha, whatever the dependence between the tests.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.maximum.accumulate(factors * np.asarray(p_values, float)[order])
    return np.minimum(adjusted, 1).tolist()


def differences(one: Mapping[int, float], other: Mapping[int, float]) -> dict[int, float]:
    """``one - other`` by seed, for the seeds that both have, in the order of the seeds.

    Runs of one seed share the data order and the initial values of weights of equal shape, so
    paired differences vary less than the runs themselves.
    """
    return {seed: one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())}


def mean_over(parts: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """The mean over parts, such as sizes, by seed, for the seeds that have a value in every part.

    >>> mean_over([{0: 1.0, 1: 2.0}, {0: 3.0}])
    {0: 2.0}
    """
    if not parts:
        return {}
    seeds = set.intersection(*(set(part) for part in parts))
    return {seed: sum(part[seed] for part in parts) / len(parts) for seed in sorted(seeds)}


def slopes(by_x: Mapping[float, Mapping[int, float]]) -> dict[int, float]:
    """Least-squares slopes over x by seed, for the seeds that have a value at every x.

    Args:
        by_x: x -> seed -> value; fewer than two x give {}.

    >>> slopes({0.0: {7: 1.0}, 1.0: {7: 3.0}, 2.0: {7: 5.0}})
    {7: 2.0}
    """
    if len(by_x) < 2:
        return {}
    found = {}
    for seed in sorted(set.intersection(*(set(values) for values in by_x.values()))):
        line: Any = stats.linregress([*by_x], [values[seed] for values in by_x.values()])
        found[seed] = float(line.slope)
    return found


def recovered_share(floor: float, part: float, full: float) -> float:
    """The share that ``part`` recovers of the way from ``floor`` to ``full``; NaN without a way.

    Where the way is short this ratio varies wildly; a difference of the ways is then the better
    test.

    >>> round(recovered_share(floor=0.4, part=0.7, full=0.8), 3)
    0.75
    """
    way = full - floor
    return (part - floor) / way if way else math.nan


def log_error_ratio(one: float, other: float) -> float:
    """Natural logarithm of the ratio of two error rates, from accuracies in [0, 1].

    Positive where ``one`` makes more errors than ``other``. It compares models at any level of
    accuracy: from 90 to 95 % is as far as from 98 to 99 %. Infinite or NaN where one of them makes
    no error.

    >>> round(log_error_ratio(0.90, 0.95), 4)
    0.6931
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.log(np.float64(1 - one)) - np.log(np.float64(1 - other)))


def halving_radius(epsilons: Sequence[float], accuracies: Sequence[float], clean: float) -> float:
    """The radius at which an attack halves a model's own clean accuracy ("epsilon50").

    It is the first crossing, interpolated linearly in log2 of the radius. Models are compared by
    the difference of log2 of their radii, in octaves.

    Args:
        epsilons: radii above 0, ascending.
        accuracies: accuracy under attack at each radius, in [0, 1].
        clean: accuracy without attack, above 0.

    Returns:
        The radius. It is censored where the grid doesn't contain the crossing: 0 where even the
        smallest radius leaves at most half, infinity where the largest leaves more than half, and
        NaN where ``clean`` is 0.

    >>> halving_radius([1.0, 2.0, 4.0], [0.9, 0.6, 0.4], clean=1.0) == 2**1.5
    True
    """
    radii, left = np.asarray(epsilons, float), np.asarray(accuracies, float)
    half = clean / 2
    if not clean > 0:
        return math.nan
    crossed = np.flatnonzero(left <= half)
    if not crossed.size:
        return math.inf
    first = crossed[0]
    if first == 0:
        return 0.0
    (above, below), (low, high) = left[first - 1 : first + 1], np.log2(radii[first - 1 : first + 1])
    return float(2 ** (low + (high - low) * (above - half) / (above - below)))
