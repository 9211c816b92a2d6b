"""Made-up numbers of one data set with known effects: error rates and power of the verdicts.

    python tests/simulated_families.py

prints, over 2,000 families, how often any primary verdict is false where every effect is exactly at
its threshold, and how often a claim is supported one to three standard deviations beyond it. A
standard deviation is that of the paired difference over seeds. Of the three effects of claim 2',
which must all hold, one is at its threshold and the others are far beyond: there a false verdict is
likeliest. For the power both steps are equally far beyond.
"""

import math

import numpy as np

from randmix.reproduce import effects, verdicts
from randmix.reproduce.claims import CLAIMS
from randmix.reproduce.numbers import Number, Numbers

DATA = "made_up"
PRIMARY = tuple(claim.id for claim in CLAIMS.values() if claim.primary)
FINISHED = {
    (claim.id, DATA): (0, 10) for claim in CLAIMS.values() if claim.experiment not in ("E1", "E11")
}
SEEDS = range(5)
# Standard deviation over seeds of each primary effect, in its own unit.
DEVIATIONS = {"1a": 0.6, "1b": 0.6, "1c": 0.03, "2'": 0.5, "4a": 0.15, "4c": 0.15, "6a": 0.2}
EPSILONS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)
FLOOR, SPACE, FULL = 0.40, 0.55, 0.80
FAR = 10.0  # points between two ranks


def judged(shift, random):
    """Judges one family whose primary effects lie ``shift`` deviations beyond their thresholds."""
    found = verdicts.judge(family(shift, random), FINISHED)
    return {one.claim.id: one for one in found if one.claim.primary}


def family(shift, random):
    """Numbers in which each claim's effect is its threshold plus ``shift`` deviations, and noise.

    Runs of a seed share what moves them all, far more than modes differ, as in reality. Only the
    ResNets don't: the error ratio of claim 1c is of accuracies with the seed's part.
    """
    numbers = Numbers()
    for seed in SEEDS:

        def noise(claim):
            return DEVIATIONS[claim] * (shift + random.standard_normal())

        for experiment, model, claim in (("E2", "resnet", "1a"), ("E5", "convmixer", "1b")):
            chans = FLOOR + 0.9 * (FULL - FLOOR) + noise(claim) / 100
            space, common = SPACE, random.normal(0, 0.02)
            if claim == "1a":
                space, common = 1 - (1 - chans) * math.exp(math.log(1.25) + noise("1c")), 0.0
            accuracies = {"floor": FLOOR, "space": space, "chans": chans, "full": FULL}
            numbers += [
                number(experiment, "accuracy", value + common, seed, mode=mode, model=model)
                for mode, value in accuracies.items()
            ]
        far = 0.0 if shift else FAR
        numbers += ranked(seed, noise, far, lambda: random.normal(0, 0.001))
        for model, claim in (("resnet", "4a"), ("convmixer", "4c")):
            octave = {"full": 2.5, "chans": 2.5 + noise(claim)}
            for mode, middle in octave.items():
                numbers += attacked(seed, mode, model, middle)
        psnr = {"full": 25.0, "chans": 24.0 + noise("6a")}
        for mode, value in psnr.items():
            numbers.append(number("E10", "psnr", value, seed, mode=mode, run=f"{mode}{seed}"))
            numbers.append(number("E10", "reach", 0.95, seed, mode=mode, run=f"{mode}{seed}"))
            numbers.append(
                number("E10", "mean_image_psnr", 11.0, seed, mode=mode, run=f"{mode}{seed}")
            )
    return Numbers([*numbers, *converged()])


def ranked(seed, noise, far, jitter):
    """Claim 2': two steps between ranks, and three coverages at the highest rank.

    The second step is so many points further from its threshold than the first.
    """
    steps = noise("2'"), far + noise("2'")
    accuracy = {9: 0.7, 3: 0.7 - steps[0] / 100, 1: 0.7 - sum(steps) / 100}
    runs = [(rank, 0.0, 1.0, value) for rank, value in accuracy.items()]
    # Small noise about a slope of 0, so that the steps decide.
    runs += [(9, 0.5, 0.8, 0.7 + jitter()), (9, 1.0, 0.6, 0.7 + jitter())]
    return [
        number(
            "E3",
            "accuracy",
            value,
            seed,
            **{"model.filter_rank": rank, "bank_rank": rank, "bank_coverage": coverage},
            **{"model.smoothing_index": index},
        )
        for rank, index, coverage, value in runs
    ]


def attacked(seed, mode, model, middle):
    """Accuracies under FGSM that fall in a straight line in log2 of the radius, and a check."""
    about = {"mode": mode, "model": model, "defense.epsilon": 0.0}
    for epsilon in EPSILONS:
        octave = math.log2(epsilon) if epsilon else -math.inf
        left = 0.8 * min(1.0, max(0.0, 0.5 - (octave - middle) / 6)) if epsilon else 0.8
        for attack in effects.ATTACKS:
            yield number("E6", attack, left, seed, epsilon=epsilon, **about)
    yield number("E6", "check", 1.0, seed, check="it holds", **about)


def converged():
    """Runs of the gate whose effects don't change with the length."""
    return [
        number("convergence", "validation_accuracy", value, seed, mode=mode, model=model, steps=n)
        for mode, value in {"floor": FLOOR, "space": SPACE, "chans": 0.7, "full": FULL}.items()
        for model in ("resnet", "convmixer")
        for n in (100, 200)
        for seed in (0, 1)
    ]


def number(
    experiment, metric, value, seed, *, mode="chans", model="resnet", steps=100, run="", **more
):
    settings = {
        **{"data.name": DATA, "model.name": model, "model.width": 8, "model.depth": 1},
        **{"model.kernel_size": 3, "model.smoothing_index": 0.0, "mode": mode},
        **{"total_steps": steps, **more},
    }
    return Number(experiment, mode, settings, seed, metric, value, run or f"run{seed}")


def false_families(count, seed):
    """How many of so many families under the null have any false primary verdict."""
    random = np.random.default_rng(seed)
    false = (verdicts.SUPPORTED, verdicts.CONTRADICTED)
    return sum(
        any(word in one.verdict for one in judged(0.0, random).values() for word in false)
        for _ in range(count)
    )


def power(shift, count, seed):
    """The share of families in which each claim is supported, ``shift`` deviations beyond."""
    random = np.random.default_rng(seed)
    found = [judged(shift, random) for _ in range(count)]
    return {
        id: sum(verdicts.SUPPORTED in family[id].verdict for family in found) / count
        for id in PRIMARY
    }


if __name__ == "__main__":
    count = 2000
    print(f"any false verdict under the null: {false_families(count, 0) / count:.4f}")
    for shift in (1, 2, 3):
        print(f"power at {shift} deviations:", power(shift, count, shift))
