"""What a preset consists of, and how a run's settings are made from a recipe in configs/."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from randmix import config as configs
from randmix.errors import UserError

Settings = dict[str, Any]
MODES = ("full", "chans", "space", "floor")
# The keys by which runs are described and compared; every run has them.
_SIZES = ("data.name", "model.name", "model.width", "model.depth", "model.kernel_size")
# Not keys of configs. How many times as long as its steps or epochs say a run is:
LONGER = "longer"
# The settings of the run, with seed 0, whose learned filters a run starts from and freezes:
TRANSPLANT = "transplant"
CONVERGENCE = "convergence"
# Five seeds for what decides a primary claim, two for its gate, three for the others.
_SEEDS = {"E2": 5, "E3": 5, "E5": 5, "E10": 5, "E14": 5, CONVERGENCE: 2}


@dataclasses.dataclass(frozen=True)
class Preset:
    """The runs of a reproduction, and how they are measured.

    Attributes:
        name: its name on the command line.
        tier: "laptop", some hours of two CPU cores, or "paper", the paper's sizes.
        purpose: its purpose and its cost, in a sentence.
        runs: settings of each experiment's runs, without seeds; E1 and E11 train nothing.
        attack: attacks of E6 and E7: ``epsilons`` in 1/255, ascending from 0; ``examples``, the
            number of test images for FGSM and PGD-2, None for all; ``strong_examples``, the number
            for the others; ``steps`` and ``restarts`` of the strong attack, of which the targeted
            one takes ``steps`` towards each of ``targets`` classes; ``queries`` of Square.
        banks: random banks of E1: their sizes ``counts``, the filters' side ``kernel_size``, and
            the number of ``seeds``.
        shown: the three smoothing indices whose filters and envelopes E7 and E8 show.
        seeds: number of seeds of each experiment's runs, where it isn't the usual one.
        radii: experiments, beyond E6 and E7, that give the halving radius under FGSM of every run.
    """

    name: str
    tier: str
    purpose: str
    runs: Mapping[str, Sequence[Settings]]
    attack: Mapping[str, Any]
    banks: Mapping[str, Any]
    shown: tuple[float, float, float] = (0, 1, 2)
    seeds: Mapping[str, int] = dataclasses.field(default_factory=dict)
    radii: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What tells its folder from those of other presets."""
        return self.name if self.tier == "laptop" else f"{self.name}-{self.tier}"

    def seeds_of(self, experiment: str) -> int:
        """The number of seeds with which an experiment's runs are made."""
        return self.seeds.get(experiment, _SEEDS.get(experiment, 3))

    def on(self, data_set: str) -> "Preset":
        """The same runs on another data set, such as the same images in a folder.

        Raises:
            UserError: the preset's runs are on several data sets.
        """
        names = sorted({run["data.name"] for runs in self.runs.values() for run in runs})
        if len(names) > 1:
            raise UserError(
                f"--data: got {data_set!r}, but --preset={self.name} has runs on "
                f"{', '.join(names)}; give a preset of one data set"
            )
        runs = {id: [_on(run, data_set) for run in own] for id, own in self.runs.items()}
        return dataclasses.replace(self, runs=runs)


def _on(run: Settings, data_set: str) -> Settings:
    moved = {**run, "data.name": data_set}
    if TRANSPLANT in run:
        moved[TRANSPLANT] = _on(run[TRANSPLANT], data_set)
    return moved


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
