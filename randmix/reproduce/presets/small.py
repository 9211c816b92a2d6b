"""The presets on scikit-learn's digits, which need no data set: smoke and digits."""

from randmix.reproduce.presets.preset import CONVERGENCE, MODES, Preset, product, start
from randmix.reproduce.presets.runs import (
    BANKS,
    SHORT,
    convergence,
    defended,
    each,
    fractions,
    frozen_filters,
    kinds_of_filters,
    lattice,
    law,
    smoothings,
    unshuffling,
    with_checkpoints,
)


def smoke() -> Preset:
    """All of the code, in minutes."""
    short = {**SHORT, "log_every": 1, "steps": 3, "batch_size": 32, "model.depth": 1}
    short["data.validation"] = 0.1  # so that the gate's runs are those of E2 and E5
    small = {**short, "model.width": 4, "model.kernel_size": 3}
    resnet = start("resnet_cifar:digits", {**short, "model.width": 2})
    convmixer = start("digits", {**small, "model.patch_size": 2})
    e2 = product(resnet, {"mode": MODES})
    e4 = product(resnet, {"mode": MODES[:2], "model.width": (2, 3)})
    # Of three steps, each keeps its checkpoint.
    e5 = product(with_checkpoints({**convmixer, "eval_every": 1}), {"mode": MODES})
    gate = convergence(resnet, convmixer)
    every = (*(f"E{i}" for i in range(1, 16)), CONVERGENCE)
    return Preset(
        name="smoke",
        tier="laptop",
        purpose="Runs all of the code on the digits, in a few minutes: the smallest models train "
        "for three steps. Its numbers are meaningless.",
        runs={
            "E1": (),
            "E2": e2,
            "E3": kinds_of_filters(resnet, convmixer, multipliers=(1,), indices=(1,)),
            "E4": e4,
            "E5": e5,
            # A ResNet under attack compiles five times as long.
            "E6": [*e5[:2], *defended(e5[:2], 8)],
            "E7": smoothings(convmixer, (0, 1, 2)),
            "E8": smoothings(convmixer, (0,)),
            "E9": product(convmixer, {"mode": ("full",)}),
            "E10": unshuffling(
                start("unshuffle", small), widths=(4, 6), sizes=((1, 3),), space=(1, 3)
            ),
            "E11": (),
            "E12": fractions(convmixer, (0, 0.5, 1)),
            "E13": lattice(convmixer, resnet),
            "E14": frozen_filters(convmixer, ("random", "dct")),
            "E15": law(e2, e4, e5, gate),
            CONVERGENCE: gate,
        },
        attack={
            "epsilons": (0.0, 8.0, 64.0),
            "examples": 32,
            "strong_examples": 16,
            "steps": 2,
            "restarts": 1,
            "targets": 1,
            "queries": 2,
        },
        banks={"counts": (1, 4, 16), "kernel_size": 8, "seeds": 2},
        seeds=dict.fromkeys(every, 2),
    )


def digits() -> Preset:
    """The demonstration."""
    short = {**SHORT, **each(22), "epochs": 8.0}
    resnet = start("resnet_cifar:digits", {**short, "model.width": 4})
    convmixer = start("digits", {**short, "model.width": 32})
    shallow, middle = {**resnet, "model.depth": 1}, {**convmixer, "model.depth": 2}
    deep = {**convmixer, "model.depth": 4}
    e2 = product(with_checkpoints(resnet), {"model.depth": (1, 2), "mode": MODES})
    e4 = product(shallow, {"mode": MODES[:2], "model.width": (2, 4, 8)})
    e5 = product(with_checkpoints(convmixer), {"model.depth": (1, 2, 4), "mode": MODES})
    attacked = [run for run in (*e2, *e5) if run["mode"] in MODES[:2] and run["model.depth"] < 3]
    gate = convergence(shallow, middle)
    return Preset(
        name="digits",
        tier="laptop",
        purpose="This is the demonstration: every experiment on a small scale, on two CPU cores. "
        "Nearly every Full model comes close to 100 %, so gaps in accuracy are small whatever is "
        "frozen; one of the 360 test images is worth 0.28 percentage points.",
        runs={
            "E1": (),
            "E2": e2,
            "E3": kinds_of_filters(shallow, middle, indices=(1, 2)),
            "E4": e4,
            "E5": e5,
            "E6": [*attacked, *defended(attacked, 16)],
            "E7": smoothings(middle, (0, 1, 2)),
            "E8": smoothings(middle, (0,)),
            "E9": product(deep, {"mode": ("full",)}),
            "E10": unshuffling(
                start("unshuffle", {**SHORT, **each(44), "epochs": 12.0}),
                widths=(8, 16, 32),
                sizes=((1, 5), (3, 5), (4, 5), (3, 7)),  # the first reaches too little
                space=(3, 7),
            ),
            "E11": (),
            "E12": fractions(middle, (0, 0.1, 0.5, 1)),
            "E13": lattice(deep, shallow),
            "E14": frozen_filters(deep, BANKS),
            "E15": law(e2, e4, e5, gate),
            CONVERGENCE: gate,
        },
        attack={
            "epsilons": (0.0, 8.0, 16.0, 32.0, 64.0, 96.0),
            "examples": 360,
            "strong_examples": 120,
            "steps": 8,
            "restarts": 2,
            "targets": 3,
            "queries": 50,
        },
        banks={"counts": (1, 2, 4, 8, 16, 32, 64, 128, 256), "kernel_size": 8, "seeds": 5},
        # Three seeds decide large effects alone, which is all that a demonstration can show.
        seeds=dict.fromkeys(("E2", "E3", "E5", "E10", "E14"), 3),
    )
