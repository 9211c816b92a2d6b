"""The paper's claims as rules: effect, threshold and verdict, fixed before any result was seen.

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

All claims are in one file, despite its length, so that their rules can be compared.
"""

import dataclasses
import inspect
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from randmix.reproduce import statistics
from randmix.reproduce.records import Records
from randmix.reproduce.statistics import CONFIDENCE, Interval, t_interval

NEAR, FAR, NOTHING, NEAR_DB = 5.0, 10.0, 1.0, 1.0
GAIN, LEFT = 25.0, 0.05


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
        experiments: ids of the experiments whose runs decide it.
        judge: computes the effects; its docstring, shown in the report, says how.
        exists: True for a claim that something exists: all effects of one condition suffice.
            False: all effects must be confirmed.
    """

    id: str
    text: str
    source: str
    experiments: tuple[str, ...]
    judge: Callable[[Records], list[Effect]]
    exists: bool = False

    @property
    def definition(self) -> str:
        """How the verdict is computed, as one line."""
        text = inspect.getdoc(self.judge)
        assert text, f"claim {self.id}: its judge has no docstring"
        return " ".join(text.split())

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


CLAIMS: dict[str, Claim] = {}


def _claim(id: str, text: str, source: str, *experiments: str, exists: bool = False) -> Callable:
    def add(judge: Callable[[Records], list[Effect]]) -> Callable[[Records], list[Effect]]:
        CLAIMS[id] = Claim(id, text, source, experiments, judge, exists)
        return judge

    return add


def judge(records: Records, experiments: Sequence[str]) -> dict[str, tuple[str, list[Effect]]]:
    """Returns verdict and effects, by claim id, of all claims that the experiments can decide."""
    found = {}
    for claim in CLAIMS.values():
        if set(claim.experiments) <= set(experiments):
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


def _compare(
    condition: str,
    names: tuple[str, str],
    one: Records,
    other: Records,
    wants: str,
    threshold: float,
    unit: str = "points",
) -> Effect:
    """The effect ``one - other``, paired by seed; differences of accuracy in percentage points."""
    scale = 100 if unit == "points" else 1
    values = [scale * d for d in statistics.differences(one.by_seed(), other.by_seed())]
    return _effect(condition, " - ".join(names), unit, values, wants, threshold, one, other)


def _conditions(records: Records, *settings: str) -> list[dict[str, Any]]:
    """The combinations of settings that occur among records, sorted, as arguments of ``where``."""
    found = {tuple(record.settings.get(name) for name in settings) for record in records}
    names = [name.replace(".", "__") for name in settings]
    return [dict(zip(names, values, strict=True)) for values in sorted(found, key=_order)]


def _order(values: tuple[object, ...]) -> list[tuple[bool, float, str]]:
    """Sort key that orders numbers by size, 8 before 16, and puts strings after them."""
    return [(False, v, "") if isinstance(v, int | float) else (True, 0.0, str(v)) for v in values]


def _in_words(condition: dict[str, Any]) -> str:
    words = []
    for name, value in condition.items():
        short = name.rpartition("__")[2]
        words.append(str(value) if short == "name" else f"{short.replace('_', ' ')} {value}")
    return ", ".join(words)


def _gaps(
    records: Records, experiment: str, modes: tuple[str, str], wants: str, threshold: float
) -> list[Effect]:
    accuracy = records.where(experiment, "accuracy")
    names = (modes[0].capitalize(), modes[1].capitalize())
    return [
        _compare(
            _in_words(at),
            names,
            accuracy.where(experiment, mode=modes[0], **at),
            accuracy.where(experiment, mode=modes[1], **at),
            wants,
            threshold,
        )
        for at in _conditions(accuracy, "data.name", "model.depth")
    ]


@_claim(
    "1a", "Chans comes near Full on the separable ResNet at every depth.", "Fig. 2, 4.1.2", "E2"
)
def _chans_near_full_resnet(records: Records) -> list[Effect]:
    """Test accuracy of Full minus that of Chans, paired by seed, is under 5 percentage points at
    every depth on every data set."""
    return _gaps(records, "E2", ("full", "chans"), "<", NEAR)


@_claim("1b", "Chans comes near Full on the ConvMixer at every depth.", "Fig. 5, 4.2.1", "E5")
def _chans_near_full_convmixer(records: Records) -> list[Effect]:
    """Test accuracy of Full minus that of Chans, paired by seed, is under 5 percentage points at
    every depth on every data set."""
    return _gaps(records, "E5", ("full", "chans"), "<", NEAR)


@_claim("1c", "Space is far worse than Chans on the separable ResNet.", "Fig. 2, 4.1.2", "E2")
def _space_far_worse(records: Records) -> list[Effect]:
    """Test accuracy of Chans minus that of Space, paired by seed, is over 10 percentage points at
    every depth on every data set ("consistently ... far worse")."""
    return _gaps(records, "E2", ("chans", "space"), ">", FAR)


@_claim("2", "Different > Same > Box > Identity.", "Fig. 3, 4.1.3", "E3")
def _order_of_banks(records: Records) -> list[Effect]:
    """Each of the three differences in test accuracy between neighbours in that order, paired by
    seed, is above 0."""
    names = {"random": "Different", "same": "Same", "box": "Box", "identity": "Identity"}
    chans = records.where("E3", "accuracy", mode="chans")
    effects = []
    for at in _conditions(chans, "data.name", "model.depth"):
        for better, worse in itertools.pairwise(names):
            one, other = (chans.where("E3", model__filters=b, **at) for b in (better, worse))
            pair = (names[better], names[worse])
            effects.append(_compare(_in_words(at), pair, one, other, ">", 0.0))
    return effects


@_claim(
    "3", "The gap between Chans and Full shrinks to nothing as width grows.", "Fig. 4, 4.1.4", "E4"
)
def _gap_shrinks(records: Records) -> list[Effect]:
    """Two effects on every data set: the slope of the difference in test accuracy, Full - Chans,
    over log2 of the base width, one slope per seed, is below 0 percentage points per doubling; and
    at the largest width Full - Chans, paired by seed, is under 1 percentage point."""
    effects = []
    for at in _conditions(records.where("E4", "accuracy"), "data.name"):
        accuracy = records.where("E4", "accuracy", **at)
        widths = accuracy.values("model.width")
        gaps = {}
        for width in widths:
            one, other = (
                accuracy.where("E4", mode=m, model__width=width).by_seed()
                for m in ("full", "chans")
            )
            gaps[math.log2(width)] = {
                s: 100 * (one[s] - other[s]) for s in one.keys() & other.keys()
            }
        what, unit = "slope of Full - Chans", "points per doubling"
        effects.append(
            _effect(_in_words(at), what, unit, statistics.slopes(gaps), "<", 0.0, accuracy)
        )
        if widths:
            full, chans = (
                accuracy.where("E4", mode=m, model__width=widths[-1]) for m in ("full", "chans")
            )
            where = f"{_in_words(at)}, width {widths[-1]}"
            effects.append(_compare(where, ("Full", "Chans"), full, chans, "<", NOTHING))
    return effects


def _robustness(
    records: Records, model: str, attacks: Sequence[str], *, defended: bool
) -> list[Effect]:
    records = Records(
        r
        for r in records.where("E6", model__name=model)
        if bool(r.settings["defense.epsilon"]) == defended and r.settings.get("epsilon", 0) > 0
    )
    titles = {"fgsm": "FGSM", "pgd2": "PGD-2"}
    return [
        _compare(
            f"{_in_words(at)}, {titles[attack]}",
            ("Chans", "Full"),
            records.where("E6", attack, mode="chans", **at),
            records.where("E6", attack, mode="full", **at),
            ">",
            0.0,
        )
        for at in _conditions(records, "data.name", "model.depth")
        for attack in attacks
    ]


@_claim(
    "4a", "Chans ResNets are more robust than Full ones without any defence.", "Fig. 6, 4.3.2", "E6"
)
def _robust_resnet(records: Records) -> list[Effect]:
    """Accuracy under FGSM and accuracy under PGD-2, each averaged over all measured epsilons above
    0: for both, Chans minus Full, paired by seed, is above 0 at every depth."""
    return _robustness(records, "resnet", ("fgsm", "pgd2"), defended=False)


@_claim(
    "4b",
    "Chans ResNets are also more robust after training on FGSM samples.",
    "Fig. 6, 4.3.2",
    "E6",
)
def _robust_defended_resnet(records: Records) -> list[Effect]:
    """Accuracy under FGSM of models trained on FGSM samples, averaged over all measured epsilons
    above 0: Chans minus Full, paired by seed, is above 0 at every depth."""
    return _robustness(records, "resnet", ("fgsm",), defended=True)


@_claim(
    "4c",
    "Chans ConvMixers are more robust than Full ones without any defence.",
    "4.3.3, by Fig. 6",
    "E6",
)
def _robust_convmixer(records: Records) -> list[Effect]:
    """As 4a, on ConvMixers. Figure 6 shows ResNets; section 4.3.3 assumes the same of
    ConvMixers."""
    return _robustness(records, "convmixer", ("fgsm", "pgd2"), defended=False)


@_claim(
    "4d",
    "Chans ConvMixers are also more robust after training on FGSM samples.",
    "as 4b; ours",
    "E6",
)
def _robust_defended_convmixer(records: Records) -> list[Effect]:
    """As 4b, on ConvMixers, for which the paper shows no result."""
    return _robustness(records, "convmixer", ("fgsm",), defended=True)


@_claim(
    "5",
    "Smoothing the frozen filters raises robustness by over 25 % at the largest epsilon, "
    "at no cost in clean accuracy.",
    "Fig. 7, 4.3.3",
    "E7",
    exists=True,
)
def _smoothing(records: Records) -> list[Effect]:
    """For at least one smoothing index both hold: accuracy under FGSM is over 25 % higher than with
    unsmoothed filters of the same seed, at the largest epsilon at which those keep at least 5 % on
    average; and clean test accuracy is lower by less than 1 percentage point. The indices share the
    error: each interval has the confidence 1 - 0.05 / (number of indices)."""
    effects = []
    for at in _conditions(records.where("E7", "accuracy"), "data.name"):
        fgsm, clean = (records.where("E7", metric, **at) for metric in ("fgsm", "accuracy"))
        indices = [i for i in clean.values("model.smoothing_index") if i > 0]
        plain = fgsm.where("E7", model__smoothing_index=0.0)
        epsilon = largest_epsilon(plain)
        if epsilon is None or not indices:
            continue
        confidence = 1 - (1 - CONFIDENCE) / len(indices)
        plain = plain.where("E7", epsilon=epsilon)
        clean_plain = clean.where("E7", model__smoothing_index=0.0)
        for index in indices:
            smoothed = fgsm.where("E7", model__smoothing_index=index, epsilon=epsilon)
            where = f"{_in_words(at)}, index {index:g}"
            gains = relative_gains(plain, smoothed)
            what = f"relative gain at epsilon {epsilon:g}/255"
            effects.append(
                _effect(where, what, "%", gains, ">", GAIN, plain, smoothed, confidence=confidence)
            )
            other = clean.where("E7", model__smoothing_index=index)
            losses = [
                100 * d for d in statistics.differences(clean_plain.by_seed(), other.by_seed())
            ]
            what = "clean accuracy lost"
            effects.append(
                _effect(
                    where,
                    what,
                    "points",
                    losses,
                    "<",
                    NOTHING,
                    clean_plain,
                    other,
                    confidence=confidence,
                )
            )
    return effects


def largest_epsilon(plain: Records) -> float | None:
    """The largest epsilon above 0, in 1/255, at which mean accuracy over seeds is at least 5 %.

    None if there is no such epsilon.
    """
    left = [
        epsilon
        for epsilon in plain.values("epsilon")
        if epsilon > 0 and _mean(plain.where("E7", epsilon=epsilon)) >= LEFT
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


def _psnr_gaps(records: Records, mode: str) -> list[Effect]:
    psnr = records.where("E10", "psnr")
    names = ("Full", mode.capitalize())
    at_all = _conditions(
        psnr.where("E10", mode=mode), "data.name", "model.depth", "model.kernel_size", "model.width"
    )
    return [
        _compare(
            _in_words(at),
            names,
            psnr.where("E10", mode="full", **at),
            psnr.where("E10", mode=mode, **at),
            "<",
            NEAR_DB,
            "dB",
        )
        for at in at_all
    ]


@_claim("6a", "Un-shuffling: Chans comes near Full.", "Fig. 10, 11, 4.4", "E10")
def _chans_unshuffles(records: Records) -> list[Effect]:
    """Test PSNR of Full minus that of Chans, paired by seed, is under 1 dB at every width, depth
    and kernel size."""
    return _psnr_gaps(records, "chans")


@_claim("6b", "Un-shuffling: Space comes near Full.", "1 (Introduction)", "E10")
def _space_unshuffles(records: Records) -> list[Effect]:
    """As 6a, for Space: the introduction credits "models that only learn spatial mixing", section
    4.4 and the appendix those that learn only channel mixing. Space is run at a single depth and
    kernel size."""
    return _psnr_gaps(records, "space")


@_claim("6c", "Un-shuffling: PSNR grows with width, depth and kernel size.", "4.4, B", "E10")
def _psnr_grows(records: Records) -> list[Effect]:
    """For Full and Chans, and for each of width, depth and kernel size with the other two fixed:
    the slope of test PSNR over log2 of that size, one slope per seed, is above 0 dB per
    doubling."""
    sizes = ("model.width", "model.depth", "model.kernel_size")
    effects = []
    for mode in ("full", "chans"):
        psnr = records.where("E10", "psnr", mode=mode)
        for size in sizes:
            key = size.replace(".", "__")
            for at in _conditions(psnr, "data.name", *(other for other in sizes if other != size)):
                line = psnr.where("E10", **at)
                values = line.values(size)
                if len(values) > 1:
                    by_x = {math.log2(v): line.where("E10", **{key: v}).by_seed() for v in values}
                    what = f"slope over {size.rpartition('.')[2].replace('_', ' ')}"
                    condition = f"{mode.capitalize()}, {_in_words(at)}"
                    slopes = statistics.slopes(by_x)
                    effects.append(
                        _effect(condition, what, "dB per doubling", slopes, ">", 0.0, line)
                    )
    return effects


@_claim("7", "More random filters cover more of the spectrum.", "Fig. 1, 3.1", "E1")
def _more_filters_cover_more(records: Records) -> list[Effect]:
    """The slope of coverage (the share of frequencies at which the envelope exceeds half of its
    maximum) over log2 of the number of filters, one slope per bank, is above 0 percentage points
    per doubling."""
    coverage = records.where("E1", "coverage")
    by_x = {
        math.log2(count): {
            seed: 100 * value
            for seed, value in coverage.where("E1", filters=count).by_seed().items()
        }
        for count in coverage.values("filters")
    }
    slopes = statistics.slopes(by_x)
    return [
        _effect(
            "random banks", "slope of coverage", "points per doubling", slopes, ">", 0.0, coverage
        )
    ]


@_claim(
    "8",
    "Equations 1 to 3 give the parameter counts; that of Chans doesn't depend on k.",
    "Eq. 1-3, 3.4",
    "E11",
)
def _equations(records: Records) -> list[Effect]:
    """Exact, without seeds: the number of models whose counted parameters differ from the closed
    forms in any mode is 0, and so is the number of models whose count of trainable parameters in
    Chans changes with the kernel size."""
    effects = []
    for metric, what in (
        ("differs_from_equations", "counts that differ from the closed forms"),
        ("depends_on_kernel_size", "Chans counts that change with k"),
    ):
        values = [record.value for record in records.where("E11", metric)]
        if values:
            total, n = float(sum(values)), len(values)
            outcome = statistics.REFUTED if total else statistics.CONFIRMED
            effects.append(
                Effect(
                    "all models",
                    what,
                    "models",
                    Interval(total, total, total, n),
                    "<",
                    1.0,
                    outcome,
                )
            )
    return effects
