"""Parts of the user's own, by name: models, tasks, optimizers, schedules and data sets.

A part is named MODULE:NAME, such as my_package.vit:ViT. Its keys in a config are the arguments of
the class or function that is found there.
"""

import contextlib
import functools
import importlib
import inspect
import json
import os
import pkgutil
import sys
import traceback
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from randmix import ranges
from randmix.errors import UserError, did_you_mean

_KINDS = {
    int: "an integer",
    float: "a number",
    str: "a text",
    bool: "True or False",
    tuple: "a tuple",
    type(None): "None",
}
_INSTALLED = ("site-packages", "dist-packages", "importlib", str(Path(__file__).parent) + os.sep)


def is_own(name: Any) -> bool:
    """Whether a name has the form MODULE:NAME, unlike "tfds/emnist:4.0.0"."""
    return isinstance(name, str) and ":" in name and "/" not in name


def find(key: str, name: str, folder: str | None = None) -> Any:
    """Imports what MODULE:NAME names.

    Args:
        key: the config key that holds the name, for error messages.
        name: MODULE:NAME.
        folder: where modules are looked for after Python's path; then comes the current folder.

    Raises:
        UserError: there is no such module or no such name in it, the module raises an error, or
            another module of that name hides the one in the folder.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise UserError(f"{key}: got {name!r}, allowed is MODULE:NAME, such as my_package.vit:ViT")
    folders = look_in(folder)
    with running(key, name):
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):  # one that the module imports
                raise
            near = did_you_mean(module, [info.name for info in pkgutil.iter_modules(folders)])
            raise UserError(
                f"{key}: got {name!r}, but there is no module {error.name!r} in "
                f"{' or '.join(folders)} or on Python's path{near}; go to its folder, or set "
                "config.code_dir or PYTHONPATH"
            ) from error
    if folder is not None:
        _require_from(key, folder, module, found)
    if not hasattr(found, attribute):
        raise UserError(
            f"{key}: got {name!r}, but {module} has no {attribute!r}"
            f"{did_you_mean(attribute, dir(found))}"
        )
    return getattr(found, attribute)


def look_in(folder: str | None) -> list[str]:
    """Appends a folder, if any, and the current one to Python's path, and returns them.

    They stay there, since a module may import its neighbours later.
    """
    here = os.getcwd()
    folders = [*dict.fromkeys((folder or here, here))]
    sys.path.extend(place for place in folders if place not in sys.path)
    importlib.invalidate_caches()  # a module may be younger than the listing of its folder
    return folders


def _require_from(key: str, folder: str, module: str, found: types.ModuleType) -> None:
    """Raises a UserError if a folder has a module, but Python found another of the same name."""
    top, got = Path(folder, module.partition(".")[0]), getattr(found, "__file__", None)
    there = top.is_dir() or top.with_suffix(".py").is_file()
    if there and got and not Path(got).resolve().is_relative_to(Path(folder).resolve()):
        raise UserError(
            f"{key}: {got} hides the module {module!r} in {folder}; give the one in the folder "
            "another name, or start another process"
        )


@contextlib.contextmanager
def running(key: str, name: str) -> Iterator[None]:
    """Turns an error that a part raises inside the context into a UserError with its place.

    Args:
        key: the config key that names the part.
        name: the part's name.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        places = traceback.extract_tb(error.__traceback__)
        users = [p for p in places if not any(part in p.filename for part in _INSTALLED)]
        where = f" in {users[-1].filename}, line {users[-1].lineno}" if users else ""
        reason = next(iter(str(error).strip().splitlines()), "")
        raise UserError(f"{key}: {name} raised {type(error).__name__} ({reason}){where}") from error


def parameters(part: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Returns the parameters of a class's or function's call, by name."""
    function = part.__init__ if inspect.isclass(part) else part
    try:
        signature = inspect.signature(function, eval_str=True)
    except Exception:  # whatever a hint raises that can't be evaluated here
        signature = inspect.signature(function)
    taken = list(signature.parameters.items())
    return dict(taken[1:] if inspect.isclass(part) else taken)  # without self


def accepted(part: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those of the values that the call of a class or function takes, by name."""
    taken = parameters(part)
    anything = any(p.kind is p.VAR_KEYWORD for p in taken.values())
    return {name: value for name, value in values.items() if anything or name in taken}


def required(part: Callable[..., Any]) -> set[str]:
    """Returns the names of the parameters without a default."""
    variable = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    taken = parameters(part).items()
    return {n for n, p in taken if p.default is p.empty and p.kind not in variable}


def arguments(
    key: str,
    name: str,
    part: Callable[..., Any],
    given: Mapping[str, Any],
    *,
    filled: Collection[str] = (),
    reserved: Collection[str] = (),
) -> dict[str, Any]:
    """Checks the keys of a part, and adds the defaults of those that aren't given.

    Args:
        key: the group of the config that they are in, such as "config.model".
        name: the part's name.
        part: its class or function.
        given: values by name.
        filled: parameters that need no value, because the caller knows one.
        reserved: parameters that aren't keys.

    Returns:
        The values given, and the defaults that JSON can hold.

    Raises:
        UserError: an unknown key, a value of another type than the parameter's, as far as that is
            known, or a missing one.
    """
    taken = {n: p for n, p in parameters(part).items() if n not in reserved}
    anything = any(p.kind is p.VAR_KEYWORD for p in taken.values())
    taken = {n: p for n, p in taken.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    for own, value in given.items():
        if own in taken:
            _check_type(f"{key}.{own}", value, taken[own])
        elif not anything:
            has = f"; it has: {', '.join(taken)}" if taken else ""
            near = did_you_mean(own, taken) or has
            raise UserError(f"{key}.{own}: {name} has no such argument{near}")
    left = {n: p for n, p in taken.items() if n not in given and n not in filled}
    if missing := [n for n in left if n in required(part)]:
        raise UserError(f"{key}: {name} needs a value for {', '.join(missing)}")
    return {**given, **{n: p.default for n, p in left.items() if _is_plain(p.default)}}


def bound(function: Callable[..., Any], user: Mapping[str, Any]) -> Callable[..., Any]:
    """Returns a function that is given ``config.user`` if it has an argument of the name user."""
    takes = "user" in parameters(function)
    return functools.partial(function, user=dict(user)) if takes else function


def _check_type(key: str, value: Any, parameter: inspect.Parameter) -> None:
    kinds = _kinds(parameter)
    if kinds is None or (value is None and parameter.default is None):
        return
    fits = type(value) in kinds or (type(value) is int and float in kinds)
    if not fits:
        allowed = " or ".join(text for kind, text in _KINDS.items() if kind in kinds)
        raise UserError(f"{key}: got {ranges.shown(value)}, allowed {allowed}")


def _kinds(parameter: inspect.Parameter) -> set[type] | None:
    """The plain types that a parameter takes, by its hint or else its default; None if unknown."""
    hint = parameter.annotation
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    options = typing.get_args(hint) if union else (hint,)
    kinds = {typing.get_origin(option) or option for option in options}
    if kinds <= _KINDS.keys():
        return kinds
    kind = type(parameter.default)
    if parameter.default is None or kind not in _KINDS:
        return None
    return {int, float} if kind is int else {kind}


def _is_plain(value: Any) -> bool:
    """Whether a config can hold a value."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, dict)
