"""Verdicts: the claims judged by the numbers, one family of primary claims for each data set."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

from randmix.experiments import statistics
from randmix.experiments.statistics import Interval, t_interval
from randmix.reproduce.claims import ABOVE, BELOW, CLAIMS, EXACTLY, Claim, Test
from randmix.reproduce.effects import Values, conditions
from randmix.reproduce.gates import NOT_MEASURED, Outcome
from randmix.reproduce.numbers import Numbers
from randmix.reproduce.titles import MODELS, MODES

METHOD = """\
An effect is one number per seed: a difference between runs of that seed, averaged over the sizes of
its experiment. Its 95 % interval over seeds is Student's t. Each claim has a one-sided test either
way at a level of 2.5 %:

    supported           the effect is on the claim's side of its threshold
    contradicted        the effect is on the other side
    practically equal   the difference lies within the margin (two one-sided tests at 5 % each)
    not decided         none of these
    not assessable      a gate failed: the experiment can't answer the question

The primary claims of a data set are one family, corrected for their number by Holm's method: any
false "supported" or "contradicted" among them has a probability of at most 5 %. A claim whose gate
failed stays in the family with p = 1. All other claims are secondary: their intervals and verdicts
are not corrected. A claim is looked at once, when all runs that it compares and those of its gates
are finished. Where the claim is that an effect is within a margin, supported means practically
equal. Of a primary claim with several effects, all must hold, and one on the other side contradicts
it. Intervals cover the variation over seeds (initial weights, data order, augmentation), not the
choice of the test set.
"""
SUPPORTED, CONTRADICTED, EQUAL = "supported", "contradicted", "practically equal"
NOT_DECIDED, NOT_ASSESSABLE = "not decided", "not assessable"
ONE_SIDED, EQUIVALENCE = 0.025, 0.05

# (claim, data set) -> (runs that aren't finished, planned runs)
Pending = Mapping[tuple[str, str], tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Result:
    """One effect, compared with its threshold.

    Attributes:
        condition: what a secondary claim is split by, in words; "" for a whole experiment.
        words, unit: of the effect.
        rule: the comparison in words.
        side, threshold: of the comparison.
        values: the effect by seed.
        interval: mean and 95 % interval over seeds.
        equal, margin: the interval of what may be practically equal, at 90 %, and its margin; None
            without one.
        p_supported, p_contradicted, p_equal: one-sided p-values, not corrected. Of a comparison
            within a threshold, ``p_supported`` is half the p-value of the test of equivalence.
        runs: the runs that the claim's numbers come from.
        verdict: a word of this module, as a secondary claim; *not assessable* if a gate failed.
    """

    condition: str
    words: str
    unit: str
    rule: str
    side: str
    threshold: float
    values: Values
    interval: Interval
    equal: Interval | None
    margin: float
    p_supported: float
    p_contradicted: float
    p_equal: float
    runs: Sequence[str]
    verdict: str = NOT_DECIDED

    @property
    def title(self) -> str:
        """The effect in words, and its condition if it has one."""
        return f"{self.words} ({self.condition})" if self.condition else self.words


@dataclasses.dataclass(frozen=True)
class Judgement:
    """The verdict on a claim for a data set.

    Attributes:
        claim: the claim.
        data: the data set; "" where there is none.
        results: its effects, the deciding ones first.
        gates: outcomes of its gates.
        p: the primary claim's p-value after Holm's correction; NaN for a secondary one.
        verdict: the headline.
        reason: why it, or a part of it, isn't decided or assessable; "" otherwise.
    """

    claim: Claim
    data: str
    results: tuple[Result, ...]
    gates: tuple[Outcome, ...]
    p: float
    verdict: str
    reason: str

    @property
    def deciding(self) -> Sequence[Result]:
        """The results that decide, of all parts of a split claim."""
        return _deciding(self.claim, self.results)


def judge(numbers: Numbers, pending: Pending) -> list[Judgement]:
    """Judges claims.

    Args:
        numbers: numbers of all experiments.
        pending: for each claim and data set ("" for none) that is to be judged, how many of the
            runs that it compares aren't finished, and how many there are.

    Returns:
        Judgements in the order of the data sets, then of the claims.
    """
    judged = []
    for data in dict.fromkeys(data for _, data in pending):
        of_data = numbers.where(data__name=data) if data else numbers
        family = [
            _examine(claim, data, of_data, pending)
            for claim in CLAIMS.values()
            if (claim.id, data) in pending
        ]
        judged += _corrected(family)
    return judged


def _examine(claim: Claim, data: str, numbers: Numbers, pending: Pending) -> Judgement:
    """A claim's effects and gates; a primary claim's headline still lacks the correction."""
    own = numbers.where(claim.experiment)
    own = own.where(model__name=claim.model) if claim.model else own
    parts = [*conditions(own, claim.split)] if claim.split and own else [own]
    examined = [_part(claim, part, numbers) for part in parts]
    by_test = zip(*(found for found, _ in examined), strict=True)
    results = tuple(itertools.chain.from_iterable(by_test))
    outcomes = tuple(itertools.chain.from_iterable(found for _, found in examined))
    reason = _reason(claim, results, outcomes)
    verdict = NOT_ASSESSABLE if reason and claim.primary else _headline(claim, results)
    unfinished, total = pending[claim.id, data]
    if unfinished:
        verdict, reason = NOT_DECIDED, f"{unfinished} of {total} runs aren't finished"
    return Judgement(claim, data, results, outcomes, math.nan, verdict, reason)


def _part(claim: Claim, part: Numbers, numbers: Numbers) -> tuple[list[Result], list[Outcome]]:
    """The effects and gates of a part of a claim, or of a whole one that isn't split."""
    condition = _in_words(part, claim.split)
    results = [_result(test, part, condition) for test in claim.tests]
    outcomes = [gate(part, numbers, condition) for gate in claim.gates]
    if not all(outcome.passed for outcome in outcomes):
        results = [dataclasses.replace(result, verdict=NOT_ASSESSABLE) for result in results]
    return results, outcomes


