"""The paper's claims as rules: effect, threshold and verdict, fixed before any result was seen.

``METHOD`` says how; the report prints it. All claims are in one file, despite its length, so that
they can be compared.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from randmix.reproduce import statistics
from randmix.reproduce.records import BANKS, MODES, Records
from randmix.reproduce.statistics import CONFIDENCE, Interval, t_interval

METHOD = """\
A claim is judged by one or several *effects*. An effect has one value per seed; where two models
are compared, it is the difference between their runs of that seed. Its 95 % confidence interval
over seeds is Student's t. The effect is confirmed if the entire interval lies on the claim's side
of the threshold, not confirmed if it lies entirely on the other side, and not decided otherwise; a
single seed never decides. A claim about every size is confirmed if all of its effects are, and not
confirmed if at least one is not confirmed. Requiring all of them needs no correction for their
number; by chance alone, an effect exactly at its threshold is not confirmed in 2.5 % of cases.

The paper's words, in numbers:

    near          within NEAR = 5 percentage points of accuracy, or within NEAR_DB = 1 dB of PSNR
                  (a quarter more squared error)
    far worse     more than FAR = 10 percentage points below: twice the limit of "near"
    nothing       a gap under NOTHING = 1 percentage point, common between two seeds of one model
    no cost       clean accuracy lower by less than NOTHING
    shrinks       the slope of the gap over log2 of the width is below 0
    grows         the slope over log2 of the size is above 0
    robustness    accuracy under attack, averaged over all measured epsilons above 0
    over 25 %     relative to the unsmoothed model's accuracy, at the largest epsilon at which that
                  accuracy is at least 5 %
"""
NEAR, FAR, NOTHING, NEAR_DB = 5.0, 10.0, 1.0, 1.0
GAIN, LEFT = 25.0, 0.05
_SIZES = ("model.width", "model.depth", "model.kernel_size")
_TITLES = MODES | BANKS


@dataclasses.dataclass(frozen=True)
class Effect:
    """One measured part of a claim.

    Attributes:
        condition: the model, data set or size that it was measured on.
        what: the effect in words, for example "Full - Chans".
        unit: unit of the interval and the threshold.
        interval: mean and confidence interval over seeds.
        wants: ">" or "<": the claim's side of the threshold.
        threshold: the value that the claim compares the effect with.
        outcome: ``CONFIRMED``, ``REFUTED`` or ``UNDECIDED`` of ``statistics``.
        runs: names of the runs that it was measured on.
    """

    condition: str
    what: str
    unit: str
    interval: Interval
    wants: str
    threshold: float
    outcome: str
    runs: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim of the paper.

    Attributes:
        id: "1a", "1b" and so on.
        text: the claim in a sentence.
        source: the paper's figure and section.
        experiment: id of the experiment whose runs decide it.
        definition: how the verdict is computed, as the report says it.
        rule: computes the effects from the experiment's records.
        exists: True for a claim that something exists: all effects of one condition suffice.
            False: all effects must be confirmed.
    """

    id: str
    text: str
    source: str
    experiment: str
    definition: str
    rule: Callable[[Records], list[Effect]]
    exists: bool = False

    def judge(self, records: Records) -> list[Effect]:
        """Computes the effects from the records of all experiments."""
        return self.rule(records.where(self.experiment))

    def verdict(self, effects: Sequence[Effect]) -> str:
        """Combines the outcomes of the effects into one verdict."""
        if not self.exists:
            return statistics.all_of([effect.outcome for effect in effects])
        conditions = dict.fromkeys(effect.condition for effect in effects)
        return statistics.any_of(
            [
                statistics.all_of([e.outcome for e in effects if e.condition == c])
                for c in conditions
            ]
        )


def judge(records: Records, experiments: Sequence[str]) -> dict[str, tuple[str, list[Effect]]]:
    """Returns verdict and effects, by claim id, of all claims that the experiments can decide."""
    found = {}
    for claim in CLAIMS.values():
        if claim.experiment in experiments:
            effects = claim.judge(records)
            found[claim.id] = (claim.verdict(effects), effects)
    return found


def _effect(
    condition: str,
    what: str,
    unit: str,
    values: Sequence[float],
    wants: str,
    threshold: float,
    *records: Records,
    confidence: float = CONFIDENCE,
) -> Effect:
    interval = t_interval(values, confidence)
    runs = list(dict.fromkeys(run for part in records for run in part.runs))
    outcome = statistics.outcome(interval, wants, threshold)
    return Effect(condition, what, unit, interval, wants, threshold, outcome, runs)


def _differences(one: Records, other: Records, unit: str = "points") -> dict[int, float]:
    """``one - other`` by seed; of accuracies in percentage points, of PSNR in dB."""
    scale = 1 if unit == "dB" else 100
    differences = statistics.differences(one.by_seed(), other.by_seed())
    return {seed: scale * difference for seed, difference in differences.items()}


