"""Effects over seeds: a mean, its confidence interval by Student's t, and on which side of a threshold that lies."""

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
        mean: of the values; NaN without any.
        low, high: the interval's ends; infinite with fewer than two values.
        n: how many values.
    """

    mean: float
    low: float
    high: float
    n: int


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Student's interval for the mean of independent values, the two-sided one.

    With two values the interval is 12.7 times as wide as their standard error, with three 4.3 times. Values that are all
    equal give an interval without width: that seeds agree exactly doesn't say that the test images were many.

    >>> t_interval([1.0, 2.0, 3.0])
    Interval(mean=2.0, low=-0.48413771175033027, high=4.48413771175033, n=3)
    """
    values = np.asarray(values, float)
    n = len(values)
    if not n or not np.isfinite(values).all():
        return Interval(math.nan, -math.inf, math.inf, n)
    mean = float(values.mean())
    if n < 2:
        return Interval(mean, -math.inf, math.inf, n)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1) * values.std(ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)


def differences(one: Mapping[int, float], other: Mapping[int, float]) -> list[float]:
    """``one - other`` of the seeds that both have.

    Runs of one seed share their data order and, where they have the same shape, their initial values, so that the pairs
    vary less than the runs do.
    """
    return [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The least-squares slope of y over x; NaN with fewer than two different x.

    >>> slope([0, 1, 2], [1, 3, 5])
    2.0
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    if len(np.unique(x)) < 2:
        return math.nan
    x = x - x.mean()
    return float((x * y).sum() / (x * x).sum())


def slopes(by_x: Mapping[float, Mapping[int, float]]) -> list[float]:
    """The slope of each seed that has a value at every x.

    Args:
        by_x: x -> seed -> value.
    """
    if len(by_x) < 2:
        return []
    seeds = set.intersection(*(set(values) for values in by_x.values()))
    return [slope([*by_x], [values[seed] for values in by_x.values()]) for seed in sorted(seeds)]


def outcome(interval: Interval, wants: str, threshold: float) -> str:
    """Where an interval lies: wholly on the claim's side, wholly on the other, or on both.

    One that touches the threshold decides nothing: two untrained models that give every image the same class differ by
    exactly 0 with every seed.

    Args:
        interval: of the effect.
        wants: ">" or "<".
        threshold: the claim is "effect > threshold" or "effect < threshold".

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
    """Confirmed where every one is, refuted where any one is; not decided without any."""
    if REFUTED in outcomes:
        return REFUTED
    return CONFIRMED if outcomes and set(outcomes) == {CONFIRMED} else UNDECIDED


def any_of(outcomes: Sequence[str]) -> str:
    """Confirmed where any one is, refuted where every one is; not decided without any."""
    if CONFIRMED in outcomes:
        return CONFIRMED
    return REFUTED if outcomes and set(outcomes) == {REFUTED} else UNDECIDED
