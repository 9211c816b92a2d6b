"""The presets: tables of each experiment's runs, as differences from ``config.default``.

A run is a flat dict of config keys, {"model.depth": 2, ...}; ``plan`` adds the seeds. `product`
makes one run of every combination of values. Runs that several experiments share are trained once.
Each preset starts with its purpose and its departures from the paper, which the report repeats. All
presets are in one file, despite its length, so that they can be compared.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from randmix.data import catalog
from randmix.errors import UserError, check_choice

Settings = dict[str, Any]
MODES = ("full", "chans", "space")


@dataclasses.dataclass(frozen=True)
class Preset:
    """The runs of a reproduction, and how they are measured.

    Attributes:
        name: its name on the command line.
        purpose: its purpose and its cost, in a sentence.
        departures: its differences from the paper's setting, one sentence each.
        runs: settings of each experiment's runs, without seeds; E1 and E11 train nothing.
        attack: attacks of E6 and E7: ``epsilons`` in 1/255, ascending from 0; ``examples``, the
            number of test images; ``steps`` and ``restarts`` of the strong attack.
        banks: random banks of E1: their sizes ``counts``, the filters' side ``kernel_size``, and
            the number of ``seeds``.
        shown: the three smoothing indices whose filters and envelopes E7 and E8 show.
    """

    name: str
    purpose: str
    departures: tuple[str, ...]
    runs: Mapping[str, Sequence[Settings]]
    attack: Mapping[str, Any]
    banks: Mapping[str, Any]
    shown: tuple[float, float, float] = (0, 1, 2)


def product(base: Settings, over: Mapping[str, Sequence[Any]]) -> list[Settings]:
    """One run for every combination of the values in ``over``.

    >>> product({"steps": 9}, {"mode": ("full", "chans"), "epochs": (1,)})
    [{'steps': 9, 'mode': 'full', 'epochs': 1}, {'steps': 9, 'mode': 'chans', 'epochs': 1}]
    """
    return [
        {**base, **dict(zip(over, values, strict=True))}
        for values in itertools.product(*over.values())
    ]


def fractions(base: Settings, shares: Sequence[float]) -> list[Settings]:
    """E12's runs: channel mixing, norms, head and a share of the spatial filters are learned.

    Shares 0 and 1 are Chans and Full, so other experiments share those runs.
    """
    runs = []
    for share in shares:
        if share in (0, 1):
            runs.append({**base, "mode": "full" if share else "chans"})
        else:
            learned = f"fraction(role('spatial'), {share})"
            groups = (("train", "~role('spatial')", {}), ("filters", learned, {}))
            runs.append({**base, "groups": groups})
    return runs


def smoothings(base: Settings, indices: Sequence[float]) -> list[Settings]:
    """E7's runs: Chans with random (index 0) and with smoothed filters."""
    smoothed = {"model.filters": "smoothed"}
    return [
        {**base, "mode": "chans"} | ({**smoothed, "model.smoothing_index": float(i)} if i else {})
        for i in indices
    ]


def banks_of_filters(base: Settings) -> list[Settings]:
    """E3's runs: Full, and Chans with each bank: Different ("random"), Same, Box and Identity."""
    names = ("random", "same", "box", "identity")
    return [{**base, "mode": "full"}, *product({**base, "mode": "chans"}, {"model.filters": names})]


def defended(runs: Sequence[Settings], epsilon: float) -> list[Settings]:
    """The runs, followed by each of them trained on FGSM samples; epsilon in 1/255."""
    return [*runs, *({**run, "defense.epsilon": float(epsilon)} for run in runs)]


def unshuffling(
    base: Settings,
    *,
    widths: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    space: tuple[int, int],
) -> list[Settings]:
    """E10's runs: Full and Chans over width for each (depth, kernel size), and Space for one."""
    base = {**base, "task": "unshuffling"}
    return [
        {
            **base,
            "mode": mode,
            "model.depth": depth,
            "model.kernel_size": kernel_size,
            "model.width": width,
        }
        for depth, kernel_size in sizes
        for mode in (MODES if (depth, kernel_size) == space else MODES[:2])
        for width in widths
    ]


# The pre-activation ResNet's recipe: SGD, learning rate divided by 10 at 1/2 and 3/4 of training.
_SGD = {
    "model.name": "resnet",
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 0.1,
    "optimizer.weight_decay": 1e-4,
    "schedule.name": "step",
}
# The ConvMixer repository's recipe: AdamW, clipping, a piecewise linear schedule (the default).
_ADAMW = {
    "model.name": "convmixer",
    "optimizer.learning_rate": 0.01,
    "optimizer.weight_decay": 0.005,
    "optimizer.clip_norm": 1.0,
}
_UNSHUFFLE = {**_ADAMW, "optimizer.learning_rate": 0.05, "optimizer.weight_decay": 0.0}
# Evaluates and saves only at the end, and writes no TensorBoard events.
_SHORT = {"log_every": 1000, "eval_every": 10**6, "checkpoint_every": 10**6, "tensorboard": False}


