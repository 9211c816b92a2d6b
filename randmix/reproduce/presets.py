"""The presets: tables of each experiment's runs, which start from the recipes in configs/.

A run is a flat dict of config keys, {"model.depth": 2, ...}, whose other keys have the defaults of
``config.default``: `start` makes one from a recipe and what differs from it, `product` one of every
combination of values, and ``plan`` adds the seeds and applies ``LONGER``. Runs that several
experiments share are trained once. Each preset starts with its purpose and its departures from the
paper, which the report repeats. All presets are in one file, despite its length, so that they can
be compared.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from randmix import config as configs
from randmix.errors import UserError, check_choice

Settings = dict[str, Any]
MODES = ("full", "chans", "space", "floor")
# The keys by which runs are described and compared; every run has them.
_SIZES = ("data.name", "model.name", "model.width", "model.depth", "model.kernel_size")
# Saves only at the end, and writes no TensorBoard events.
_SHORT = {"checkpoint_every": 10**6, "tensorboard": False}
# Not a key of configs: how many times as long as its steps or epochs say a run is.
LONGER = "longer"
# Five seeds for what decides a primary claim, two for its gate.
CONVERGENCE = "convergence"
_SEEDS = {"E2": 5, "E3": 5, "E5": 5, "E10": 5, CONVERGENCE: 2}


@dataclasses.dataclass(frozen=True)
class Preset:
    """The runs of a reproduction, and how they are measured.

    Attributes:
        name: its name on the command line.
        purpose: its purpose and its cost, in a sentence.
        departures: its differences from the paper's setting, one sentence each.
        runs: settings of each experiment's runs, without seeds; E1 and E11 train nothing.
        attack: attacks of E6 and E7: ``epsilons`` in 1/255, ascending from 0; ``examples``, the
            number of test images for FGSM and PGD-2, None for all; ``strong_examples``, the number
            for the others; ``steps`` and ``restarts`` of the strong attack, of which the targeted
            one takes ``steps`` towards each of ``targets`` classes; ``queries`` of Square.
        banks: random banks of E1: their sizes ``counts``, the filters' side ``kernel_size``, and
            the number of ``seeds``.
        shown: the three smoothing indices whose filters and envelopes E7 and E8 show.
        seeds: number of seeds of each experiment's runs; three where it isn't named.
    """

    name: str
    purpose: str
    departures: tuple[str, ...]
    runs: Mapping[str, Sequence[Settings]]
    attack: Mapping[str, Any]
    banks: Mapping[str, Any]
    shown: tuple[float, float, float] = (0, 1, 2)
    seeds: Mapping[str, int] = dataclasses.field(default_factory=lambda: _SEEDS)

    def seeds_of(self, experiment: str) -> int:
        """The number of seeds with which an experiment's runs are made."""
        return self.seeds.get(experiment, 3)


def _each(steps: int) -> Settings:
    """Logs and evaluates every so many steps, an epoch of most presets: the learning curves."""
    return {"log_every": steps, "eval_every": steps}


def _with_checkpoints(base: Settings) -> Settings:
    """Keeps the checkpoints of all evaluations, to compare models of one clean accuracy (4e)."""
    return {**base, "checkpoint_every": base["eval_every"], "keep_checkpoints": 100}


def start(recipe: str, changes: Settings | None = None) -> Settings:
    """The settings of a recipe such as ``"convmixer_cifar:paper"``, with ``changes``.

    >>> run = start("digits:tiny", {"model.depth": 2})
    >>> run["data.name"], run["model.depth"], run["model.width"], run["steps"]
    ('digits', 2, 8, 2)
    """
    config = configs.recipe(recipe)
    default = configs.flatten(configs.default(config.model.name))
    settings = {
        key: value
        for key, value in configs.flatten(config).items()
        if key in _SIZES or value != default[key]
    }
    return {**settings, **(changes or {})}


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
    """E7's runs: Chans with random (index 0) and with smoothed filters, and a smoothed stem.

    They hold out training images, which choose the index that costs no accuracy.
    """
    chans = {**base, "mode": "chans", "model.smooth_stem": True, "data.validation": 0.1}
    return product(chans, {"model.smoothing_index": [float(index) for index in indices]})


