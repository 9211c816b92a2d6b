"""The presets of the paper's own sizes, for a GPU or a TPU.

The paper doesn't state its depths, epochs and learning rates, nor the widths on CIFAR; those used
here are from the public code that it builds on.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from randmix.reproduce.presets.preset import CONVERGENCE, MODES, Preset, Settings, product, start
from randmix.reproduce.presets.runs import (
    BANKS,
    convergence,
    defended,
    fractions,
    frozen_filters,
    kinds_of_filters,
    lattice,
    law,
    smoothings,
    unshuffling,
)

_ATTACK: dict[str, Any] = {
    "epsilons": (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0),
    "examples": 10_000,
    "strong_examples": 500,
    "steps": 50,
    "restarts": 10,
    "targets": 9,
    "queries": 1000,
}
_BANKS: dict[str, Any] = {
    "counts": tuple(2**i for i in range(11)),
    "kernel_size": 8,
    "seeds": 10,
}


def _preset(name: str, purpose: str, runs: Mapping[str, Sequence[Settings]]) -> Preset:
    return Preset(name, "paper", purpose, runs, _ATTACK, _BANKS, shown=(0, 2, 4))


def _cifar(
    resnet: Settings, convmixer: Settings, pictures: Sequence[Settings] = ()
) -> dict[str, Sequence[Settings]]:
    """All experiments on one of the two data sets; un-shuffling where ``pictures`` has runs."""
    sizes = {"model.depth": (2, 4, 8, 16), "mode": MODES}
    e2, e5 = product(resnet, sizes), product(convmixer, sizes)
    attacked = [run for run in (*e2, *e5) if run["mode"] in MODES[:2]]
    shallow, middle = {**resnet, "model.depth": 2}, {**convmixer, "model.depth": 8}
    deep = {**convmixer, "model.depth": 4}
    e4 = product(shallow, {"mode": MODES[:2], "model.width": (16, 32, 64, 128, 256)})
    gate = convergence(shallow, middle)
    runs = {
        "E1": (),
        "E2": e2,
        "E3": kinds_of_filters(shallow, middle, indices=(1, 2)),
        "E4": e4,
        "E5": e5,
        "E6": [*attacked, *defended(attacked, 8)],
        "E7": smoothings(middle, (0, 0.5, 1, 2, 3, 4)),
        "E8": smoothings(middle, (0,)),
        "E9": product(deep, {"mode": ("full",)}),
        "E10": pictures,
        "E11": (),
        "E12": fractions(middle, (0, 0.05, 0.1, 0.25, 0.5, 0.75, 1)),
        "E13": lattice(deep, shallow),
        "E14": frozen_filters(deep, BANKS),
        "E15": law(e2, e4, e5, gate),
        CONVERGENCE: gate,
    }
    return {id: own for id, own in runs.items() if own or id in ("E1", "E11")}


def _unshuffling(name: str) -> list[Settings]:
    return unshuffling(
        start(f"unshuffle:{name}"),
        widths=(32, 64, 128, 256),
        sizes=((2, 7), (4, 3), (4, 5), (4, 7), (8, 7)),
        space=(4, 7),
    )


def cifar10() -> Preset:
    """All experiments."""
    large = product(start("unshuffle:large"), {"mode": MODES[:2]})
    # The public code's short recipe of 25 epochs: its long one erases rectangles, which
    # adversarial training doesn't allow.
    convmixer = start("convmixer_cifar:paper")
    return _preset(
        "cifar10",
        "Every experiment at the paper's own sizes on CIFAR-10.",
        _cifar(start("resnet_cifar"), convmixer, [*_unshuffling("cifar10"), *large]),
    )


def cifar100() -> Preset:
    """All experiments but un-shuffling."""
    return _preset(
        "cifar100",
        "Every experiment but un-shuffling at the paper's own sizes on CIFAR-100.",
        _cifar(start("resnet_cifar:cifar100"), start("convmixer_cifar:cifar100-paper")),
    )


def fashion_mnist() -> Preset:
    """Un-shuffling."""
    return _preset(
        "fashion_mnist",
        "Un-shuffling on Fashion-MNIST at the paper's own sizes.",
        {"E10": _unshuffling("fashion_mnist")},
    )


def mnist() -> Preset:
    """Un-shuffling."""
    return _preset(
        "mnist",
        "Un-shuffling on MNIST at the paper's own sizes.",
        {"E10": _unshuffling("mnist")},
    )


def imagenet() -> Preset:
    """The experiments that the paper runs on ImageNet."""
    resnet, convmixer = start("resnet_imagenet"), start("convmixer_imagenet")
    e2 = product(resnet, {"model.depth": (1, 2, 3), "mode": MODES})
    e5 = product(convmixer, {"model.depth": (4, 8, 16), "mode": MODES})
    shallow, deep = {**resnet, "model.depth": 1}, {**convmixer, "model.depth": 4}
    gate = convergence(shallow, deep)
    return _preset(
        "imagenet",
        "The paper's own sizes on ImageNet-1k, for the experiments that it runs there, with their "
        "gate.",
        {
            "E1": (),
            "E2": e2,
            "E5": e5,
            "E9": product(deep, {"mode": ("full",)}),
            "E11": (),
            "E13": lattice(deep, shallow),
            "E15": law(e2, e5, gate),
            CONVERGENCE: gate,
        },
    )