def _reason(claim: Claim, results: Sequence[Result], outcomes: Sequence[Outcome]) -> str:
    """Why a claim, or a part of it, isn't assessable; "" if it is."""
    if failed := [outcome.sentence for outcome in outcomes if not outcome.passed]:
        return f"a gate failed: {'; '.join(failed)}"
    unknown: dict[str, list[str]] = {}
    for result in _deciding(claim, results):
        if result.verdict == NOT_ASSESSABLE:
            test = next(test for test in claim.tests if test.effect.words == result.words)
            why = test.effect.unknown if result.values else NOT_MEASURED
            unknown.setdefault(why, []).append(result.title)
    return " and ".join(f"{why}: {'; '.join(titles)}" for why, titles in unknown.items())


def _result(test: Test, numbers: Numbers, condition: str) -> Result:
    values = test.effect.of(numbers)
    equal = [*test.equal.of(numbers).values()] if test.equal else []
    supported, contradicted = _p_values(test, [*values.values()])
    result = Result(
        condition,
        test.effect.words,
        test.effect.unit,
        test.rule,
        test.side,
        test.threshold,
        values,
        _exact(values) if test.side == EXACTLY else t_interval([*values.values()]),
        t_interval(equal, 1 - 2 * EQUIVALENCE) if test.equal else None,
        test.margin,
        supported,
        contradicted,
        statistics.p_within(equal, test.margin) if test.equal else 1.0,
        numbers.runs,
    )
    verdict = _words(supported, contradicted, result.p_equal)
    assessable = bool(values) and all(map(math.isfinite, values.values()))
    return dataclasses.replace(result, verdict=verdict if assessable else NOT_ASSESSABLE)


def _exact(values: Values) -> Interval:
    total = float(sum(values.values())) if values else math.nan
    return Interval(total, total, total, len(values))


def _p_values(test: Test, values: Sequence[float]) -> tuple[float, float]:
    """One-sided p-values for the claim and against it."""
    if not values:
        return 1.0, 1.0
    above, below = (p(values, test.threshold) for p in (statistics.p_above, statistics.p_below))
    if test.side == ABOVE:
        return above, below
    if test.side == BELOW:
        return below, above
    if test.side == EXACTLY:
        holds = values[0] == test.threshold
        return (0.0 if holds else 1.0), (1.0 if holds else 0.0)
    outside = min(above, statistics.p_below(values, -test.threshold))
    # Equivalence is tested at 5 % where the other sides are at 2.5 %.
    within = statistics.p_within(values, test.threshold) * ONE_SIDED / EQUIVALENCE
    return within, min(1.0, 2 * outside)


def _words(supported: float, contradicted: float, equal: float) -> str:
    """The verdict by p-values; where two words hold, both are said."""
    words = []
    if supported <= ONE_SIDED:
        words.append(SUPPORTED)
    elif contradicted <= ONE_SIDED:
        words.append(CONTRADICTED)
    if equal <= EQUIVALENCE:
        words.append(EQUAL)
    return " and ".join(words) or NOT_DECIDED


def _headline(claim: Claim, results: Sequence[Result]) -> str:
    """A secondary claim's headline: the word of its deciding effects, or their number by word."""
    words = [result.verdict for result in _deciding(claim, results)]
    if len(set(words)) == 1:
        return words[0]
    return ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))


def _deciding(claim: Claim, results: Sequence[Result]) -> Sequence[Result]:
    """The results, of all parts, of the tests that decide."""
    return results[: claim.deciding * (len(results) // len(claim.tests))]


def _corrected(family: Sequence[Judgement]) -> list[Judgement]:
    """Decides the primary claims of a data set, corrected for their number."""
    primary = [judgement for judgement in family if judgement.claim.primary]
    # The family is as large as the table says, whichever of its experiments were planned.
    others = sum(claim.primary for claim in CLAIMS.values()) - len(primary)
    sides = [_sides(judgement) for judgement in primary]
    adjusted = statistics.holm([*map(min, sides), *([1.0] * others)])
    decided = {
        judgement.claim.id: _decide(judgement, *side, p)
        for judgement, side, p in zip(primary, sides, adjusted, strict=False)
    }
    return [decided.get(judgement.claim.id, judgement) for judgement in family]


def _sides(judgement: Judgement) -> tuple[float, float]:
    """P-values for and against a primary claim: all of its deciding effects, or any."""
    if judgement.reason:
        return 1.0, 1.0
    deciding = judgement.deciding
    against = min(result.p_contradicted for result in deciding) * len(deciding)
    return max(result.p_supported for result in deciding), min(1.0, against)


def _decide(judgement: Judgement, supported: float, contradicted: float, p: float) -> Judgement:
    if judgement.reason:
        return dataclasses.replace(judgement, p=1.0)
    # The corrected p-value belongs to the side with the smaller one.
    sides = (p, 1.0) if supported <= contradicted else (1.0, p)
    equal = max((r.p_equal for r in judgement.deciding if r.equal), default=1.0)
    verdict = _words(*sides, equal)
    return dataclasses.replace(judgement, p=p, verdict=verdict)


def _in_words(numbers: Numbers, split: Sequence[str]) -> str:
    settings = numbers[0].settings if numbers else {}
    titles = {"model.name": MODELS.get, "mode": MODES.get, "model.multiplier": "m = {}".format}
    words = (titles[name](settings[name]) for name in split if settings.get(name) is not None)
    return ", ".join(filter(None, words))
