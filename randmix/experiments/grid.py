"""The runs of a grid: a config with every combination of some of its keys' values."""

import ast
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from randmix import config as configs
from randmix.errors import UserError, did_you_mean
from randmix.experiments.plan import Group, group
from randmix.training import runs as assembly

Settings = dict[str, Any]


def parse_axes(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Parses the values of ``--grid``, the axes of the grid, into their values by key.

    >>> parse_axes(["mode=full,chans", "model.depth=2,4"])
    {'mode': ['full', 'chans'], 'model.depth': [2, 4]}
    >>> parse_axes(["train=['~role(\\"spatial\\")', 'everything']"])
    {'train': ['~role("spatial")', 'everything']}

    Raises:
        UserError: a text that isn't KEY=VALUE,... or a key that occurs twice.
    """
    axes: dict[str, list[Any]] = {}
    for text in texts:
        key, value = _split("grid", text, "--grid=mode=full,chans or --grid=KEY=[VALUE,...]")
        if key in axes:
            raise UserError(f"--grid: got the key {key!r} twice, allowed is one axis for each key")
        if not value:
            raise UserError(f"--grid: got {text!r}, allowed is KEY=VALUE,..., with a value or more")
        axes[key] = _values(key, value)
    return axes


def parse_fixed(
    texts: Sequence[str], flag: str = "set", example: str = "--set=steps=400"
) -> Settings:
    """Parses the values of ``--set``, or of another flag, into a value by key.

    >>> parse_fixed(["steps=400", "data.randaugment=", "schedule.boundaries=(0.5, 0.9)"])
    {'steps': 400, 'data.randaugment': '', 'schedule.boundaries': (0.5, 0.9)}

    Raises:
        UserError: a text that isn't KEY=VALUE, or a key that occurs twice.
    """
    fixed: Settings = {}
    for text in texts:
        key, value = _split(flag, text, example)
        if key in fixed:
            raise UserError(f"--{flag}: got the key {key!r} twice, allowed is each key once")
        fixed[key] = _value(value)
    return fixed


def build(
    config: configs.Config,
    name: str,
    axes: Mapping[str, Sequence[Any]],
    fixed: Mapping[str, Any],
    seeds: int,
) -> list[Group]:
    """Plans the runs of a grid, each with several seeds, and checks all of them.

    Args:
        config: what all runs have in common. Its seed is the first one.
        name: the config's name, the title of a grid without axes.
        axes: the values of each key that varies, by dotted key.
        fixed: the values of keys that don't vary.
        seeds: the number of seeds.

    Raises:
        UserError: a key or a value that the config doesn't take, a key that is both varied and
            fixed, or a data set that isn't prepared.
    """
    for key in axes:
        if key == "seed":
            raise UserError("--grid: got 'seed', allowed are other keys; set --seeds")
        if key in configs.DISPLAY_KEYS:
            raise UserError(
                f"--grid: got {key!r}, which doesn't change what is learned; give it with --set"
            )
        if key in fixed:
            raise UserError(f"--set: got {key!r}, which --grid varies; give it once")
    groups: dict[str, Group] = {}  # by the first run's name: values may be equal, such as 1 and 1.0
    for values in itertools.product(*axes.values()):
        varied = dict(zip(axes, values, strict=True))
        own = changed(config, {**fixed, **varied})
        title = " ".join(f"{key}={value}" for key, value in varied.items()) or name
        planned = group(own, range(own.seed, own.seed + seeds), {**fixed, **varied}, title)
        groups.setdefault(planned[0].name, planned)
    return [*groups.values()]


def changed(config: configs.Config, settings: Mapping[str, Any]) -> configs.Config:
    """Returns a copy of a config with other values of some keys.

    Another "model.name" brings that model's keys; those that the old model has too keep their
    values.

    Raises:
        UserError: a key that the config doesn't have, or a value that it doesn't take.
    """
    own = _with_parts(config, settings)
    default = configs.default(own.model.name)
    usual, known = configs.flatten(default), configs.flatten(own)
    for key, value in settings.items():
        if key not in known:
            raise UserError(
                f"config.{key}: no such key with the model {own.model.name}"
                f"{did_you_mean(key, known)}; `python -m randmix train --help` lists them"
            )
        *names, last = key.split(".")
        typed = default if key in usual else own
        place, typed = (functools.reduce(getattr, names, c) for c in (own, typed))
        with own.ignore_type():  # the errors of ``configs.check`` are clearer
            place[last] = _typed(value, typed.get_type(last))
    configs.check(own)
    return own


def _with_parts(config: configs.Config, settings: Mapping[str, Any]) -> configs.Config:
    """A copy of a config with other models, optimizers and schedules, and all of their keys."""
    own = _with_model(config, settings.get("model.name", config.model.name))
    for part in ("optimizer", "schedule"):
        own[part].name = str(settings.get(f"{part}.name", own[part].name))
    return assembly.complete(own)


def _with_model(config: configs.Config, name: str) -> configs.Config:
    """A copy of a config with another model; keys that both models have keep their values."""
    own = config.copy_and_resolve_references()
    if name == own.model.name:
        return own
    other = configs.default(name)
    for key, value in own.items():
        if key != "model":
            other[key] = value
    for key, value in own.model.items():
        if key in other.model and key != "name":
            other.model[key] = value
    return other


def _typed(value: Any, kind: type) -> Any:
    """A parsed value as the key's type wants it, where no other reading is possible."""
    if kind is str and value is not None and not isinstance(value, str):
        return str(value)
    if kind is bool and value in ("true", "false"):
        return value == "true"
    if kind is tuple and isinstance(value, list):
        return tuple(value)
    return value


def _split(flag: str, text: str, example: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--{flag}: got {text!r}, allowed is KEY=VALUE, for example {example}")
    return key.strip().removeprefix("config."), value.strip()


def _values(key: str, text: str) -> list[Any]:
    if not text.startswith("["):
        return [_value(part.strip()) for part in text.split(",")]
    values = _value(text)
    if not isinstance(values, list) or not values:
        raise UserError(
            f"--grid: got {key}={text}, allowed in brackets are Python literals, for example "
            "--grid=train=\"['everything', 'role(\\\"channel\\\")']\""
        )
    return values


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text
