"""The runs of a preset's experiments: each once, whatever the number of experiments that use it."""

import collections
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from randmix import config as configs
from randmix.errors import UserError, did_you_mean
from randmix.experiments.plan import Group, group
from randmix.experiments.records import Record
from randmix.reproduce import transplants
from randmix.reproduce.presets import LONGER, TRANSPLANT, Preset, Settings
from randmix.reproduce.titles import (
    MODES,
    size_of_model,
    title_of,
    title_of_filters,
    title_of_mixer,
    title_of_model,
)

_KEPT = "keep_checkpoints"


def describe(settings: Mapping[str, Any]) -> str:
    """The title of a run: its data, its model and whatever else the runs of a preset differ in.

    It is short, as it stands in a line of a terminal, too.

    >>> run = {"model.name": "resnet", "model.depth": 2, "mode": "chans"}
    >>> describe({"data.name": "digits", **run, "data.validation": 0.1})
    'Digits ResNet, depth 2, Chans, held out'
    """
    task = "un-shuffling " if settings.get("task") == "unshuffling" else ""
    family = title_of_model({"model.name": settings["model.name"]}).removeprefix("separable ")
    words = [f"{title_of(settings['data.name'])} {task}{family}"]
    words += [title_of_mixer(settings["model.mixer"])] if "model.mixer" in settings else []
    words += [size] if (size := size_of_model(settings)) else []
    words += [f"m {settings['model.multiplier']}"] if "model.multiplier" in settings else []
    share = learned_share(settings)
    words.append(f"share {share:g}" if 0 < share < 1 else MODES[settings["mode"]])
    words += [title_of_filters(settings["model.filters"])] if "model.filters" in settings else []
    words += ["learned filters"] if TRANSPLANT in settings else []
    if rank := settings.get("model.filter_rank"):
        words.append(f"rank {rank}")
    if index := settings.get("model.smoothing_index"):
        words.append(f"smoothing {index:g}")
    words += ["defended"] if settings.get("defense.epsilon") else []
    words += ["held out"] if settings.get("data.validation") else []
    words += ["twice as long"] if settings.get(LONGER, 1) == 2 else []
    return ", ".join(words)


def learned_share(settings: Mapping[str, Any]) -> float:
    """The share of spatial filters that a run learns: 0 (Chans, Floor) to 1 (Full, Space)."""
    if settings.get("groups") is None:
        return float(settings["mode"] in ("full", "space"))
    (share,) = re.findall(r"fraction\(role\('spatial'\), ([0-9.]+)\)", repr(settings["groups"]))
    return float(share)


def split_overrides(preset: Preset, overrides: Settings) -> tuple[Preset, Settings]:
    """Applies overrides of the attack, such as "attack.examples", to the preset.

    Returns:
        The changed preset, and the remaining overrides.

    Raises:
        UserError: a key that neither the attack nor any config has, a value of another type for
            the attack, or a key in which the preset's runs differ.
    """
    attack, rest = dict(preset.attack), {}
    families = {run["model.name"] for runs in preset.runs.values() for run in runs}
    known = {key for family in families for key in configs.flatten(configs.default(family))}
    varied = {key for runs in preset.runs.values() for key in _varied(runs)} | {
        "seed",
        "model.name",
    }
    for key, value in overrides.items():
        if key.startswith("attack."):
            name = key.removeprefix("attack.")
            if name not in attack or type(value) is not type(attack[name]):
                allowed = ", ".join(f"attack.{name}={value}" for name, value in attack.items())
                raise UserError(
                    f"--override: got {key}={value!r}, allowed are {allowed}, "
                    "or other values of the same types"
                )
            if name == "epsilons" and (0 not in value or [*value] != sorted({*value})):
                raise UserError(
                    f"--override: got {key}={value!r}, allowed are radii in 1/255 that ascend "
                    "from 0, for example (0.0, 8.0, 64.0)"
                )
            attack[name] = value
        elif key in varied:
            raise UserError(
                f"--override: {key} is varied by the experiments; allowed are other keys"
            )
        elif key not in known:
            raise UserError(
                f"--override: no config has the key {key!r}{did_you_mean(key, known)}; "
                "see randmix/config.py"
            )
        else:
            rest[key] = value
    return dataclasses.replace(preset, attack=attack), rest


