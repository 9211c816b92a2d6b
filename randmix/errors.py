"""The exception for user mistakes, and helpers that suggest the nearest valid name."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in the user's input: a config, a flag, a path or a file.

    The message is one line: what was got, what is allowed and what to do. Command-line programs
    print that line and exit with status 2; any other exception is a bug and keeps its traceback.
    """


def did_you_mean(got: object, allowed: Iterable[str]) -> str:
    """Returns ``"; did you mean 'x'?"``, or an empty string if no allowed name is similar.

    >>> did_you_mean("adamv", ["adamw", "sgd"])
    "; did you mean 'adamw'?"
    >>> did_you_mean("zzz", ["adamw", "sgd"])
    ''
    """
    near = difflib.get_close_matches(str(got), list(allowed), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def check_choice(what: str, got: object, allowed: Iterable[str]) -> None:
    """Raises a UserError unless ``got`` is one of ``allowed``.

    >>> check_choice("mode", "chan", ["full", "chans", "space"])
    Traceback (most recent call last):
    ...
    randmix.errors.UserError: mode: got 'chan', allowed full, chans, space; did you mean 'chans'?
    """
    allowed = list(allowed)
    if got not in allowed:
        raise UserError(
            f"{what}: got {got!r}, allowed {', '.join(allowed)}{did_you_mean(got, allowed)}"
        )