def _compare(
    records: Records,
    by: str,
    one: Any,
    other: Any,
    at: dict[str, Any],
    wants: str,
    threshold: float,
    unit: str = "points",
    note: str = "",
) -> Effect:
    """The effect ``one - other`` of two values of the setting ``by``, paired by seed.

    Args:
        records: records of one metric.
        by: "mode" or "model.filters".
        one, other: the two values.
        at: the condition that both share; ``note`` follows it in words.
        wants, threshold, unit: see ``Effect``.
    """
    first, second = (records.where(**{by: value}, **at) for value in (one, other))
    what = f"{_TITLES[one]} - {_TITLES[other]}"
    values = [*_differences(first, second, unit).values()]
    return _effect(_in_words(at) + note, what, unit, values, wants, threshold, first, second)


def _slope(
    condition: str,
    what: str,
    unit: str,
    records: Records,
    size: str,
    wants: str,
    by_seed: Callable[[Records], dict[int, float]],
) -> Effect:
    """The slope over log2 of a size, one per seed; ``by_seed`` gives the values at each size."""
    by_x = {math.log2(x): by_seed(records.where(**{size: x})) for x in records.values(size)}
    return _effect(condition, what, unit, statistics.slopes(by_x), wants, 0.0, records)


def _conditions(records: Records, *settings: str) -> list[dict[str, Any]]:
    """The combinations of settings that occur among records, sorted, as arguments of ``where``."""
    found = {tuple(record.settings.get(name) for name in settings) for record in records}
    return [dict(zip(settings, values, strict=True)) for values in sorted(found, key=_order)]


def _order(values: tuple[object, ...]) -> list[tuple[bool, float, str]]:
    """Sort key that orders numbers by size, 8 before 16, and puts strings after them."""
    return [(False, v, "") if isinstance(v, int | float) else (True, 0.0, str(v)) for v in values]


def _in_words(condition: dict[str, Any]) -> str:
    words = []
    for name, value in condition.items():
        short = name.rpartition(".")[2]
        words.append(str(value) if short == "name" else f"{short.replace('_', ' ')} {value}")
    return ", ".join(words)


def _gaps(records: Records, one: str, other: str, wants: str, threshold: float) -> list[Effect]:
    accuracy = records.where(metric="accuracy")
    return [
        _compare(accuracy, "mode", one, other, at, wants, threshold)
        for at in _conditions(accuracy, "data.name", "model.depth")
    ]


def _psnr_gaps(records: Records, mode: str) -> list[Effect]:
    psnr = records.where(metric="psnr")
    at_all = _conditions(
        psnr.where(mode=mode), "data.name", "model.depth", "model.kernel_size", "model.width"
    )
    return [_compare(psnr, "mode", "full", mode, at, "<", NEAR_DB, "dB") for at in at_all]


def _order_of_banks(records: Records) -> list[Effect]:
    chans = records.where(metric="accuracy", mode="chans")
    return [
        _compare(chans, "model.filters", better, worse, at, ">", 0.0)
        for at in _conditions(chans, "data.name", "model.depth")
        for better, worse in itertools.pairwise(BANKS)
    ]


def _gap_shrinks(records: Records) -> list[Effect]:
    def gaps(at_width: Records) -> dict[int, float]:
        return _differences(at_width.where(mode="full"), at_width.where(mode="chans"))

    effects = []
    for at in _conditions(records.where(metric="accuracy"), "data.name"):
        accuracy = records.where(metric="accuracy", **at)
        what, unit = "slope of Full - Chans", "points per doubling"
        effects.append(_slope(_in_words(at), what, unit, accuracy, "model.width", "<", gaps))
        if widths := accuracy.values("model.width"):
            largest = {**at, "model.width": widths[-1]}
            effects.append(_compare(accuracy, "mode", "full", "chans", largest, "<", NOTHING))
    return effects


def _robustness(
    records: Records, model: str, attacks: Sequence[str], *, defended: bool
) -> list[Effect]:
    attacked = records.where(model__name=model).attacked(defended)
    titles = {"fgsm": ", FGSM", "pgd2": ", PGD-2"}
    return [
        _compare(
            attacked.where(metric=name), "mode", "chans", "full", at, ">", 0.0, note=titles[name]
        )
        for at in _conditions(attacked, "data.name", "model.depth")
        for name in attacks
    ]


