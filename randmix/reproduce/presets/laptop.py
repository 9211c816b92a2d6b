"""The presets of real data in the hours of two CPU cores.

Training is short: 8 epochs of CIFAR-10, of which E13's MetaFormers get 4, and 3 of MNIST and
Fashion-MNIST. The gates say where that is too little. The learning rates are those that a pilot
chose, one for each family of models and one for attention (docs/measurements.md).
"""

from randmix.models.metaformer import MIXERS
from randmix.reproduce.presets.preset import CONVERGENCE, MODES, Preset, Settings, product, start
from randmix.reproduce.presets.runs import (
    BANKS,
    SHORT,
    convergence,
    defended,
    each,
    filters_by_rank,
    fractions,
    frozen_filters,
    kinds_of_filters,
    lattice,
    law,
    smoothings,
    unshuffling,
    with_checkpoints,
)

_ATTACK = {
    "epsilons": (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0),
    "examples": 10_000,
    "strong_examples": 200,
    "steps": 20,
    "restarts": 2,
    "targets": 3,
    "queries": 100,
}
_CONVMIXER = {"optimizer.learning_rate": 0.03}
# In so few epochs, smaller batches and a cosine are worth 1.5 points to Full and Chans.
_RESNET = {
    **{"optimizer.learning_rate": 0.3, "batch_size": 64},
    **{"schedule.name": "cosine", "schedule.warmup": 0.1},
}
# As much augmentation and smoothing of labels as the other models' recipes have: none.
_METAFORMER = {
    **{"model.width": 64, "model.depth": 4, "batch_size": 128, "label_smoothing": 0.0},
    **{"data.crop_padding": 0, "data.randaugment": ""},
}
# With 0.01, attention that is learned loses 10 points.
_RATES = dict.fromkeys(MIXERS, 0.01) | {"attention": 0.003}
_BANKS = {"counts": (1, 2, 4, 8, 16, 32, 64, 128, 256), "kernel_size": 8, "seeds": 10}


def _short(epochs: float, steps: int) -> Settings:
    """Evaluates, and saves, once per epoch of so many steps: an interruption costs minutes."""
    return {**SHORT, **each(steps), "epochs": epochs, "checkpoint_every": steps}


def cifar10() -> Preset:
    """All experiments but un-shuffling, which 32 x 32 pixels make long."""
    # 45,000 to 50,000 images in batches of 128 (64): an epoch is 351 to 390 steps (703 to 781).
    data = {"data.name": "cifar10", "data.flip": True}
    short = {**_short(8.0, 390), **data}
    convmixer = start("convmixer_mnist", {**short, **_CONVMIXER})  # the recipe without RandAugment
    data |= {"data.crop_padding": 0, "model.depth": 1}
    resnet = start("resnet_cifar", {**_short(8.0, 781), **_RESNET, **data})
    middle, deep = ({**convmixer, "model.depth": depth} for depth in (2, 4))
    metaformer = start("metaformer_cifar", {**_short(4.0, 390), **data, **_METAFORMER})
    metaformers = [
        {**metaformer, "model.mixer": mixer, "optimizer.learning_rate": _RATES[mixer]}
        for mixer in MIXERS
    ]
    narrow = {**resnet, "model.width": 8}
    e2 = product(with_checkpoints(resnet), {"mode": MODES})
    e4 = [
        *product(middle, {"mode": MODES[:2], "model.width": (16, 32, 64, 128)}),
        *product(resnet, {"mode": MODES[:2], "model.width": (4, 8, 16)}),
    ]
    e5 = product(with_checkpoints(convmixer), {"model.depth": (2, 4, 8), "mode": MODES})
    attacked = [run for run in (*e2, *e5) if run["mode"] in MODES[:2] and run["model.depth"] < 8]
    shallow = [run for run in attacked if run["model.depth"] < 4]
    gate = convergence(narrow, middle)  # the ResNet that two lengths are cheap for
    return Preset(
        name="cifar10",
        tier="laptop",
        purpose="Every experiment but un-shuffling on CIFAR-10, sized for a day of two CPU cores.",
        runs={
            "E1": (),
            "E2": e2,
            "E3": kinds_of_filters(narrow, middle, indices=(1, 2)),
            "E4": e4,
            "E5": e5,
            "E6": [*attacked, *defended(shallow, 8)],
            "E7": smoothings(middle, (0, 1, 2, 4)),
            "E8": smoothings(middle, (0,)),
            "E9": product(deep, {"mode": ("full",)}),
            "E11": (),
            "E12": fractions(middle, (0, 0.1, 0.25, 0.5, 1)),
            "E13": lattice(deep, resnet, *metaformers),
            "E14": frozen_filters(deep, BANKS),
            "E15": law(e2, e4, e5, gate),
            CONVERGENCE: gate,
        },
        attack=_ATTACK,
        banks=_BANKS,
        shown=(0, 2, 4),
        radii=("E13",),
    )


def fashion_mnist() -> Preset:
    """The primary claims, and un-shuffling."""
    short = _short(3.0, 468)
    convmixer = start("convmixer_mnist:fashion_mnist", {**short, **_CONVMIXER})
    data = {"data.name": "fashion_mnist", "data.crop_padding": 0, "model.depth": 1}
    resnet = start("resnet_cifar", {**_short(3.0, 937), **_RESNET, **data})
    narrow = {**resnet, "model.width": 8}
    e2 = product(with_checkpoints(resnet), {"mode": MODES})
    e5 = product(with_checkpoints(convmixer), {"mode": MODES})
    gate = convergence(narrow, convmixer)
    return Preset(
        name="fashion_mnist",
        tier="laptop",
        purpose="The primary claims on Fashion-MNIST, and un-shuffling, sized for a night of two "
        "CPU cores.",
        runs={
            "E1": (),
            "E2": e2,
            "E3": filters_by_rank(narrow, (1, 2)),
            "E5": e5,
            "E6": [*e2[:2], *e5[:2]],
            "E7": smoothings({**convmixer, "model.depth": 2}, (0, 1, 2)),
            "E8": smoothings({**convmixer, "model.depth": 2}, (0,)),
            "E9": product(convmixer, {"mode": ("full",)}),
            "E10": unshuffling(
                start("unshuffle:fashion_mnist", short),
                widths=(16, 32),
                sizes=((8, 7),),
                space=(8, 7),
            ),
            "E11": (),
            "E13": lattice(convmixer, resnet),
            "E15": law(e2, e5, gate),
            CONVERGENCE: gate,
        },
        attack=_ATTACK,
        banks=_BANKS,
    )


def mnist() -> Preset:
    """Un-shuffling over width, depth and kernel size."""
    unshuffle = start("unshuffle:mnist", _short(3.0, 468))
    narrow = {**unshuffle, "model.width": 16}
    taller, wider = {**narrow, "model.depth": 12}, {**narrow, "model.kernel_size": 9}
    return Preset(
        name="mnist",
        tier="laptop",
        purpose="Un-shuffling on MNIST, over width, depth and kernel size, sized for an evening of "
        "two CPU cores.",
        runs={
            "E10": [
                *unshuffling(unshuffle, widths=(16, 32), sizes=((8, 7),), space=(8, 7)),
                *(run for base in (taller, wider) for run in product(base, {"mode": MODES[:2]})),
            ],
        },
        attack=_ATTACK,
        banks=_BANKS,
        seeds={"E10": 3},
    )
