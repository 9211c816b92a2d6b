"""What claims compare: effects, which have one number per seed.

An effect compares runs of one seed and averages over the sizes (width, depth, kernel size) of its
experiment at which all that it compares was run, for the seeds that have a value at each of them.
Accuracies are compared in percentage points, PSNR in dB, robustness in octaves: differences of log2
of the radius that halves a model's own clean accuracy. All effects stand in this one file, so that
the table of claims has one place to read them; hence its length.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from randmix.experiments import statistics
from randmix.experiments.statistics import differences, mean_over, slopes
from randmix.reproduce.numbers import Numbers
from randmix.reproduce.titles import BANKS, MODES

Values = dict[int, float]
SIZES = ("model.width", "model.depth", "model.kernel_size")
# The thresholds and margins of claims that tables and figures draw, too.
NEAR = 0.9  # of the way from Floor to Full: near Full
WAY = 5.0  # points: the shortest way from Floor to Full of which a share says something
BANK_MARGIN = 0.5  # points between kinds of filters
RADIUS_MARGIN = 0.25  # octaves between halving radii
REACH = 0.9  # least share of the pixels that a model must reach to be judged on un-shuffling
MATCHED = 1.0  # largest difference in clean accuracy, in points, between matched checkpoints
NO_COST = 1.0  # largest loss of accuracy on held-out images, in points, that counts as free
ATTACKS = {"fgsm": "FGSM", "pgd2": "PGD-2", "strong": "the strong attack"}


@dataclasses.dataclass(frozen=True)
class Effect:
    """What is compared.

    Attributes:
        words: for example "Full - Chans".
        unit: "points", "dB" and so on.
        of: the values by seed, from the numbers of one experiment, data set and model.
        unknown: what it means, in a few words, that a value isn't finite.
    """

    words: str
    unit: str
    of: Callable[[Numbers], Values]
    unknown: str = "outside what was measured"


def points(one: str, other: str) -> Effect:
    """Difference in accuracy between two modes."""
    return Effect(
        f"{MODES[one]} - {MODES[other]}",
        "points",
        _accuracies(lambda by_mode: _difference(by_mode[one], by_mode[other]), one, other),
    )


def recovered(mode: str, share: float) -> Effect:
    """By how much a mode recovers more than a share of the way from Floor to Full.

    (mode - Floor) - share (Full - Floor), in points of accuracy.
    """

    def at_size(by_mode: dict[str, Values]) -> Values:
        part = _difference(by_mode[mode], by_mode["floor"])
        whole = _difference(by_mode["full"], by_mode["floor"])
        return differences(part, {seed: share * value for seed, value in whole.items()})

    words = f"({MODES[mode]} - Floor) - {share:g} (Full - Floor)"
    return Effect(words, "points", _accuracies(at_size, mode, "floor", "full"))


def recovered_share(mode: str) -> Effect:
    """What a mode recovers of the way from Floor to Full, in per cent."""

    def at_size(by_mode: dict[str, Values]) -> Values:
        seeds = set.intersection(*(set(values) for values in by_mode.values()))
        ends = [[by_mode[end][seed] for end in ("floor", mode, "full")] for seed in sorted(seeds)]
        shares = [100 * statistics.recovered_share(*accuracies) for accuracies in ends]
        return dict(zip(sorted(seeds), shares, strict=True))

    words = f"share recovered by {MODES[mode]} of the way from Floor to Full"
    return Effect(words, "%", _accuracies(at_size, "floor", mode, "full"))


def interaction() -> Effect:
    """What learning both roles brings beyond the sum of what each brings alone, in points.

    (Full - Floor) - (Space - Floor) - (Chans - Floor).
    """

    def at_size(by_mode: dict[str, Values]) -> Values:
        with_spatial = _difference(by_mode["full"], by_mode["space"])
        return differences(with_spatial, _difference(by_mode["chans"], by_mode["floor"]))

    return Effect(
        "Full - Space - Chans + Floor",
        "points",
        _accuracies(at_size, "floor", "space", "chans", "full"),
    )


def error_ratio(one: str, other: str) -> Effect:
    """Logarithm of the ratio of the error rates of two modes; positive where ``one`` is worse."""

    def at_size(by_mode: dict[str, Values]) -> Values:
        return {
            seed: statistics.log_error_ratio(by_mode[one][seed], by_mode[other][seed])
            for seed in by_mode[one].keys() & by_mode[other].keys()
        }

    words = f"log (error of {MODES[one]} / error of {MODES[other]})"
    return Effect(words, "", _accuracies(at_size, one, other))


def bank_step(one: str, other: str) -> Effect:
    """Difference in accuracy between Chans models with two kinds of frozen filters."""

    def of(numbers: Numbers) -> Values:
        chans = numbers.where(metric="accuracy", mode="chans", model__filter_rank=None)
        step = _apart(chans, Numbers.by_seed, *({"model__filters": bank} for bank in (one, other)))
        return {seed: 100 * value for seed, value in step.items()}

    return Effect(f"{BANKS[one]} - {BANKS[other]}", "points", of)


def rank_step(high: int, low: int) -> Effect:
    """Difference in accuracy between frozen unsmoothed banks of two measured ranks."""

    def of(numbers: Numbers) -> Values:
        plain = ranked(numbers).where(model__smoothing_index=0.0)
        return _difference(*(plain.where(bank_rank=rank).by_seed() for rank in (high, low)))

    return Effect(f"rank {high} - rank {low}, at one coverage", "points", of)


def coverage_slope() -> Effect:
    """Change of accuracy from the narrowest to the widest coverage at one rank.

    The least-squares slope over the banks' coverage times the range of coverages, averaged over
    ranks.
    """

    def at_rank(part: Numbers) -> Values:
        found = {}
        for seed in part.by_seed():
            own = [r for r in part if r.seed == seed]
            by_coverage = {r.settings["bank_coverage"]: {seed: r.value} for r in own}
            width = max(by_coverage) - min(by_coverage)
            found |= {s: 100 * width * slope for s, slope in slopes(by_coverage).items()}
        return found

    def of(numbers: Numbers) -> Values:
        chosen = ranked(numbers)
        parts = [at_rank(chosen.where(bank_rank=rank)) for rank in chosen.values("bank_rank")]
        return mean_over([part for part in parts if part])

    return Effect("widest - narrowest coverage, at one rank", "points", of)


def ranked(numbers: Numbers) -> Numbers:
    """Accuracies of Chans models whose filters have a chosen rank, with what was measured."""
    return Numbers(
        number
        for number in numbers.where(metric="accuracy", mode="chans")
        if number.settings.get("model.filter_rank") is not None and "bank_rank" in number.settings
    )


def gap_at(which: int, words: str) -> Effect:
    """Full - Chans at the smallest (0) or the largest (-1) width."""

    def of(numbers: Numbers) -> Values:
        widths = numbers.where(metric="accuracy", mode="full").values("model.width")
        chosen = numbers.where(model__width=widths[which]) if widths else Numbers()
        return points("full", "chans").of(chosen)

    return Effect(f"Full - Chans at the {words} width", "points", of)


def octaves(attack: str, *, defended: bool = False) -> Effect:
    """Difference of log2 of the halving radius under an attack, Chans - Full."""

    def of(numbers: Numbers) -> Values:
        attacked = Numbers(r for r in numbers.where(metric=attack) if r.defended == defended)
        return _apart(attacked, log_radii, {"mode": "chans"}, {"mode": "full"})

    return Effect(f"Chans - Full, halving radius under {ATTACKS[attack]}", "octaves", of)


def matched_octaves() -> Effect:
    """As ``octaves`` under FGSM, between checkpoints of equal clean accuracy.

    The model whose last checkpoint is the more accurate is represented by that of its checkpoints
    whose clean accuracy is closest to the other's; NaN if none is within ``MATCHED`` points.
    """

    def of(numbers: Numbers) -> Values:
        own = Numbers(r for r in numbers if not r.defended)
        return _over_sizes(own.where(metric="step_fgsm"), lambda at: _matched(own, at))

    words = f"Chans - Full at clean accuracies within {MATCHED:g} point, halving radius under FGSM"
    unknown = (
        f"for some seed no checkpoint comes within {MATCHED:g} point of the other model's "
        "accuracy, or a radius is outside the grid"
    )
    return Effect(words, "octaves", of, unknown)


def smoothing_octaves() -> Effect:
    """Smoothed - plain filters, at the largest index that costs no accuracy on held-out images."""

    def of(numbers: Numbers) -> Values:
        pair = ({"model__smoothing_index": index} for index in (free_index(numbers), 0.0))
        return _apart(numbers.where(metric="fgsm"), log_radii, *pair)

    return Effect(f"smoothed - plain, halving radius under {ATTACKS['fgsm']}", "octaves", of)


def free_index(numbers: Numbers) -> float | None:
    """The largest smoothing index above 0 whose loss of held-out accuracy is under ``NO_COST``."""
    losses = smoothing_losses(numbers)
    return max((index for index, loss in losses.items() if loss < NO_COST), default=None)


def smoothing_losses(numbers: Numbers) -> dict[float, float]:
    """The loss of held-out accuracy, in points, by smoothing index above 0; a mean over seeds."""
    held_out = numbers.where(metric="validation_accuracy")
    plain = held_out.where(model__smoothing_index=0.0).by_seed()
    found = {}
    for index in held_out.values("model.smoothing_index"):
        losses = _difference(plain, held_out.where(model__smoothing_index=index).by_seed())
        if index > 0 and losses:
            found[index] = sum(losses.values()) / len(losses)
    return found


def decibels(mode: str) -> Effect:
    """Difference in PSNR between Full and a mode, among the sizes that reach; see ``REACH``."""

    def of(numbers: Numbers) -> Values:
        psnr = reaching(numbers).where(metric="psnr")
        return _apart(psnr, Numbers.by_seed, {"mode": "full"}, {"mode": mode})

    return Effect(f"Full - {MODES[mode]}", "dB", of)


def above_mean_image() -> Effect:
    """PSNR of Full above that of the mean training image, among the sizes that reach."""

    def of(numbers: Numbers) -> Values:
        full = reaching(numbers).where(mode="full")
        return _apart(full, Numbers.by_seed, {"metric": "psnr"}, {"metric": "mean_image_psnr"})

    return Effect("Full - mean training image", "dB", of)


def psnr_slope(size: str) -> Effect:
    """Slope of PSNR over log2 of a size, averaged over the other sizes, among those that reach."""

    def of(numbers: Numbers) -> Values:
        psnr = reaching(numbers).where(metric="psnr")
        others = [name for name in (*SIZES, "mode") if name != size]
        lines = [
            slopes({math.log2(x): line.where(**{size: x}).by_seed() for x in line.values(size)})
            for line in conditions(psnr, others)
        ]
        return mean_over([line for line in lines if line])

    return Effect(f"slope over {size.rpartition('.')[2].replace('_', ' ')}", "dB per doubling", of)


def reaching(numbers: Numbers) -> Numbers:
    """The numbers of runs that reach at least ``REACH`` of the pixels."""
    runs = {r.run for r in numbers.where(metric="reach") if r.value >= REACH}
    return Numbers(number for number in numbers if number.run in runs)


def bank_coverage() -> Effect:
    """Slope of the coverage of random banks over log2 of their size."""

    def of(numbers: Numbers) -> Values:
        coverage = numbers.where(metric="coverage")
        by_count = {math.log2(n): coverage.where(filters=n) for n in coverage.values("filters")}
        found = slopes({x: part.by_seed() for x, part in by_count.items()})
        return {seed: 100 * slope for seed, slope in found.items()}

    return Effect("slope of coverage", "points per doubling", of)


def above_the_line() -> Effect:
    """By how much learning a share of the filters beats the straight line from Chans to Full.

    Averaged over the shares between 0 and 1.
    """

    def of(numbers: Numbers) -> Values:
        accuracy = numbers.where(metric="accuracy")
        ends = [accuracy.where(share=share).by_seed() for share in (0.0, 1.0)]
        whole = differences(ends[1], ends[0])
        above = [
            {
                seed: 100 * (value - ends[0][seed] - share * whole[seed])
                for seed, value in accuracy.where(share=share).by_seed().items()
                if seed in whole
            }
            for share in accuracy.values("share")
            if 0 < share < 1
        ]
        return mean_over(above)

    return Effect("accuracy - straight line from Chans to Full", "points", of)


def count(metric: str, words: str) -> Effect:
    """An exact number of models, without seeds: the sum over all of them."""

    def of(numbers: Numbers) -> Values:
        found = numbers.where(metric=metric)
        return {0: sum(number.value for number in found)} if found else {}

    return Effect(words, "", of)


def as_accuracy(numbers: Numbers) -> Numbers:
    """The numbers under the metric that effects compare."""
    return Numbers(dataclasses.replace(number, metric="accuracy") for number in numbers)


def conditions(numbers: Numbers, settings: Any) -> Iterator[Numbers]:
    """The numbers of each combination of settings that occurs."""
    found = dict.fromkeys(tuple(r.settings.get(name) for name in settings) for r in numbers)
    for values in found:
        yield numbers.where(**dict(zip(settings, values, strict=True)))


def _accuracies(
    at_size: Callable[[dict[str, Values]], Values], *modes: str
) -> Callable[[Numbers], Values]:
    """An effect of the accuracies of modes, each by seed, averaged over sizes."""
    return lambda numbers: _over_sizes(
        numbers.where(metric="accuracy"),
        lambda at: at_size({mode: at.where(mode=mode).by_seed() for mode in modes}),
    )


def _over_sizes(numbers: Numbers, at_size: Callable[[Numbers], Values]) -> Values:
    """The mean over the sizes at which there is anything to compare."""
    parts = [at_size(part) for part in conditions(numbers, SIZES)]
    return mean_over([part for part in parts if part])


def _apart(
    numbers: Numbers, of: Callable[[Numbers], Values], one: dict[str, Any], other: dict[str, Any]
) -> Values:
    """What one selection has of something beyond another, averaged over sizes."""
    return _over_sizes(numbers, lambda at: differences(of(at.where(**one)), of(at.where(**other))))


def _difference(one: Values, other: Values) -> Values:
    return {seed: 100 * value for seed, value in differences(one, other).items()}


def log_radii(attacked: Numbers) -> Values:
    """log2 of the radius (in 1/255) that halves accuracy, by seed; not finite where censored.

    Args:
        attacked: accuracies under one attack of one model, at several epsilons and at 0.
    """
    found = {}
    for seed in attacked.by_seed():
        curve = {r.settings["epsilon"]: r.value for r in attacked if r.seed == seed}
        epsilons = sorted(epsilon for epsilon in curve if epsilon > 0)
        radius = statistics.halving_radius(
            epsilons, [curve[epsilon] for epsilon in epsilons], curve.get(0.0, 0.0)
        )
        found[seed] = math.log2(radius) if radius > 0 else -math.inf if radius == 0 else math.nan
    return found


def _matched(own: Numbers, at: Numbers) -> Values:
    """``matched_octaves`` at one size: ``at`` holds that size's accuracies under FGSM by step."""
    size = {name: at[0].settings.get(name) for name in SIZES}
    clean = own.where(metric="step_accuracy", **size)
    found = {}
    for seed in at.where(mode="chans").by_seed().keys() & at.where(mode="full").by_seed().keys():
        ends = {mode: _by_step(clean, mode, seed) for mode in ("chans", "full")}
        last = {mode: by_step[max(by_step)] for mode, by_step in ends.items() if by_step}
        if len(last) < 2:
            continue
        target = min(last.values())
        radii, matched = {}, True
        for mode, by_step in ends.items():
            step = min(by_step, key=lambda step, of=by_step: (abs(of[step] - target), -step))
            matched &= 100 * abs(by_step[step] - target) <= MATCHED
            curve = Numbers(r for r in at.where(mode=mode, step=step) if r.seed == seed)
            radii[mode] = log_radii(curve).get(seed, math.nan)
        found[seed] = radii["chans"] - radii["full"] if matched else math.nan
    return found


def _by_step(clean: Numbers, mode: str, seed: int) -> dict[int, float]:
    return {r.settings["step"]: r.value for r in clean.where(mode=mode) if r.seed == seed}
