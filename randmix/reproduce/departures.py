"""What the paper states of its runs, beside what these runs do.

The second is computed from the runs' configs, after overrides and with what their data decide, so
that the report can't claim a setting that wasn't used.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from randmix import config as configs
from randmix.errors import UserError
from randmix.experiments.plan import Group, PlannedRun
from randmix.experiments.records import Record
from randmix.reproduce.experiments import EXPERIMENTS
from randmix.reproduce.presets import Preset
from randmix.reproduce.titles import known_name, title_of
from randmix.training import runs as assembly

RESNET, CONVMIXER, UNSHUFFLING = "Separable ResNets", "ConvMixers", "Un-shuffling"
ALL, ATTACKS = "All models", "Attacks and smoothing"
_MOST = 8  # values that are listed; of more, the ends are


class Row(NamedTuple):
    """A setting of a family of runs.

    Attributes:
        setting: its name.
        paper: what the paper states, and where.
        runs: what the runs do.
        same: whether the paper states it and no run differs.
    """

    setting: str
    paper: str
    runs: str
    same: bool


@dataclasses.dataclass(frozen=True)
class Stated:
    """What the paper states of a setting.

    Attributes:
        values: the values by the data sets that they hold for, "CIFAR" or "ImageNet", or "" for
            all; {} where it states none.
        words: the section; of what isn't stated, what comes nearest.
    """

    values: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    words: str = ""

    def allows(self, value: Any, data_set: str) -> bool:
        """Whether a run on a data set has a stated value; one on another data set may have any."""
        every = [value for values in self.values.values() for value in values]
        return value in self.values.get(_kind(data_set), every)

    def __str__(self) -> str:
        if not self.values:
            return f"not stated; {self.words}" if self.words else "not stated"
        parts = [
            ", ".join(map(_text, values)) + (f" ({kind})" if kind else "")
            for kind, values in self.values.items()
        ]
        return "; ".join(filter(None, (", ".join(parts), self.words)))


# Sections and figures are the paper's. Beyond these it says that all modes train alike (4.1); it
# states no accuracy, no length and no learning rate of a training, no epsilon and no seed.
_NOTHING = Stated()
_CLASSIFIED = {
    "data": Stated({"": ("CIFAR-10", "CIFAR-100", "ImageNet")}, "section 4.1"),
    "training images": Stated({"CIFAR": (50_000,), "ImageNet": (1_281_167,)}),
    "test images": Stated({"CIFAR": (10_000,), "ImageNet": (50_000,)}),
    "pixels": Stated({"CIFAR": ("32 x 32",)}),
}
_PAPER: Mapping[str, Mapping[str, Stated]] = {
    RESNET: {
        **_CLASSIFIED,
        "width": Stated(words="16 and 64 in the ResNets that it converts"),
        "depth": Stated(words="2 blocks per stage in figure 3"),
        "kernel size": Stated({"": (3,)}, "section 3.4"),
        "filters per channel": Stated({"": (9,)}, "section 4.1.1"),
    },
    CONVMIXER: {
        **_CLASSIFIED,
        "width": Stated({"CIFAR": (128,), "ImageNet": (512,)}, "section 4.2"),
        "depth": Stated(words="4 in figure 9"),
        "kernel size": Stated({"": (8,)}, "section 4.2"),
        "patch size": Stated({"CIFAR": (1,), "ImageNet": (7,)}, "section 4.2"),
        "optimizer": Stated(words="from the code of the ConvMixer's authors (section 4.2)"),
    },
    UNSHUFFLING: {
        "data": Stated({"": ("MNIST", "Fashion-MNIST", "CIFAR-10")}, "section 4.4"),
        "training images": Stated({"MNIST": (60_000,), "CIFAR": (50_000,)}),
        "test images": Stated({"": (10_000,)}),
        "pixels": Stated({"MNIST": ("28 x 28",), "CIFAR": ("32 x 32",)}),
        "width": Stated(words="512 in the large model (appendix B)"),
        "depth": Stated(words="16 in the large model (appendix B)"),
        "kernel size": Stated(words="7 in the large model (appendix B)"),
        "patch size": Stated({"": (1,)}, "section 4.4"),
    },
    ATTACKS: {"attacks": Stated({"": ("FGSM", "PGD-2")}, "section 4.3.1")},
}
_KINDS = {"cifar": "CIFAR", "imagenet": "ImageNet", "mnist": "MNIST", "fashion_mnist": "MNIST"}
_AUGMENTATIONS = {
    "crop_padding": "padded crop",
    "crop_scale": "resized crop",
    "flip": "flip",
    "randaugment": "RandAugment",
    "color_jitter": "colour jitter",
    "mixup": "mixup",
    "cutmix": "CutMix",
    "random_erasing": "erasing",
}


def table(
    groups: Sequence[Group], found: Mapping[str, Record], preset: Preset
) -> dict[str, list[Row]]:
    """The paper's settings beside those of a sweep's runs, by family of runs.

    Settings in which no family stands out come first. Runs of experiments that are ours alone are
    left out.

    Args:
        groups: all runs of the sweep, finished or not.
        found: the records of the finished ones, by name, which say what the data decided.
        preset: its ``attack`` holds the settings of the attacks.
    """
    papers = [group for group in groups if not all(map(_ours, group[0].experiments))]
    rows = {
        family: _rows(
            _PAPER[family],
            [
                ({**_values(run, found.get(run.name)), "seeds": len(group)}, run.config.data.name)
                for group in papers
                for run in group
                if _family(run.config) == family
            ],
        )
        for family in (RESNET, CONVMIXER, UNSHUFFLING)
    }
    attacked = [
        group[0].settings for group in papers if {"E6", "E7", "E8"} & {*group[0].experiments}
    ]
    rows = _with_shared({family: own for family, own in rows.items() if own})
    return rows | ({ATTACKS: _attacks(attacked, preset.attack)} if attacked else {})


def _with_shared(rows: Mapping[str, Sequence[Row]]) -> dict[str, list[Row]]:
    """The rows, with those that several families share, all of them, once and above."""
    if len(rows) < 2:
        return {family: [*own] for family, own in rows.items()}
    first, *others = rows.values()
    shared = [row for row in first if all(row in other for other in others)]
    apart = {family: [row for row in own if row not in shared] for family, own in rows.items()}
    return {ALL: shared, **apart} if shared else apart


def _ours(experiment: str) -> bool:
    return EXPERIMENTS[experiment].source.startswith("ours")


def _family(config: configs.Config) -> str:
    if config.task == "unshuffling":
        return UNSHUFFLING
    return RESNET if config.model.name == "resnet" else CONVMIXER


def _rows(paper: Mapping[str, Stated], runs: Sequence[tuple[Mapping[str, Any], str]]) -> list[Row]:
    """A row for each setting that the runs have; ``runs`` are their values and data sets."""
    rows = []
    for setting in dict.fromkeys(name for values, _ in runs for name in values):
        stated = paper.get(setting, _NOTHING)
        known = [(values[setting], data) for values, data in runs if setting in values]
        same = bool(stated.values) and all(stated.allows(*one) for one in known)
        rows.append(Row(setting, str(stated), _listed(value for value, _ in known), same))
    return rows


def _values(run: PlannedRun, record: Record | None) -> dict[str, Any]:
    """The settings of a run that are compared; without those that its model lacks."""
    config, data = run.config, _data(run, record)
    values: dict[str, Any] = {"data": title_of(config.data.name)}
    if "train_examples" in data:
        values["training images"] = data["train_examples"]
        values["test images"] = data["test_examples"]
    if "image_shape" in data:
        values["pixels"] = "{} x {}".format(*data["image_shape"])
    learned = config.data.subset * (1 - config.data.validation)
    values["share of the training images"] = f"{100 * learned:.3g} %"
    for key, name in (
        ("width", "width"),
        ("depth", "depth"),
        ("kernel_size", "kernel size"),
        ("patch_size", "patch size"),
        ("multiplier", "filters per channel"),
    ):
        values |= {name: config.model[key]} if key in config.model else {}
    if config.steps is None:
        values["epochs"] = float(f"{config.epochs:.3g}")
    elif "train_examples" in data:
        images = max(1, round(learned * data["train_examples"]))
        values["epochs"] = float(f"{config.steps * config.batch_size / images:.2g}")
    name = {"adamw": "AdamW", "sgd": "SGD"}.get(config.optimizer.name, config.optimizer.name)
    return {
        **values,
        "batch size": config.batch_size,
        "optimizer": f"{name}, learning rate {config.optimizer.learning_rate:g}",
        "augmentation": _augmentation(config),
        "arithmetic": config.precision,
    }


def _data(run: PlannedRun, record: Record | None) -> Mapping[str, Any]:
    """Sizes of a run's data set: as it was when the run was trained, or as it is known here."""
    known = record.data if record and record.data else {}
    if "train_examples" in known:
        return known
    try:
        own = assembly.find_dataset(run.config)
    except UserError:  # a report from records alone needs no data, and older records say less
        return known
    sizes = {name: getattr(own, name) for name in ("train_examples", "test_examples")}
    return {"image_shape": own.image_shape, **known, **sizes}


