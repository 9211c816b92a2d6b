"""Effects over seeds: mean, Student's t confidence interval, and the side of a threshold."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
CONFIRMED, REFUTED, UNDECIDED = "confirmed", "not confirmed", "not decided"


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
    with three. Equal values give an interval of width 0, however few the test images were.

    >>> interval = t_interval([1.0, 2.0, 3.0])
    >>> print(f"{interval.mean:.3f} from {interval.low:.3f} to {interval.high:.3f}")
    2.000 from -0.484 to 4.484
    """
    array = np.asarray(values, float)
    n = len(array)
    if not n or not np.isfinite(array).all():
        return Interval(math.nan, -math.inf, math.inf, n)
    mean = float(array.mean())
    if n < 2:
        return Interval(mean, -math.inf, math.inf, n)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1) * array.std(ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)


def differences(one: Mapping[int, float], other: Mapping[int, float]) -> dict[int, float]:
    """``one - other`` by seed, for the seeds that both have, in the order of the seeds.

    Runs of one seed share the data order and the initial values of weights of equal shape, so
    paired differences vary less than the runs themselves.
    """
    return {seed: one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())}


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Least-squares slope of y over x; NaN with fewer than two distinct x.

    >>> slope([0, 1, 2], [1, 3, 5])
    2.0
    """
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    if len(np.unique(xs)) < 2:
        return math.nan
    xs = xs - xs.mean()
    return float((xs * ys).sum() / (xs * xs).sum())


def slopes(by_x: Mapping[float, Mapping[int, float]]) -> list[float]:
    """Slopes over x, one for each seed that has a value at every x; [] with fewer than two x.

    Args:
        by_x: x -> seed -> value.
    """
    if len(by_x) < 2:
        return []
    seeds = set.intersection(*(set(values) for values in by_x.values()))
    return [slope([*by_x], [values[seed] for values in by_x.values()]) for seed in sorted(seeds)]


def outcome(interval: Interval, wants: str, threshold: float) -> str:
    """Compares an interval with a threshold.

    An interval that touches the threshold decides nothing: two untrained models that assign every
    image to the same class differ by exactly 0 with every seed.

    Args:
        interval: the effect's interval.
        wants: ">" or "<".
        threshold: the claim is "effect > threshold" or "effect < threshold".

    Returns:
        ``CONFIRMED`` if the entire interval is on the claim's side, ``REFUTED`` if all of it is on
        the other side, else ``UNDECIDED``.

    >>> outcome(Interval(2.0, 1.0, 3.0, 3), ">", 0.0)
    'confirmed'
    """
    if math.isnan(interval.mean):
        return UNDECIDED
    low, high = interval.low - threshold, interval.high - threshold
    if wants == "<":
        low, high = -high, -low
    if low > 0:
        return CONFIRMED
    return REFUTED if high < 0 else UNDECIDED


def all_of(outcomes: Sequence[str]) -> str:
    """Confirmed if all outcomes are, refuted if any is; otherwise, or without any, undecided."""
    if REFUTED in outcomes:
        return REFUTED
    return CONFIRMED if outcomes and set(outcomes) == {CONFIRMED} else UNDECIDED


def any_of(outcomes: Sequence[str]) -> str:
    """Confirmed if any outcome is, refuted if all are; otherwise, or without any, undecided."""
    if CONFIRMED in outcomes:
        return CONFIRMED
    return REFUTED if outcomes and set(outcomes) == {REFUTED} else UNDECIDED