def _smoothing(records: Records) -> list[Effect]:
    effects = []
    for at in _conditions(records.where(metric="accuracy"), "data.name"):
        fgsm, clean = (records.where(metric=metric, **at) for metric in ("fgsm", "accuracy"))
        indices = [i for i in clean.values("model.smoothing_index") if i > 0]
        plain = fgsm.where(model__smoothing_index=0.0)
        epsilon = largest_epsilon(plain)
        if epsilon is None or not indices:
            continue
        confidence = 1 - (1 - CONFIDENCE) / len(indices)
        plain = plain.where(epsilon=epsilon)
        clean_plain = clean.where(model__smoothing_index=0.0)
        for index in indices:
            where = f"{_in_words(at)}, index {index:g}"
            smoothed = fgsm.where(model__smoothing_index=index, epsilon=epsilon)
            gains = relative_gains(plain, smoothed)
            what = f"relative gain at epsilon {epsilon:g}/255"
            effects.append(
                _effect(where, what, "%", gains, ">", GAIN, plain, smoothed, confidence=confidence)
            )
            both = clean_plain, clean.where(model__smoothing_index=index)
            what, losses = "clean accuracy lost", [*_differences(*both).values()]
            effects.append(
                _effect(where, what, "points", losses, "<", NOTHING, *both, confidence=confidence)
            )
    return effects


def largest_epsilon(plain: Records) -> float | None:
    """The largest epsilon above 0, in 1/255, at which mean accuracy over seeds is at least 5 %.

    None if there is no such epsilon.
    """
    left = [
        epsilon
        for epsilon in plain.values("epsilon")
        if epsilon > 0 and _mean(plain.where(epsilon=epsilon)) >= LEFT
    ]
    return max(left, default=None)


def relative_gains(plain: Records, smoothed: Records) -> list[float]:
    """Relative gain in accuracy of smoothed over plain filters, in per cent, one per seed.

    A seed with accuracy 0 for plain filters has no relative gain: its NaN leaves the effect
    undecided.
    """
    before, after = plain.by_seed(), smoothed.by_seed()
    return [
        100 * (after[seed] - before[seed]) / before[seed] if before[seed] else math.nan
        for seed in sorted(before.keys() & after.keys())
    ]


def _mean(records: Records) -> float:
    values = [record.value for record in records]
    return sum(values) / len(values) if values else 0.0


def _psnr_grows(records: Records) -> list[Effect]:
    effects = []
    for mode in ("full", "chans"):
        psnr = records.where(metric="psnr", mode=mode)
        for size in _SIZES:
            fixed = [other for other in _SIZES if other != size]
            for at in _conditions(psnr, "data.name", *fixed):
                line = psnr.where(**at)
                if len(line.values(size)) > 1:
                    what = f"slope over {size.rpartition('.')[2].replace('_', ' ')}"
                    where, unit = f"{mode.capitalize()}, {_in_words(at)}", "dB per doubling"
                    effects.append(_slope(where, what, unit, line, size, ">", Records.by_seed))
    return effects


def _more_filters_cover_more(records: Records) -> list[Effect]:
    def percent(at_count: Records) -> dict[int, float]:
        return {seed: 100 * value for seed, value in at_count.by_seed().items()}

    coverage = records.where(metric="coverage")
    what, unit = "slope of coverage", "points per doubling"
    return [_slope("random banks", what, unit, coverage, "filters", ">", percent)]


def _equations(records: Records) -> list[Effect]:
    effects = []
    for metric, what in (
        ("differs_from_equations", "counts that differ from the closed forms"),
        ("depends_on_kernel_size", "Chans counts that change with k"),
    ):
        values = [record.value for record in records.where(metric=metric)]
        if values:
            total = float(sum(values))
            exact = Interval(total, total, total, len(values))
            outcome = statistics.REFUTED if total else statistics.CONFIRMED
            effects.append(Effect("all models", what, "models", exact, "<", 1.0, outcome))
    return effects