def banks_of_filters(base: Settings) -> list[Settings]:
    """Full, and Chans with each bank: Different ("random"), Same, Box and Identity."""
    names = ("random", "same", "box", "identity")
    return [{**base, "mode": "full"}, *product({**base, "mode": "chans"}, {"model.filters": names})]


def kinds_of_filters(
    resnet: Settings,
    convmixer: Settings,
    *,
    multipliers: Sequence[int] = (3, 1),
    ranks: Sequence[int] = (9, 3, 1),
    indices: Sequence[float],
) -> list[Settings]:
    """E3's runs: banks in a ResNet with 9 filters per channel and fewer, in a ConvMixer, by rank.

    Impulses have a flat spectrum at every rank, so their coverages are equal; smoothing lowers the
    coverage of those of the highest rank.

    Args:
        resnet: the ResNet's settings, whose multiplier is 9.
        convmixer: the ConvMixer's.
        multipliers: further numbers of filters per channel.
        ranks: the ranks, of nine filters per channel.
        indices: smoothing indices above 0 of the banks of the highest rank.
    """
    runs = banks_of_filters(resnet)
    for multiplier in multipliers:
        runs += banks_of_filters({**resnet, "model.multiplier": multiplier})[1:]
    runs += banks_of_filters(convmixer)[1:]
    flat = {**resnet, "mode": "chans", "model.filters": "delta"}
    runs += product(flat, {"model.filter_rank": ranks})
    highest = {**flat, "model.filter_rank": max(ranks)}
    return runs + product(highest, {"model.smoothing_index": [float(i) for i in indices]})


def convergence(*bases: Settings) -> list[Settings]:
    """The runs of the gate: all modes, with held-out training images, and for twice as long."""
    over = {"mode": MODES, LONGER: (1, 2)}
    return [run for base in bases for run in product({**base, "data.validation": 0.1}, over)]


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
    runs = []
    for size in sizes:
        sized = {**base, "model.depth": size[0], "model.kernel_size": size[1]}
        modes = MODES[: 3 if size == space else 2]
        runs += product(sized, {"mode": modes, "model.width": widths})
    return runs


def all_experiments(
    resnet: Settings,
    convmixer: Settings,
    unshuffle: Settings,
    *,
    depths: Sequence[int],
    widths: Sequence[int],
    epsilon: float,
    indices: Sequence[float],
    shares: Sequence[float],
    sizes: Sequence[tuple[int, int]],
) -> dict[str, Sequence[Settings]]:
    """The runs of every experiment at a small size.

    Args:
        resnet: the ResNets' settings; ``convmixer`` and ``unshuffle`` likewise.
        depths: the ResNets' depths in E2; the first is also that of E3, E4 and the gate.
        widths: their widths in E4.
        epsilon: the strength of E6's adversarial training, in 1/255.
        indices: E7's smoothing indices.
        shares: E12's shares of learned filters.
        sizes: E10's depths and kernel sizes; the last are also those of Space.
    """
    e2 = product(_with_checkpoints(resnet), {"model.depth": depths, "mode": MODES})
    e5 = product(_with_checkpoints(convmixer), {"model.depth": (1, 2, 4), "mode": MODES})
    middle = {**convmixer, "model.depth": 2}
    attacked = [run for run in (*e2, *e5) if run["mode"] in MODES[:2] and run["model.depth"] < 3]
    shallow = {**resnet, "model.depth": depths[0]}
    return {
        "E1": (),
        "E2": e2,
        "E3": kinds_of_filters(shallow, middle, indices=(1, 2)),
        "E4": product(shallow, {"mode": MODES[:2], "model.width": widths}),
        "E5": e5,
        "E6": defended(attacked, epsilon),
        "E7": smoothings(middle, indices),
        "E8": smoothings(middle, (0,)),
        "E9": product({**convmixer, "model.depth": 4}, {"mode": ("full",)}),
        "E10": unshuffling(unshuffle, widths=(8, 16, 32), sizes=sizes, space=sizes[-1]),
        "E11": (),
        "E12": fractions(middle, shares),
        CONVERGENCE: convergence(shallow, middle),
    }


