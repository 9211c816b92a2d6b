"""Gates: what must hold before a claim can be judged.

Where a gate fails, or couldn't be measured, the claim is *not assessable*: its effect may say more
about the experiment than about the claim.
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

from randmix.experiments.statistics import Interval, t_interval
from randmix.reproduce import effects
from randmix.reproduce.effects import SIZES, Effect, Values
from randmix.reproduce.numbers import Numbers
from randmix.reproduce.presets import CONVERGENCE

NOT_MEASURED = "not measured"
_CHANGE = 0.5  # points
_COVERAGE = 0.05
# With the mode, what tells the models under attack apart.
_MODEL = ("model.name", *SIZES, "model.smoothing_index", "defense.epsilon")


class Outcome(NamedTuple):
    """The outcome of a gate: its condition in words, whether it passed, and what was measured.

    ``part`` says for which part of a split claim, in words; "" for a whole experiment.
    ``failure`` says in a few words what it means that the gate failed.
    """

    words: str
    passed: bool
    detail: str
    part: str = ""
    failure: str = ""

    @property
    def sentence(self) -> str:
        """The outcome in one line."""
        return f"{self.words}{f' ({self.part})' if self.part else ''}: {self.detail}"


@dataclasses.dataclass(frozen=True)
class Gate:
    """A condition.

    Attributes:
        words: the condition, as the report says it.
        check: (the claim's numbers, all numbers of the data set) -> whether it passed, and what was
            measured.
        failure: what it means, in a few words, that it doesn't hold.
        experiment: id of the experiment that measures it; "" for the claim's own.
    """

    words: str
    check: Callable[[Numbers, Numbers], tuple[bool, str]]
    failure: str
    experiment: str = ""

    def __call__(self, own: Numbers, everything: Numbers, part: str = "") -> Outcome:
        """Checks the condition for a part of a claim."""
        return Outcome(self.words, *self.check(own, everything), part, self.failure)


def at_least(effect: Effect, least: float) -> Gate:
    """There is a way to go, as from Floor to Full: an effect has this mean over seeds at least."""

    def check(own: Numbers, everything: Numbers) -> tuple[bool, str]:
        mean = _mean(effect.of(own))
        return mean >= least, _measured(mean, effect.unit)

    value = f"{least:g} {effect.unit}"
    return Gate(f"{effect.words} is at least {value}", check, f"{effect.words} is below {value}")


def control_fails() -> Gate:
    """The control, which the paper says is far worse, doesn't pass the claim's own test."""
    effect = effects.recovered("space", effects.NEAR)

    def check(own: Numbers, everything: Numbers) -> tuple[bool, str]:
        interval = t_interval([*effect.of(own).values()])
        return interval.high < 0, _with_interval(interval, effect.unit)

    return Gate(
        f"the control fails: {effect.words} is below 0 with its whole interval",
        check,
        "Space, the control, may do as well",
    )


def converged(effect: Effect, threshold: float | None = 0.0, least: float = _CHANGE) -> Gate:
    """Training for twice as long, judged on held-out images, leaves the answer as it is.

    An effect far from its claim's threshold may change by more than one beside it: by half of its
    distance from the threshold. Two seeds and 5,000 images alone let an effect change by 0.6 points
    (one standard deviation), even where training changes nothing.

    Args:
        effect: the claim's effect, or one that stands for it.
        threshold: the claim's threshold; None for an effect that stands for the claim's, whose own
            distance from a threshold isn't known.
        least: what any effect may change by, in its unit.
    """
    change_words = " ".join((f"{least:.3g}", effect.unit)).strip()
    half_words = "" if threshold is None else f", or than half of its distance from {threshold:.3g}"

    def check(own: Numbers, everything: Numbers) -> tuple[bool, str]:
        models = own.values("model.name")
        found = [_change(effect, everything.where(CONVERGENCE, model__name=m)) for m in models]
        changes = [
            (abs(after - before), 0.0 if threshold is None else abs(before - threshold) / 2)
            for before, after in found
        ]
        if not changes or any(map(math.isnan, itertools.chain(*changes))):
            return False, NOT_MEASURED
        change, half = max(changes, key=lambda pair: pair[0] - max(least, pair[1]))
        detail = f"changes by {_measured(change, effect.unit)}"
        if threshold is not None:
            detail += f"; half of its distance is {half:.2f}"
        return change < max(least, half), detail

    return Gate(
        f"at twice the epochs, {effect.words} on held-out training images changes by less than "
        f"{change_words}{half_words}",
        check,
        "twice the epochs change the result",
        CONVERGENCE,
    )


def _change(effect: Effect, numbers: Numbers) -> tuple[float, float]:
    """The mean effect over the seeds that have both, with the shorter and the longer training."""
    held_out = effects.as_accuracy(numbers.where(metric="validation_accuracy"))
    lengths = held_out.values("total_steps")
    if len(lengths) != 2:
        return math.nan, math.nan
    short, long = (effect.of(held_out.where(total_steps=length)) for length in lengths)
    seeds = short.keys() & long.keys()
    return _mean({s: short[s] for s in seeds}), _mean({s: long[s] for s in seeds})


def attack_checks(*, defended: bool) -> Gate:
    """No sanity check of the attacks fails with more than one seed of a model.

    Training on FGSM samples can mask gradients, which says nothing of undefended models.

    Args:
        defended: whether the claim is about defended or about undefended models.
    """

    def check(own: Numbers, everything: Numbers) -> tuple[bool, str]:
        judged = [r for r in own.where(metric="check") if r.defended == defended]
        models: dict[tuple, list[float]] = collections.defaultdict(list)
        for number in judged:
            model = tuple(number.settings.get(name) for name in _MODEL)
            models[(number.settings["check"], number.mode, *model)].append(number.value)
        failed = {
            key[0] for key, passed in models.items() if passed.count(0.0) > min(1, len(passed) - 1)
        }
        if not models:
            return False, NOT_MEASURED
        return not failed, "; ".join(sorted(failed)) or f"{len(models)} checks of models"

    return Gate(
        "no sanity check of the attacks fails with more than one seed of a model",
        check,
        "sanity checks of the attacks fail",
    )


def an_index_is_free() -> Gate:
    """There is smoothing that costs no accuracy, whose robustness can then be judged."""

    def check(own: Numbers, everything: Numbers) -> tuple[bool, str]:
        least = min(effects.smoothing_losses(own).values(), default=math.nan)
        return least < effects.NO_COST, _measured(least, "points at least")

    return Gate(
        f"an index costs less than {effects.NO_COST:g} point of accuracy on held-out images",
        check,
        "every index costs accuracy",
    )


def reaches() -> Gate:
    """A model must see the pixels that it is to move."""

    def check(own: Numbers, everything: Numbers) -> tuple[bool, str]:
        reach = own.where(metric="reach")
        if not reach:
            return False, NOT_MEASURED
        largest = max(number.value for number in reach)
        return bool(effects.reaching(own)), f"at most {100 * largest:.0f} % of the pixels"

    return Gate(
        f"a size reaches {100 * effects.REACH:.0f} % of the pixels; smaller ones are left out",
        check,
        f"no size reaches {100 * effects.REACH:.0f} % of the pixels",
    )


def equal_coverage(*ranks: int) -> Gate:
    """Banks of these measured ranks are there, and cover equally much."""

    def check(own: Numbers, everything: Numbers) -> tuple[bool, str]:
        plain = effects.ranked(own).where(model__smoothing_index=0.0)
        found = plain.values("bank_coverage")
        if missing := {*ranks} - {*plain.values("bank_rank")}:
            measured = ", ".join(map(str, plain.values("bank_rank")))
            return False, f"rank {min(missing)} not measured; {measured or 'none'} were"
        apart = found[-1] / found[0] - 1 if found[0] else math.inf
        return apart <= _COVERAGE, f"{100 * apart:.1f} % apart"

    words = ", ".join(map(str, ranks))
    return Gate(
        f"the coverages of the ranks {words} are within {100 * _COVERAGE:g} %",
        check,
        "the ranks don't cover equally much",
    )


def gap_at_first() -> Gate:
    """There is a gap at the smallest width, which can then close."""
    effect = effects.gap_at(0, "smallest")

    def check(own: Numbers, everything: Numbers) -> tuple[bool, str]:
        interval = t_interval([*effect.of(own).values()])
        return interval.low > 0, _with_interval(interval, "points")

    failure = "at the smallest width no gap is seen that could close"
    return Gate(f"{effect.words} is above 0 with its whole interval", check, failure)


def _mean(values: Values) -> float:
    return sum(values.values()) / len(values) if values else math.nan


def _with_interval(interval: Interval, unit: str) -> str:
    if math.isnan(interval.mean):
        return NOT_MEASURED
    bounds = f"[{interval.low:.2f}, {interval.high:.2f}]".replace("-", "\N{MINUS SIGN}")
    return f"{_measured(interval.mean, unit)} {bounds}"


def _measured(value: float, unit: str) -> str:
    if math.isnan(value):
        return NOT_MEASURED
    return f"{value:.2f} {unit}".strip().replace("-", "\N{MINUS SIGN}")