_NEAR = (
    "Test accuracy of Full minus that of Chans, paired by seed, is under 5 percentage points at "
    "every depth on every data set."
)
_TABLE = (
    Claim(
        "1a",
        "Chans comes near Full on the separable ResNet at every depth.",
        "Fig. 2, 4.1.2",
        "E2",
        _NEAR,
        partial(_gaps, one="full", other="chans", wants="<", threshold=NEAR),
    ),
    Claim(
        "1b",
        "Chans comes near Full on the ConvMixer at every depth.",
        "Fig. 5, 4.2.1",
        "E5",
        _NEAR,
        partial(_gaps, one="full", other="chans", wants="<", threshold=NEAR),
    ),
    Claim(
        "1c",
        "Space is far worse than Chans on the separable ResNet.",
        "Fig. 2, 4.1.2",
        "E2",
        "Test accuracy of Chans minus that of Space, paired by seed, is over 10 percentage points "
        'at every depth on every data set ("consistently ... far worse").',
        partial(_gaps, one="chans", other="space", wants=">", threshold=FAR),
    ),
    Claim(
        "2",
        "Different > Same > Box > Identity.",
        "Fig. 3, 4.1.3",
        "E3",
        "Each of the three differences in test accuracy between neighbours in that order, paired "
        "by seed, is above 0.",
        _order_of_banks,
    ),
    Claim(
        "3",
        "The gap between Chans and Full shrinks to nothing as width grows.",
        "Fig. 4, 4.1.4",
        "E4",
        "Two effects on every data set: the slope of the difference in test accuracy, Full - "
        "Chans, over log2 of the base width, one slope per seed, is below 0 percentage points per "
        "doubling; and at the largest width Full - Chans, paired by seed, is under 1 percentage "
        "point.",
        _gap_shrinks,
    ),
    Claim(
        "4a",
        "Chans ResNets are more robust than Full ones without any defence.",
        "Fig. 6, 4.3.2",
        "E6",
        "Accuracy under FGSM and accuracy under PGD-2, each averaged over all measured epsilons "
        "above 0: for both, Chans minus Full, paired by seed, is above 0 at every depth.",
        partial(_robustness, model="resnet", attacks=("fgsm", "pgd2"), defended=False),
    ),
    Claim(
        "4b",
        "Chans ResNets are also more robust after training on FGSM samples.",
        "Fig. 6, 4.3.2",
        "E6",
        "Accuracy under FGSM of models trained on FGSM samples, averaged over all measured "
        "epsilons above 0: Chans minus Full, paired by seed, is above 0 at every depth.",
        partial(_robustness, model="resnet", attacks=("fgsm",), defended=True),
    ),
    Claim(
        "4c",
        "Chans ConvMixers are more robust than Full ones without any defence.",
        "4.3.3, by Fig. 6",
        "E6",
        "As 4a, on ConvMixers. Figure 6 shows ResNets; section 4.3.3 assumes the same of "
        "ConvMixers.",
        partial(_robustness, model="convmixer", attacks=("fgsm", "pgd2"), defended=False),
    ),
    Claim(
        "4d",
        "Chans ConvMixers are also more robust after training on FGSM samples.",
        "as 4b; ours",
        "E6",
        "As 4b, on ConvMixers, for which the paper shows no result.",
        partial(_robustness, model="convmixer", attacks=("fgsm",), defended=True),
    ),
    Claim(
        "5",
        "Smoothing the frozen filters raises robustness by over 25 % at the largest epsilon, at no "
        "cost in clean accuracy.",
        "Fig. 7, 4.3.3",
        "E7",
        "For at least one smoothing index both hold: accuracy under FGSM is over 25 % higher than "
        "with unsmoothed filters of the same seed, at the largest epsilon at which those keep at "
        "least 5 % on average; and clean test accuracy is lower by less than 1 percentage point. "
        "The indices share the error: each interval has the confidence 1 - 0.05 / (number of "
        "indices).",
        _smoothing,
        exists=True,
    ),
    Claim(
        "6a",
        "Un-shuffling: Chans comes near Full.",
        "Fig. 10, 11, 4.4",
        "E10",
        "Test PSNR of Full minus that of Chans, paired by seed, is under 1 dB at every width, "
        "depth and kernel size.",
        partial(_psnr_gaps, mode="chans"),
    ),
    Claim(
        "6b",
        "Un-shuffling: Space comes near Full.",
        "1 (Introduction)",
        "E10",
        'As 6a, for Space: the introduction credits "models that only learn spatial mixing", '
        "section 4.4 and the appendix those that learn only channel mixing. Space is run at a "
        "single depth and kernel size.",
        partial(_psnr_gaps, mode="space"),
    ),
    Claim(
        "6c",
        "Un-shuffling: PSNR grows with width, depth and kernel size.",
        "4.4, B",
        "E10",
        "For Full and Chans, and for each of width, depth and kernel size with the other two "
        "fixed: the slope of test PSNR over log2 of that size, one slope per seed, is above 0 dB "
        "per doubling.",
        _psnr_grows,
    ),
    Claim(
        "7",
        "More random filters cover more of the spectrum.",
        "Fig. 1, 3.1",
        "E1",
        "The slope of coverage (the share of frequencies at which the envelope exceeds half of its "
        "maximum) over log2 of the number of filters, one slope per bank, is above 0 percentage "
        "points per doubling.",
        _more_filters_cover_more,
    ),
    Claim(
        "8",
        "Equations 1 to 3 give the parameter counts; that of Chans doesn't depend on k.",
        "Eq. 1-3, 3.4",
        "E11",
        "Exact, without seeds: the number of models whose counted parameters differ from the "
        "closed forms in any mode is 0, and so is the number of models whose count of trainable "
        "parameters in Chans changes with the kernel size.",
        _equations,
    ),
)
CLAIMS = {claim.id: claim for claim in _TABLE}


def of(experiment: str) -> list[Claim]:
    """The claims that an experiment decides."""
    return [claim for claim in CLAIMS.values() if claim.experiment == experiment]