def _smoke() -> Preset:
    short = {**_SHORT, "log_every": 1, "steps": 3, "batch_size": 32, "model.depth": 1}
    small = {**short, "model.width": 4, "model.kernel_size": 3}
    resnet = start("resnet_cifar:digits", {**short, "model.width": 2})
    convmixer = start("digits", {**small, "model.patch_size": 2})
    e2 = product(resnet, {"mode": MODES})
    # Of three steps, each keeps its checkpoint.
    e5 = product(_with_checkpoints({**convmixer, "eval_every": 1}), {"mode": MODES})
    return Preset(
        name="smoke",
        purpose="Runs all of the code on the digits, in four minutes. Its numbers are "
        "meaningless: no model is trained to convergence.",
        departures=(
            "The smallest models train for three steps on scikit-learn's digits; only ConvMixers "
            "are attacked.",
        ),
        runs={
            "E1": (),
            "E2": e2,
            "E3": kinds_of_filters(resnet, convmixer, multipliers=(1,), indices=(1,)),
            "E4": product(resnet, {"mode": MODES[:2], "model.width": (2, 3)}),
            "E5": e5,
            "E6": defended(e5[:2], 8),  # a ResNet under attack compiles five times as long
            "E7": smoothings(convmixer, (0, 1, 2)),
            "E8": smoothings(convmixer, (0,)),
            "E9": product(convmixer, {"mode": ("full",)}),
            "E10": unshuffling(
                start("unshuffle", small), widths=(4, 6), sizes=((1, 3),), space=(1, 3)
            ),
            "E11": (),
            "E12": fractions(convmixer, (0, 0.5, 1)),
            CONVERGENCE: convergence(resnet, convmixer),
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
        seeds=dict.fromkeys((*(f"E{i}" for i in range(1, 13)), CONVERGENCE), 2),
    )


def _digits() -> Preset:
    short = {**_SHORT, **_each(22), "epochs": 8.0}
    return Preset(
        name="digits",
        purpose="The demonstration: every experiment on a small scale, on two CPU cores.",
        departures=(
            "scikit-learn's 1,797 digits of 8 x 8 pixels replace CIFAR and ImageNet. Nearly every "
            "model comes close to 100 %, so gaps in accuracy are small whatever is frozen.",
            "Models have at most a quarter of the paper's width and depths 1 to 4, and train for 8 "
            "to 12 epochs.",
            "Primary claims have three seeds, which decide large effects alone, instead of five.",
            "The test set has 360 images, so one image is worth 0.28 percentage points.",
        ),
        runs=all_experiments(
            start("resnet_cifar:digits", {**short, "model.width": 4}),
            start("digits", {**short, "model.width": 32}),
            start("unshuffle", {**_SHORT, **_each(44), "epochs": 12.0}),
            depths=(1, 2),
            widths=(2, 4, 8),
            epsilon=16,
            indices=(0, 1, 2),
            shares=(0, 0.1, 0.5, 1),
            sizes=((1, 5), (3, 5), (4, 5), (3, 7)),  # the first reaches too little
        ),
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
        seeds={CONVERGENCE: 2},
    )


def _fashion_mnist() -> Preset:
    # It saves once per epoch, so that jobs of a few minutes make progress.
    short = {**_each(234), **_SHORT, "batch_size": 256, "epochs": 3.0, "checkpoint_every": 234}
    convmixer = start("convmixer_mnist:fashion_mnist", short)
    data = {"data.name": convmixer["data.name"]}
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
        runs=all_experiments(
            start("resnet_cifar", {**short, **data, "data.crop_padding": 0, "model.width": 8}),
            convmixer,
            start("unshuffle:fashion_mnist", {**short, "epochs": 2.0}),
            depths=(1, 2, 3),
            widths=(2, 4, 8, 16),  # 32 alone would cost two fifths as much as all the rest
            epsilon=8,
            indices=(0, 0.5, 1, 2),
            shares=(0, 0.1, 0.25, 0.5, 1),
            sizes=((4, 5), (8, 5), (8, 7)),
        ),
        attack={
            "epsilons": (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0),
            "examples": 10_000,
            "strong_examples": 500,
            "steps": 20,
            "restarts": 2,
            "targets": 3,
            "queries": 100,
        },
        banks={"counts": (1, 2, 4, 8, 16, 32, 64, 128, 256), "kernel_size": 8, "seeds": 10},
    )