def _normalized(name: str) -> Settings:
    mean, std = catalog.channel_statistics(name)
    return {"data.name": name, "model.mean": mean, "model.std": std}


def _smoke() -> Preset:
    resnet = {**_SGD, **_SHORT, "steps": 3, "batch_size": 32, "model.width": 2, "model.depth": 1}
    small = {
        "steps": 3,
        "batch_size": 32,
        "model.width": 4,
        "model.depth": 1,
        "model.kernel_size": 3,
    }
    convmixer = {**_ADAMW, **_SHORT, **small, "model.patch_size": 2}
    unshuffle = {**_UNSHUFFLE, **_SHORT, **small}
    e2 = product(resnet, {"mode": MODES})
    e5 = product(convmixer, {"mode": MODES})
    return Preset(
        name="smoke",
        purpose="Runs all of the code on the digits, in a minute. Its numbers are meaningless: no "
        "model is trained to convergence.",
        departures=(
            "The smallest models train for three steps on scikit-learn's digits; only ConvMixers "
            "are attacked.",
        ),
        runs={
            "E1": (),
            "E2": e2,
            "E3": banks_of_filters(resnet),
            "E4": product(resnet, {"mode": MODES[:2], "model.width": (2, 3)}),
            "E5": e5,
            "E6": defended(e5[:2], 8),  # a ResNet under attack compiles five times as long
            "E7": smoothings(convmixer, (0, 1, 2)),
            "E8": smoothings(convmixer, (0,)),
            "E9": product(convmixer, {"mode": ("full",)}),
            "E10": unshuffling(unshuffle, widths=(4, 6), sizes=((1, 3),), space=(1, 3)),
            "E11": (),
            "E12": fractions(convmixer, (0, 0.5, 1)),
        },
        attack={"epsilons": (0.0, 8.0, 64.0), "examples": 32, "steps": 2, "restarts": 1},
        banks={"counts": (1, 4, 16), "kernel_size": 8, "seeds": 2},
    )


def _digits() -> Preset:
    short = {**_SHORT, "batch_size": 64, "epochs": 8.0, "data.name": "digits"}
    resnet = {**_SGD, **short, "model.width": 4}
    convmixer = {**_ADAMW, **short, "model.width": 32, "model.kernel_size": 5}
    unshuffle = {**_UNSHUFFLE, **short, "batch_size": 32, "epochs": 12.0}
    e2 = product(resnet, {"model.depth": (1, 2), "mode": MODES})
    e5 = product(convmixer, {"model.depth": (1, 2, 4), "mode": MODES})
    middle = {**convmixer, "model.depth": 2}
    attacked = [run for run in (*e2, *e5) if run["mode"] != "space" and run["model.depth"] < 3]
    return Preset(
        name="digits",
        purpose="The demonstration: every experiment on a small scale, on two CPU cores.",
        departures=(
            "scikit-learn's 1,797 digits of 8 x 8 pixels replace CIFAR and ImageNet. Nearly every "
            "model comes close to 100 %, so gaps in accuracy are small whatever is frozen.",
            "Models have at most a quarter of the paper's width and depths 1 to 4, and train for 8 "
            "to 12 epochs.",
            "The test set has 360 images, so one image is worth 0.28 percentage points.",
        ),
        runs={
            "E1": (),
            "E2": e2,
            "E3": banks_of_filters({**resnet, "model.depth": 2}),
            "E4": product(
                {**resnet, "model.depth": 1}, {"mode": MODES[:2], "model.width": (2, 4, 8)}
            ),
            "E5": e5,
            "E6": defended(attacked, 16),
            "E7": smoothings(middle, (0, 1, 2)),
            "E8": smoothings(middle, (0,)),
            "E9": product({**convmixer, "model.depth": 4}, {"mode": ("full",)}),
            "E10": unshuffling(
                unshuffle, widths=(8, 16, 32), sizes=((1, 5), (2, 3), (2, 5)), space=(2, 5)
            ),
            "E11": (),
            "E12": fractions(middle, (0, 0.1, 0.5, 1)),
        },
        attack={
            "epsilons": (0.0, 8.0, 16.0, 32.0, 64.0, 96.0),
            "examples": 120,
            "steps": 8,
            "restarts": 2,
        },
        banks={"counts": (1, 2, 4, 8, 16, 32, 64, 128, 256), "kernel_size": 8, "seeds": 5},
    )


