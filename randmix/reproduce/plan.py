"""The runs of a sweep: each once, in groups of seeds, with their costs, divided into shards."""

import ast
import collections
import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath
from flax import linen as nn

from randmix import config as configs
from randmix.data import catalog
from randmix.errors import UserError, did_you_mean
from randmix.models import counts
from randmix.reproduce.presets import LONGER, Preset, Settings
from randmix.training import runs as assembly
from randmix.workdir import artifacts


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """A run of the sweep.

    Attributes:
        name: fingerprint of the config that the settings give, and name of its folder.
        config: that config, with what its data and this machine decide; see ``runs.resolve``.
        settings: the config keys that the preset and the command line set, flat, and the seed.
        experiments: ids of the experiments that use it.
        cost: multiply-adds of the forward passes in training.
        steps: number of training steps.
        steps_per_epoch: number of full batches in an epoch.
    """

    name: str
    config: configs.Config
    settings: Mapping[str, Any]
    experiments: tuple[str, ...]
    cost: float
    steps: int
    steps_per_epoch: int

    def folder(self, root: epath.PathLike) -> epath.Path:
        """The run's workdir."""
        return epath.Path(root) / "runs" / self.name

    @property
    def title(self) -> str:
        """A short description of the run."""
        return describe(self.settings)


Group = tuple[PlannedRun, ...]  # runs that differ only in their seed


def describe(settings: Mapping[str, Any]) -> str:
    """Describes a run briefly, by the settings in which the runs of a preset differ.

    >>> run = {"model.name": "resnet", "model.depth": 2, "mode": "chans", "seed": 1}
    >>> describe({"data.name": "digits", **run})
    'digits resnet depth 2 chans seed 1'
    """
    words = [str(settings.get("data.name", "digits"))]
    words += ["un-shuffling"] if settings.get("task") == "unshuffling" else []
    words.append(str(settings["model.name"]))
    for key, name in (
        ("width", "width"),
        ("depth", "depth"),
        ("kernel_size", "k"),
        ("multiplier", "m"),
    ):
        words += [f"{name} {settings[f'model.{key}']}"] if f"model.{key}" in settings else []
    words.append(
        f"fraction {share:g}" if 0 < (share := learned_share(settings)) < 1 else settings["mode"]
    )
    words += [settings["model.filters"]] if "model.filters" in settings else []
    if rank := settings.get("model.filter_rank"):
        words.append(f"rank {rank}")
    words += (
        [f"index {settings['model.smoothing_index']:g}"]
        if settings.get("model.smoothing_index")
        else []
    )
    words += ["defended"] if settings.get("defense.epsilon") else []
    words += ["held out"] if settings.get("data.validation") else []
    words += ["twice as long"] if settings.get(LONGER, 1) == 2 else []
    return " ".join([*words, f"seed {settings['seed']}"])


def learned_share(settings: Mapping[str, Any]) -> float:
    """The share of spatial filters that a run learns: 0 (Chans, Floor) to 1 (Full, Space)."""
    if settings.get("groups") is None:
        return float(settings["mode"] in ("full", "space"))
    (share,) = re.findall(r"fraction\(role\('spatial'\), ([0-9.]+)\)", repr(settings["groups"]))
    return float(share)


