"""Numbers of a sweep, planted by seed and setting, and the verdicts on claims that follow."""

import itertools

from randmix.reproduce import verdicts
from randmix.reproduce.claims import CLAIMS
from randmix.reproduce.numbers import Number, Numbers

SEEDS = range(5)


def numbers(experiment, metric, value, *, over, seeds=SEEDS, **settings):
    """One number per seed and combination of ``over``: ``value(seed, **combination)``.

    Names have "__" for dots.
    """
    found = Numbers()
    for values in itertools.product(*over.values()):
        at = dict(zip(over, values, strict=True))
        for seed in seeds:
            keys = {name.replace("__", "."): v for name, v in {**settings, **at}.items()}
            keys = {
                **{"data.name": "digits", "model.name": "resnet", "model.depth": 1},
                **{"model.smoothing_index": 0.0, "defense.epsilon": 0.0, **keys},
            }
            number = value(seed, **at) + 0.0001 * ((seed * 7 + len(found)) % 5)
            run = "-".join(map(str, (keys.get("model.depth"), keys.get("mode"), seed, *values)))
            found.append(Number(experiment, keys.get("mode", ""), keys, seed, metric, number, run))
    return found


def held_out(mode, total_steps):
    return {"floor": 0.4, "space": 0.5, "chans": 0.75, "full": 0.8}[mode]


def gate(value=held_out, model="resnet"):
    """The runs of the convergence gate."""
    over = {"mode": ("full", "chans", "space", "floor"), "total_steps": (10, 20)}
    return numbers(
        "convergence",
        "validation_accuracy",
        lambda seed, **at: value(**at),
        over=over,
        seeds=(0, 1),
        model__name=model,
    )


def judgement(id, *found, unfinished=0):
    all_records = Numbers(itertools.chain(*found))
    experiment = CLAIMS[id].experiment
    data = "" if experiment in ("E1", "E11") else "digits"
    (one,) = (one for one in verdicts.judge(all_records, {(id, data): (unfinished, 10)}))
    return one


def verdict(id, *found):
    return judgement(id, *found).verdict
