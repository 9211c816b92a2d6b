"""What the paper claims, and what its numbers would have to be: effect, threshold, verdict. Settled before any result was seen.

A claim becomes one or several *effects*, each a number for every seed: a difference of runs of one seed wherever two are
compared. Over seeds it has a 95 % confidence interval (Student's t). It is confirmed where the whole interval lies on
the claim's side of the threshold, not confirmed where the whole interval lies on the other side, and not decided
otherwise, as with one seed always. A claim about every size is confirmed where each of its effects is, and not confirmed
where one isn't. Asking that all hold needs no correction for their number; that one fails is also what chance brings
about in 2.5 % of the effects that lie just at their threshold.

The words, in numbers:

    near          within NEAR = 5 percentage points of accuracy, or NEAR_DB = 1 dB of PSNR (a quarter more squared error)
    far worse     more than FAR = 10 percentage points below: twice as far as what still counts as near
    nothing       a gap under NOTHING = 1 percentage point, as close as two seeds of one model commonly are
    no cost       clean accuracy lower by less than NOTHING
    shrinks       the slope of the gap over log2 of the width is below 0
    grows         the slope over log2 of the size is above 0
    robustness    accuracy under attack, the mean over all epsilons above 0 that were measured
    over 25 %     relative to the accuracy of the unsmoothed model at the largest epsilon at which that has 5 % left

All claims stand in one file, long as it is, so that their rules can be read beside each other.
"""

import dataclasses
import inspect
import itertools
import math
from collections.abc import Callable, Sequence

from randmix.reproduce import statistics
from randmix.reproduce.records import Records
from randmix.reproduce.statistics import CONFIDENCE, Interval, t_interval

NEAR, FAR, NOTHING, NEAR_DB = 5.0, 10.0, 1.0, 1.0
GAIN, LEFT = 25.0, 0.05


@dataclasses.dataclass(frozen=True)
class Effect:
    """A part of a claim, measured.

    Attributes:
        condition: where: model, data set, size.
        what: the effect in words, "Full - Chans".
        unit: of the interval.
        interval: over seeds.
        wants: ">" or "<": the claim's side of the threshold.
        threshold: in the same unit.
        outcome: one of ``statistics``' three.
        runs: that it comes from.
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
        id: "1a", ...
        text: the claim.
        source: where the paper has it.
        experiments: whose runs decide it.
        judge: the effects; its docstring says how they are computed.
        exists: it's confirmed where one group of effects is, each group being those of one condition; else where
            all are.
    """

    id: str
    text: str
    source: str
    experiments: tuple[str, ...]
    judge: Callable[[Records], list[Effect]]
    exists: bool = False

    @property
    def definition(self) -> str:
        """How the verdict is computed, on one line."""
        return " ".join(inspect.getdoc(self.judge).split())

    def verdict(self, effects: Sequence[Effect]) -> str:
        """The verdict that the effects give together."""
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
    """The verdict and the effects of every claim that the experiments can decide, by the claim's id."""
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
    """one - other, paired by seed; accuracies in percentage points."""
    scale = 100 if unit == "points" else 1
    values = [scale * d for d in statistics.differences(one.by_seed(), other.by_seed())]
    return _effect(condition, " - ".join(names), unit, values, wants, threshold, one, other)


def _conditions(records: Records, *settings: str) -> list[dict[str, object]]:
    """The combinations of settings that occur, sorted."""
    found = {tuple(record.settings.get(name) for name in settings) for record in records}
    names = [name.replace(".", "__") for name in settings]
    return [dict(zip(names, values, strict=True)) for values in sorted(found, key=_order)]


def _order(values: tuple[object, ...]) -> list[tuple[bool, float, str]]:
    """Numbers by their size, 8 before 16, and texts after them."""
    return [(False, v, "") if isinstance(v, int | float) else (True, 0.0, str(v)) for v in values]


def _in_words(condition: dict[str, object]) -> str:
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
            *(accuracy.where(experiment, mode=m, **at) for m in modes),
            wants,
            threshold,
        )
        for at in _conditions(accuracy, "data.name", "model.depth")
    ]


