"""Reading the JSON files of a workdir, with a check of their structure."""

import json
from typing import Any

from etils import epath

from randmix.errors import UserError


class Damaged(UserError):
    """A file that doesn't hold what was written there."""


def read(file: epath.PathLike, structure: Any, *, what_to_do: str) -> Any:
    """Returns the content of a JSON file.

    Args:
        file: the file, which must exist.
        structure: see ``parse``.
        what_to_do: the end of the error message.

    Raises:
        Damaged: the file can't be read, isn't JSON or has another structure.
    """
    try:
        return parse(epath.Path(file).read_bytes(), structure)
    except OSError as error:
        reason = error.strerror or str(error)
    except ValueError as error:
        reason = str(error)
    raise Damaged(f"{file}: damaged ({reason}); {what_to_do}")


def parse(text: str | bytes, structure: Any) -> Any:
    """Returns the value of a JSON text.

    Args:
        text: the text, or its bytes in UTF-8.
        structure: a type (``float`` also allows integers, ``object`` anything); a ``range`` for an
            integer in it; ``{str: inner}`` for an object with any keys; or ``{key: inner, ...}``
            for one with these and others, in which a key that ends in "?" may be missing.

    Raises:
        ValueError: the text isn't JSON or has another structure; the message says where.

    >>> parse('{"step": 3, "loss": 0.5}', {"step": int})
    {'step': 3, 'loss': 0.5}
    >>> parse('{"metrics": {"loss": "low"}}', {"metrics": {str: float}})
    Traceback (most recent call last):
    ...
    ValueError: metrics.loss is a string, expected a number
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("it isn't JSON") from None
    check(value, structure)
    return value


_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    type(None): "null",
}


def check(value: Any, structure: Any, where: str = "it") -> None:
    """Raises a ValueError unless a value has the structure, as described in ``parse``."""
    if structure is object:
        return
    kind = structure if isinstance(structure, type) else {dict: dict, range: int}[type(structure)]
    allowed = (int, float) if kind is float else (kind,)
    if type(value) not in allowed:
        raise ValueError(f"{where} is {_NAMES[type(value)]}, expected {_NAMES[kind]}")
    if isinstance(structure, range) and value not in structure:
        raise ValueError(f"{where} is {value}, expected {structure[0]} to {structure[-1]}")
    if isinstance(structure, dict):
        prefix = "" if where == "it" else f"{where}."
        if str in structure:
            structure = dict.fromkeys(value, structure[str])
        for name, inner in structure.items():
            key = name if name in value else name.removesuffix("?")
            if key in value:
                check(value[key], inner, f"{prefix}{key}")
            elif key == name:
                raise ValueError(f"{prefix}{key} is missing")