def _fashion_mnist() -> Preset:
    shared = {
        **_SHORT,
        **_normalized("fashion_mnist"),
        "data.flip": True,
        "batch_size": 256,
        "epochs": 3.0,
        "checkpoint_every": 234,  # once per epoch, so that jobs of a few minutes make progress
    }
    resnet = {**_SGD, **shared, "model.width": 8}
    convmixer = {
        **_ADAMW,
        **shared,
        "model.width": 64,
        "model.kernel_size": 5,
        "model.patch_size": 2,
    }
    unshuffle = {
        **_UNSHUFFLE,
        **_SHORT,
        "data.name": "fashion_mnist",
        "batch_size": 256,
        "epochs": 2.0,
        "checkpoint_every": 234,
    }
    e2 = product(resnet, {"model.depth": (1, 2, 3), "mode": MODES})
    e5 = product(convmixer, {"model.depth": (1, 2, 4), "mode": MODES})
    middle = {**convmixer, "model.depth": 2}
    attacked = [run for run in (*e2, *e5) if run["mode"] != "space" and run["model.depth"] < 3]
    return Preset(
        name="fashion_mnist",
        purpose="Every experiment on the real Fashion-MNIST: 30 minutes on a data-centre GPU, or a "
        "night on two CPU cores.",
        departures=(
            "Fashion-MNIST's 60,000 training and 10,000 test images of 28 x 28 pixels replace "
            "CIFAR and ImageNet.",
            "Models have half of the paper's width and depths 1 to 4, and train for 2 to 3 epochs; "
            "ConvMixers have patches of 2 x 2 pixels, except for un-shuffling.",
        ),
        runs={
            "E1": (),
            "E2": e2,
            "E3": banks_of_filters({**resnet, "model.depth": 2}),
            # Width 32 alone would cost two fifths as much as all the rest.
            "E4": product(
                {**resnet, "model.depth": 1}, {"mode": MODES[:2], "model.width": (2, 4, 8, 16)}
            ),
            "E5": e5,
            "E6": defended(attacked, 8),
            "E7": smoothings(middle, (0, 0.5, 1, 2)),
            "E8": smoothings(middle, (0,)),
            "E9": product({**convmixer, "model.depth": 4}, {"mode": ("full",)}),
            "E10": unshuffling(
                unshuffle, widths=(8, 16, 32), sizes=((1, 5), (2, 3), (2, 5)), space=(2, 5)
            ),
            "E11": (),
            "E12": fractions(middle, (0, 0.1, 0.25, 0.5, 1)),
        },
        attack={
            "epsilons": (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0),
            "examples": 1000,
            "steps": 20,
            "restarts": 2,
        },
        banks={"counts": (1, 2, 4, 8, 16, 32, 64, 128, 256), "kernel_size": 8, "seeds": 10},
    )


def _cifar() -> Preset:
    shared = {"data.flip": True, "eval_every": 5000, "checkpoint_every": 2000}
    resnet = {
        **_SGD,
        **shared,
        "data.crop_padding": 4,
        "batch_size": 128,
        "epochs": 200.0,
        "model.width": 16,
    }
    convmixer = {
        **_ADAMW,
        **shared,
        "data.randaugment": "torchvision-n2-m12",
        "optimizer.learning_rate": 0.05,
        "optimizer.clip_norm": 0.0,
        "batch_size": 512,
        "epochs": 25.0,
        "model.width": 128,
        "model.kernel_size": 8,
        "model.patch_size": 1,
    }
    unshuffle = {
        **_UNSHUFFLE,
        "batch_size": 128,
        "epochs": 25.0,
        "eval_every": 5000,
        "checkpoint_every": 2000,
    }
    cifar10, cifar100 = both = _normalized("cifar10"), _normalized("cifar100")
    depths = (2, 4, 8, 16)
    e2 = [
        run
        for data in both
        for run in product({**resnet, **data}, {"model.depth": depths, "mode": MODES})
    ]
    e5 = [
        run
        for data in both
        for run in product({**convmixer, **data}, {"model.depth": depths, "mode": MODES})
    ]
    attacked = [
        run for run in (*e2, *e5) if run["mode"] != "space" and run["data.name"] == "cifar10"
    ]
    widths = (16, 32, 64, 128, 256)
    sizes = ((2, 7), (4, 3), (4, 5), (4, 7), (8, 7))
    pictures = [
        run
        for name in ("mnist", "fashion_mnist", "cifar10")
        for run in unshuffling(
            {**unshuffle, "data.name": name}, widths=(32, 64, 128, 256), sizes=sizes, space=(4, 7)
        )
    ]
    large = unshuffling(
        {**unshuffle, "data.name": "cifar10"}, widths=(512,), sizes=((16, 7),), space=(0, 0)
    )
    middle = {**convmixer, **cifar10, "model.depth": 8}
    return Preset(
        name="cifar",
        purpose="The paper's own sizes on CIFAR-10 and CIFAR-100, and un-shuffling on MNIST, "
        "Fashion-MNIST and CIFAR-10.",
        departures=(
            "The paper doesn't state its depths, widths, epochs and learning rates; those used "
            "here are from the public code that it builds on.",
            "ConvMixers train for 25 epochs, the public code's short recipe: its long one erases "
            "rectangles, which adversarial training doesn't allow.",
        ),
        runs={
            "E1": (),
            "E2": e2,
            "E3": banks_of_filters({**resnet, **cifar100, "model.depth": 2}),
            "E4": [
                run
                for data in both
                for run in product(
                    {**resnet, **data, "model.depth": 2}, {"mode": MODES[:2], "model.width": widths}
                )
            ],
            "E5": e5,
            "E6": defended(attacked, 8),
            "E7": smoothings(middle, (0, 0.5, 1, 2, 3, 4)),
            "E8": smoothings(middle, (0,)),
            "E9": product({**convmixer, **cifar10, "model.depth": 4}, {"mode": ("full",)}),
            "E10": [*pictures, *large],
            "E11": (),
            "E12": fractions(middle, (0, 0.05, 0.1, 0.25, 0.5, 0.75, 1)),
        },
        attack={
            "epsilons": (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0),
            "examples": 10_000,
            "steps": 50,
            "restarts": 10,
        },
        banks={
            "counts": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
            "kernel_size": 8,
            "seeds": 10,
        },
        shown=(0, 2, 4),
    )