@_claim(
    "1a", "Chans comes near Full on the separable ResNet at every depth.", "Fig. 2, 4.1.2", "E2"
)
def _chans_near_full_resnet(records: Records) -> list[Effect]:
    """Test accuracy of Full minus that of Chans, paired by seed, is under 5 percentage points at every depth of every
    data set."""
    return _gaps(records, "E2", ("full", "chans"), "<", NEAR)


@_claim("1b", "Chans comes near Full on the ConvMixer at every depth.", "Fig. 5, 4.2.1", "E5")
def _chans_near_full_convmixer(records: Records) -> list[Effect]:
    """Test accuracy of Full minus that of Chans, paired by seed, is under 5 percentage points at every depth of every
    data set."""
    return _gaps(records, "E5", ("full", "chans"), "<", NEAR)


@_claim("1c", "Space is far worse than Chans on the separable ResNet.", "Fig. 2, 4.1.2", "E2")
def _space_far_worse(records: Records) -> list[Effect]:
    """Test accuracy of Chans minus that of Space, paired by seed, is over 10 percentage points at every depth of every
    data set ("consistently ... far worse")."""
    return _gaps(records, "E2", ("chans", "space"), ">", FAR)


@_claim("2", "Different > Same > Box > Identity.", "Fig. 3, 4.1.3", "E3")
def _order_of_banks(records: Records) -> list[Effect]:
    """Each of the three differences in test accuracy of neighbours in that order, paired by seed, is above 0."""
    names = {"random": "Different", "same": "Same", "box": "Box", "identity": "Identity"}
    chans = records.where("E3", "accuracy", mode="chans")
    effects = []
    for at in _conditions(chans, "data.name", "model.depth"):
        for better, worse in itertools.pairwise(names):
            pair = (chans.where("E3", model__filters=bank, **at) for bank in (better, worse))
            effects.append(_compare(_in_words(at), (names[better], names[worse]), *pair, ">", 0.0))
    return effects


@_claim(
    "3", "The gap between Chans and Full shrinks to nothing as width grows.", "Fig. 4, 4.1.4", "E4"
)
def _gap_shrinks(records: Records) -> list[Effect]:
    """On every data set two effects: the slope of (Full - Chans) test accuracy over log2 of the base width, one slope a
    seed, is below 0 percentage points a doubling; and at the largest width Full - Chans, paired by seed, is under
    1 percentage point."""
    effects = []
    for at in _conditions(records.where("E4", "accuracy"), "data.name"):
        accuracy = records.where("E4", "accuracy", **at)
        widths = accuracy.values("model.width")
        gaps = {}
        for width in widths:
            full, chans = (
                accuracy.where("E4", mode=m, model__width=width).by_seed()
                for m in ("full", "chans")
            )
            gaps[math.log2(width)] = {
                s: 100 * (full[s] - chans[s]) for s in full.keys() & chans.keys()
            }
        what, unit = "slope of Full - Chans", "points a doubling"
        effects.append(
            _effect(_in_words(at), what, unit, statistics.slopes(gaps), "<", 0.0, accuracy)
        )
        if widths:
            ends = (
                accuracy.where("E4", mode=m, model__width=widths[-1]) for m in ("full", "chans")
            )
            where = f"{_in_words(at)}, width {widths[-1]}"
            effects.append(_compare(where, ("Full", "Chans"), *ends, "<", NOTHING))
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
            *(records.where("E6", attack, mode=mode, **at) for mode in ("chans", "full")),
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
    """Accuracy under FGSM, and under PGD-2, each the mean over all measured epsilons above 0, of Chans minus Full, paired by
    seed, is above 0 at every depth."""
    return _robustness(records, "resnet", ("fgsm", "pgd2"), defended=False)


@_claim(
    "4b",
    "Chans ResNets are more robust after training on FGSM samples, too.",
    "Fig. 6, 4.3.2",
    "E6",
)
def _robust_defended_resnet(records: Records) -> list[Effect]:
    """Of models trained on FGSM samples: accuracy under FGSM, the mean over all measured epsilons above 0, of Chans minus
    Full, paired by seed, is above 0 at every depth."""
    return _robustness(records, "resnet", ("fgsm",), defended=True)


