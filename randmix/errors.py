"""The one exception that stands for a user's mistake, and the sentence that suggests a near name."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave: a config, a flag, a path, a file.

    Its message is one line that says what was got, what is allowed and what to do. The command-line
    programs print that line and exit with status 2; every other exception is a bug of ours and keeps
    its traceback.
    """


def did_you_mean(got: object, allowed: Iterable[str]) -> str:
    """Returns ``"; did you mean 'x'?"``, or nothing where no allowed name is near.

    >>> did_you_mean("adamv", ["adamw", "sgd"])
    "; did you mean 'adamw'?"
    >>> did_you_mean("zzz", ["adamw", "sgd"])
    ''
    """
    near = difflib.get_close_matches(str(got), list(allowed), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def check_choice(what: str, got: object, allowed: Iterable[str]) -> None:
    """Raises a UserError unless ``got`` is one of ``allowed``.

    >>> check_choice("config.mode", "chan", ["full", "chans", "space"])
    Traceback (most recent call last):
    ...
    randmix.errors.UserError: config.mode: got 'chan', allowed full, chans, space; did you mean 'chans'?
    """
    allowed = list(allowed)
    if got not in allowed:
        raise UserError(
            f"{what}: got {got!r}, allowed {', '.join(allowed)}{did_you_mean(got, allowed)}"
        )