def _augmentation(config: configs.Config) -> str:
    off = configs.default(config.model.name).data
    used = [name for key, name in _AUGMENTATIONS.items() if config.data[key] != off[key]]
    return ", ".join(used) or "none"


def _attacks(attacked: Sequence[Mapping[str, Any]], attack: Mapping[str, Any]) -> list[Row]:
    """Rows of the attacks of E6 and E7, and of what their runs were trained with."""
    examples = attack["examples"]
    values = {
        "attacks": "FGSM, PGD-2; beside them random noise, Square, a targeted and a strong attack",
        "epsilon (1/255)": _listed(attack["epsilons"]),
        "attacked test images": "all" if examples is None else f"{examples:,}",
        "of them by the other attacks": f"{attack['strong_examples']:,}",
        "steps and restarts of the strong attack": f"{attack['steps']}, {attack['restarts']}",
        "epsilon of training on FGSM samples (1/255)": _listed(
            settings["defense.epsilon"] for settings in attacked if settings.get("defense.epsilon")
        ),
        "smoothing indices": _listed(
            settings["model.smoothing_index"]
            for settings in attacked
            if "model.smoothing_index" in settings
        ),
    }
    paper = _PAPER[ATTACKS]
    return [
        Row(name, str(paper.get(name, _NOTHING)), value, same=False)
        for name, value in values.items()
        if value
    ]


def _kind(data_set: str) -> str:
    name = known_name(data_set)
    return next((kind for prefix, kind in _KINDS.items() if name.startswith(prefix)), "")


def _listed(values: Iterable[Any]) -> str:
    """Distinct values in their order; of many, the ends."""
    distinct = sorted({*values})
    if len(distinct) > _MOST:
        return f"{_text(distinct[0])} to {_text(distinct[-1])} ({len(distinct)} values)"
    separator = "; " if any(isinstance(value, str) for value in distinct) else ", "
    return separator.join(map(_text, distinct))


def _text(value: Any) -> str:
    return f"{value:,}".removesuffix(".0") if isinstance(value, int | float) else str(value)