def _varied(runs: Sequence[Settings]) -> set[str]:
    """The keys in which runs of the same model and task differ."""
    families = collections.defaultdict(list)
    for run in runs:
        families[run["model.name"], run.get("task")].append(run)
    keys = {key for run in runs for key in run}
    return {
        key
        for family in families.values()
        for key in keys
        if len({repr(r.get(key)) for r in family}) > 1
    }


def build(
    preset: Preset,
    experiments: Sequence[str],
    seeds: Sequence[int] | None = None,
    *,
    overrides: Settings | None = None,
    data_dir: str | None = None,
    root: epath.PathLike = "",
    known: Mapping[str, Record] | None = None,
    report_only: bool = False,
) -> list[Group]:
    """Builds the runs of a sweep, grouped by everything but the seed, in the experiments' order.

    Assembles every config, to find mistakes before anything is trained.

    Args:
        preset: the preset that defines the runs.
        experiments: ids of experiments of the preset.
        seeds: the seeds with which each run is made; None for as many as the preset has for the
            run's experiments.
        overrides: config keys that replace the preset's values, in runs whose model has the key.
        data_dir: TFDS's data folder; None for its default.
        root: the sweep's folder.
        known: the records at hand, by name. A run that starts from filters which another run
            learns has its own name once that one is among them; see `waits`.
        report_only: the runs are not to be trained, so that the data need not be there.

    Raises:
        UserError: a config is invalid, or a data set isn't prepared.
    """
    known = known or {}
    users: dict[str, list[str]] = collections.defaultdict(list)
    wanted: dict[str, tuple[Settings, configs.Config]] = {}
    for experiment in experiments:
        for settings in preset.runs[experiment]:
            settings = _overridden(settings, overrides or {})
            config = make_config(settings)
            if TRANSPLANT in settings:
                source = configs.fingerprint(make_config(settings[TRANSPLANT]))
                config.model.filters = transplants.reference(source, root, known)
            name = configs.fingerprint(config)
            first = wanted.setdefault(name, (settings, config))[0]
            if settings.get(_KEPT, 0) > first.get(_KEPT, 0):  # no part of the name
                more = {key: settings[key] for key in ("checkpoint_every", _KEPT)}
                wanted[name] = ({**first, **more}, config)
            if experiment not in users[name]:
                users[name].append(experiment)
    groups = []
    for name, (settings, config) in wanted.items():
        takers = tuple(users[name])
        config.data.data_dir = data_dir
        chosen = range(max(map(preset.seeds_of, takers))) if seeds is None else seeds
        kept = known if report_only else None
        groups.append(group(config, chosen, settings, describe(settings), takers, kept))
    return groups


def starts_elsewhere(group: Group) -> bool:
    """Whether a group's runs start from filters that another run learns."""
    return TRANSPLANT in group[0].settings


def waits(group: Group) -> bool:
    """Whether they do, and that run is yet to be made."""
    _, digest = configs.transplant(group[0].config.model.filters) or (None, None)
    return starts_elsewhere(group) and digest is None


def make_config(settings: Mapping[str, Any]) -> configs.Config:
    """Builds a config from a flat dict of settings, which must include "model.name".

    The settings may also have ``presets.LONGER``, and ``presets.TRANSPLANT``, which `build` reads.

    Raises:
        UserError: a key that configs of this model don't have, or a value of another type.
    """
    config = configs.default(settings["model.name"])
    keys = {key: value for key, value in settings.items() if key not in (LONGER, TRANSPLANT)}
    try:
        config.update_from_flattened_dict(keys)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"preset or --override: {str(error).splitlines()[0]}") from error
    length = "epochs" if config.steps is None else "steps"
    config[length] *= settings.get(LONGER, 1)
    return config


def _overridden(settings: Settings, overrides: Settings) -> Settings:
    own = configs.flatten(configs.default(settings["model.name"]))
    changed = settings | {key: value for key, value in overrides.items() if key in own}
    if TRANSPLANT in settings:
        changed[TRANSPLANT] = _overridden(settings[TRANSPLANT], overrides)
    return changed