@_claim(
    "4c",
    "Chans ConvMixers are more robust than Full ones without any defence.",
    "4.3.3, by Fig. 6",
    "E6",
)
def _robust_convmixer(records: Records) -> list[Effect]:
    """As 4a, on ConvMixers. Figure 6 is of ResNets; section 4.3.3 takes it to hold of ConvMixers."""
    return _robustness(records, "convmixer", ("fgsm", "pgd2"), defended=False)


@_claim(
    "4d",
    "Chans ConvMixers are more robust after training on FGSM samples, too.",
    "as 4b; ours",
    "E6",
)
def _robust_defended_convmixer(records: Records) -> list[Effect]:
    """As 4b, on ConvMixers, of which the paper shows nothing."""
    return _robustness(records, "convmixer", ("fgsm",), defended=True)


@_claim(
    "5",
    "Smoothing the frozen filters raises robustness by over 25 % at the largest epsilon, at no cost in clean accuracy.",
    "Fig. 7, 4.3.3",
    "E7",
    exists=True,
)
def _smoothing(records: Records) -> list[Effect]:
    """At one smoothing index at least both hold: accuracy under FGSM over that of unsmoothed filters of the same seed, at the
    largest epsilon at which those have 5 % left on average, is over 25 % higher; and clean test accuracy is lower by less
    than 1 percentage point. The indices share the error: intervals are of confidence 1 - 0.05 / their number."""
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
    """The largest epsilon at which the mean accuracy over seeds is at least 5 %; None where there is none above 0."""
    left = [
        epsilon
        for epsilon in plain.values("epsilon")
        if epsilon > 0 and _mean(plain.where("E7", epsilon=epsilon)) >= LEFT
    ]
    return max(left, default=None)


def relative_gains(plain: Records, smoothed: Records) -> list[float]:
    """How much more accuracy smoothed filters leave, in per cent of that of plain ones, seed by seed.

    A seed whose plain filters leave nothing has no relative gain, and makes the effect undecided (NaN).
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
            *(psnr.where("E10", mode=m, **at) for m in ("full", mode)),
            "<",
            NEAR_DB,
            "dB",
        )
        for at in at_all
    ]


@_claim("6a", "Un-shuffling: Chans comes near Full.", "Fig. 10, 11, 4.4", "E10")
def _chans_unshuffles(records: Records) -> list[Effect]:
    """Test PSNR of Full minus that of Chans, paired by seed, is under 1 dB at every width, depth and kernel size."""
    return _psnr_gaps(records, "chans")


@_claim("6b", "Un-shuffling: Space comes near Full.", "1 (Introduction)", "E10")
def _space_unshuffles(records: Records) -> list[Effect]:
    """As 6a, of Space: the introduction credits "models that only learn spatial mixing" where section 4.4 and the appendix
    have channels-only ones. It's run at one depth and kernel size only."""
    return _psnr_gaps(records, "space")


@_claim("6c", "Un-shuffling: PSNR grows with width, depth and kernel size.", "4.4, B", "E10")
def _psnr_grows(records: Records) -> list[Effect]:
    """For Full and Chans, and for each of width, depth and kernel size wherever the other two are the same: the slope of test
    PSNR over log2 of that size, one slope a seed, is above 0 dB a doubling."""
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
                        _effect(condition, what, "dB a doubling", slopes, ">", 0.0, line)
                    )
    return effects


@_claim("7", "More random filters cover more of the spectrum.", "Fig. 1, 3.1", "E1")
def _more_filters_cover_more(records: Records) -> list[Effect]:
    """The slope of coverage (the share of frequencies over half of the envelope's maximum) over log2 of the number of filters,
    one slope a bank, in percentage points a doubling, is above 0."""
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
            "random banks", "slope of coverage", "points a doubling", slopes, ">", 0.0, coverage
        )
    ]


@_claim(
    "8",
    "Equations 1 to 3 count the parameters; Chans' count doesn't depend on k.",
    "Eq. 1-3, 3.4",
    "E11",
)
def _equations(records: Records) -> list[Effect]:
    """Exact, without seeds: the number of models and modes whose counted parameters differ from the closed forms is 0, and so
    is the number of models whose Chans trains another number with another kernel size."""
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