def _cifar() -> Preset:
    resnet, resnet100 = resnets = start("resnet_cifar"), start("resnet_cifar:cifar100")
    convmixer = start("convmixer_cifar:paper")
    convmixers = convmixer, start("convmixer_cifar:cifar100-paper")
    sizes = {"model.depth": (2, 4, 8, 16), "mode": MODES}
    e2 = [run for base in resnets for run in product(base, sizes)]
    e5 = [run for base in convmixers for run in product(base, sizes)]
    sizes = {**sizes, "mode": MODES[:2]}
    attacked = [run for base in (resnet, convmixer) for run in product(base, sizes)]
    shallow = {"mode": MODES[:2], "model.depth": (2,), "model.width": (16, 32, 64, 128, 256)}
    pictures = [
        run
        for name in ("mnist", "fashion_mnist", "cifar10")
        for run in unshuffling(
            start(f"unshuffle:{name}"),
            widths=(32, 64, 128, 256),
            sizes=((2, 7), (4, 3), (4, 5), (4, 7), (8, 7)),
            space=(4, 7),
        )
    ]
    middle = {**convmixer, "model.depth": 8}
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
            "E3": kinds_of_filters({**resnet100, "model.depth": 2}, middle, indices=(1, 2)),
            "E4": [run for base in resnets for run in product(base, shallow)],
            "E5": e5,
            "E6": defended(attacked, 8),
            "E7": smoothings(middle, (0, 0.5, 1, 2, 3, 4)),
            "E8": smoothings(middle, (0,)),
            "E9": product({**convmixer, "model.depth": 4}, {"mode": ("full",)}),
            "E10": [*pictures, *product(start("unshuffle:large"), {"mode": MODES[:2]})],
            "E11": (),
            "E12": fractions(middle, (0, 0.05, 0.1, 0.25, 0.5, 0.75, 1)),
            CONVERGENCE: convergence(
                *({**base, "model.depth": 2} for base in resnets),
                *({**base, "model.depth": 8} for base in convmixers),
            ),
        },
        attack={
            "epsilons": (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0),
            "examples": 10_000,
            "strong_examples": 500,
            "steps": 50,
            "restarts": 10,
            "targets": 9,
            "queries": 1000,
        },
        banks={"counts": tuple(2**i for i in range(11)), "kernel_size": 8, "seeds": 10},
        shown=(0, 2, 4),
    )


def _imagenet() -> Preset:
    resnet, convmixer = start("resnet_imagenet"), start("convmixer_imagenet")
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
            "E5": product(convmixer, {"model.depth": (4, 8, 16), "mode": MODES}),
            "E9": product({**convmixer, "model.depth": 4}, {"mode": ("full",)}),
            "E11": (),
        },
        attack={
            "epsilons": (0.0, 1.0, 4.0),
            "examples": 10_000,
            "strong_examples": 500,
            "steps": 50,
            "restarts": 10,
            "targets": 9,
            "queries": 1000,
        },
        banks={"counts": tuple(2**i for i in range(10)), "kernel_size": 8, "seeds": 10},
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
