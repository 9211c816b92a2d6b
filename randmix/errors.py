"""The exception for user mistakes, and helpers that raise it or suggest the nearest valid name."""

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator


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


def check_name(what: str, got: str) -> str:
    """Returns a data set's name; raises a UserError if TFDS or a shell can't handle it.

    >>> check_name("--name", "a b")
    Traceback (most recent call last):
    ...
    randmix.errors.UserError: --name: got 'a b', allowed are letters, digits, _ and -, starting \
with a letter or digit
    """
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9_-]*", got):
        raise UserError(
            f"{what}: got {got!r}, allowed are letters, digits, _ and -, starting with a letter or "
            "digit"
        )
    return got


@contextlib.contextmanager
def writing(place: object, advice: str) -> Iterator[None]:
    """Says in one line why files can't be written: a folder's permissions, a full disk.

    Args:
        place: the file or folder, with which the line starts.
        advice: what to do about it, with which the line ends.

    Raises:
        UserError: instead of an OSError.

    >>> with writing("/dev/null/x", "give another folder"):
    ...     _ = open("/dev/null/x", "w")
    Traceback (most recent call last):
    ...
    randmix.errors.UserError: /dev/null/x: can't be written (Not a directory); give another folder
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{place}: can't be written ({reason}); {advice}") from error


def check_choice(what: str, got: object, allowed: Iterable[str]) -> None:
    """Raises a UserError unless ``got`` is one of ``allowed``.

    >>> check_choice("mode", "chan", ["full", "chans"])
    Traceback (most recent call last):
    ...
    randmix.errors.UserError: mode: got 'chan', allowed full, chans; did you mean 'chans'?
    """
    allowed = list(allowed)
    if got not in allowed:
        raise UserError(
            f"{what}: got {got!r}, allowed {', '.join(allowed)}{did_you_mean(got, allowed)}"
        )