def _imagenet() -> Preset:
    shared = {
        **_normalized("imagenet2012"),
        "data.flip": True,
        "data.crop_scale": 0.08,
        "eval_every": 10_000,
        "checkpoint_every": 2000,
    }
    resnet = {
        **_SGD,
        **shared,
        "data.eval_crop": 0.875,
        "model.stem": "imagenet",
        "model.width": 64,
        "batch_size": 256,
        "epochs": 90.0,
        "schedule.boundaries": (1 / 3, 2 / 3),
    }
    convmixer = {
        **_ADAMW,
        **shared,
        "label_smoothing": 0.1,
        "precision": "bfloat16",
        "data.randaugment": "rand-m9-mstd0.5-inc1",
        "data.mixup": 0.5,
        "data.cutmix": 0.5,
        "data.random_erasing": 0.25,
        "optimizer.eps": 1e-3,
        "optimizer.weight_decay": 2e-5,
        "batch_size": 640,
        "epochs": 150.0,
        "model.width": 512,
        "model.kernel_size": 8,
        "model.patch_size": 7,
    }
    e5 = product(convmixer, {"model.depth": (4, 8, 16), "mode": MODES})
    return Preset(
        name="imagenet",
        purpose="The paper's own sizes on ImageNet-1k, for the experiments that it runs there.",
        departures=(
            "The paper doesn't state its depths, epochs and learning rates; those used here are "
            "from the public code that it builds on.",
        ),
        runs={
            "E1": (),
            "E2": product(resnet, {"model.depth": (1, 2, 3), "mode": MODES}),
            "E5": e5,
            "E9": product({**convmixer, "model.depth": 4}, {"mode": ("full",)}),
            "E11": (),
        },
        attack={"epsilons": (0.0, 1.0, 4.0), "examples": 1000, "steps": 50, "restarts": 10},
        banks={"counts": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512), "kernel_size": 8, "seeds": 10},
    )


_PRESETS = {
    "smoke": _smoke,
    "digits": _digits,
    "fashion_mnist": _fashion_mnist,
    "cifar": _cifar,
    "imagenet": _imagenet,
}
NAMES = tuple(_PRESETS)


def get(name: str) -> Preset:
    """Returns the preset of a name, one of ``NAMES``.

    Raises:
        UserError: there is no such preset.
    """
    check_choice("--preset", name, _PRESETS)
    return _PRESETS[name]()


def check_experiments(preset: Preset, names: Sequence[str]) -> tuple[str, ...]:
    """Returns the requested experiments in the preset's order, or all of them for no names.

    Raises:
        UserError: the preset doesn't have one of them.
    """
    for name in names:
        if name not in preset.runs:
            allowed = ", ".join(preset.runs)
            raise UserError(
                f"--experiments: got {name!r}, allowed with --preset={preset.name}: {allowed}"
            )
    return tuple(name for name in preset.runs if not names or name in names)
