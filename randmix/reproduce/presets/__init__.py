"""The presets: tables of each experiment's runs, which start from the recipes in configs/.

A run is a flat dict of config keys, {"model.depth": 2, ...}, whose other keys have the defaults of
``config.default``. Runs that several experiments share are trained once; ``plan`` adds the seeds.

- `preset`: the class, and settings from recipes.
- `runs`: the runs of an experiment, from the settings of its models.
- `small`: the presets smoke and digits, which need no data set.
- `laptop`: real data in the hours of two CPU cores.
- `paper`: the paper's own sizes, for a GPU.
"""

from collections.abc import Callable, Sequence

from randmix.errors import UserError, check_choice
from randmix.reproduce.presets import laptop, paper, small
from randmix.reproduce.presets.preset import CONVERGENCE, LONGER, TRANSPLANT, Preset, Settings

__all__ = [
    "CONVERGENCE",
    "LONGER",
    "NAMES",
    "TRANSPLANT",
    "Preset",
    "Settings",
    "check_experiments",
    "get",
    "tiers",
]

_PRESETS: dict[str, dict[str, Callable[[], Preset]]] = {
    "smoke": {"laptop": small.smoke},
    "digits": {"laptop": small.digits},
    "mnist": {"laptop": laptop.mnist, "paper": paper.mnist},
    "fashion_mnist": {"laptop": laptop.fashion_mnist, "paper": paper.fashion_mnist},
    "cifar10": {"laptop": laptop.cifar10, "paper": paper.cifar10},
    "cifar100": {"paper": paper.cifar100},
    "imagenet": {"paper": paper.imagenet},
}
NAMES = tuple(_PRESETS)


def tiers(name: str) -> tuple[str, ...]:
    """The tiers of a preset; the first is its default."""
    return tuple(_PRESETS[name])


def get(name: str, tier: str | None = None) -> Preset:
    """Returns the preset of a name, one of ``NAMES``, and a tier; None for its default.

    Raises:
        UserError: there is no such preset, or it has no such tier.
    """
    check_choice("--preset", name, _PRESETS)
    own = _PRESETS[name]
    if tier is None:
        tier = tiers(name)[0]
    if tier not in own:
        raise UserError(f"--tier: got {tier!r}, allowed with --preset={name}: {', '.join(own)}")
    return own[tier]()


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