def parse_overrides(texts: Sequence[str]) -> Settings:
    """Parses ``["epochs=2", "data.subset=0.1"]`` into keys and values.

    Values are Python literals; anything else is a string.

    Raises:
        UserError: a text without a key or without "=".
    """
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UserError(
                f"--override: got {text!r}, allowed is KEY=VALUE, "
                "for example --override=data.subset=0.1,epochs=2"
            )
        try:
            found[key.strip()] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[key.strip()] = value
    return found


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

    Raises:
        UserError: a config is invalid, or a data set isn't prepared.
    """
    users: dict[str, list[str]] = collections.defaultdict(list)
    wanted: dict[str, Settings] = {}
    for experiment in experiments:
        for settings in preset.runs[experiment]:
            settings = _overridden(settings, overrides or {})
            name = configs.fingerprint(make_config({**settings, "seed": 0}))
            wanted.setdefault(name, settings)
            if experiment not in users[name]:
                users[name].append(experiment)
    groups = []
    for name, settings in wanted.items():
        costs = _costs(_config({**settings, "seed": 0}, data_dir))
        takers = tuple(users[name])
        chosen = range(max(map(preset.seeds_of, takers))) if seeds is None else seeds
        groups.append(
            tuple(_planned({**settings, "seed": s}, takers, costs, data_dir) for s in chosen)
        )
    return groups


def _planned(
    settings: Settings,
    experiments: tuple[str, ...],
    costs: tuple[float, int, int],
    data_dir: str | None,
) -> PlannedRun:
    config = _config(settings, data_dir)
    resolved, _ = assembly.resolve(config)
    return PlannedRun(configs.fingerprint(config), resolved, settings, experiments, *costs)


def _config(settings: Settings, data_dir: str | None) -> configs.Config:
    config = make_config(settings)
    config.data.data_dir = data_dir
    return config


def make_config(settings: Mapping[str, Any]) -> configs.Config:
    """Builds a config from a flat dict of settings, which must include "model.name".

    The settings may also have ``presets.LONGER``.

    Raises:
        UserError: a key that configs of this model don't have, or a value of another type.
    """
    config = configs.default(settings["model.name"])
    keys = {key: value for key, value in settings.items() if key != LONGER}
    try:
        config.update_from_flattened_dict(keys)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"preset or --override: {str(error).splitlines()[0]}") from error
    length = "epochs" if config.steps is None else "steps"
    config[length] *= settings.get(LONGER, 1)
    return config


def _overridden(settings: Settings, overrides: Settings) -> Settings:
    own = configs.flatten(configs.default(settings["model.name"]))
    return settings | {key: value for key, value in overrides.items() if key in own}


def _costs(config: configs.Config) -> tuple[float, int, int]:
    """Multiply-adds, steps, and steps per epoch."""
    parts = assembly.assemble(config)
    dataset, total_steps = parts.data.dataset, parts.loop.total_steps
    if not dataset.embedded:
        catalog.require_prepared(dataset.name, config.data.data_dir)
    images = total_steps * parts.step.batch_size
    cost = float(_multiply_adds(parts.step.model, dataset.image_shape) * images)
    return cost, total_steps, parts.loop.steps_per_epoch


@functools.cache
def _multiply_adds(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    return sum(counts.multiply_adds(model, image_shape).values())


def parse_shard(text: str) -> tuple[int, int]:
    """Parses ``"3/8"`` into (3, 8): the third of eight jobs.

    Raises:
        UserError: the text is not i/n with 1 <= i <= n.
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    i, n = map(int, match.groups()) if match else (0, 0)
    if not 1 <= i <= n:
        raise UserError(
            f"--shard: got {text!r}, allowed is i/n with i from 1 to n, for example --shard=3/8"
        )
    return i, n


def shard(groups: Iterable[Group], i: int, n: int) -> list[Group]:
    """The groups of job i (from 1) of n, assigned greedily: costliest first, to the job with least.

    The result depends only on the groups, so n jobs divide them without communicating.
    """
    loads, mine = [0.0] * n, []
    for group in sorted(groups, key=lambda group: (-group[0].cost, group[0].name)):
        taker = loads.index(min(loads))
        # Even with a tiny model a run costs something: its compilation.
        loads[taker] += len(group) * max(group[0].cost, 1.0)
        if taker == i - 1:
            mine.append(group)
    return mine


def table(groups: Sequence[Group], root: epath.PathLike) -> str:
    """A text table with one line per run: name, cost, steps, experiments, description, state."""
    lines = [f"{'run':8}  {'10^9 MAC':>12}  {'steps':>9}  experiments  description"]
    total = left = 0.0
    for run in (run for group in groups for run in group):
        done = artifacts.is_finished(run.folder(root))
        total += run.cost
        left += 0 if done else run.cost
        lines.append(
            f"{run.name:8}  {run.cost / 1e9:12,.4g}  {run.steps:9,}  "
            f"{'+'.join(run.experiments):11}  {run.title}{'  (finished)' if done else ''}"
        )
    runs = sum(map(len, groups))
    lines.append(
        f"{runs} runs, {total / 1e12:.3g} x 10^12 multiply-adds (MAC) of forward passes "
        f"(images x epochs x the model's), {left / 1e12:.3g} x 10^12 of them remaining; "
        "training takes about three times as many, plus the attacks"
    )
    return "\n".join(lines)
