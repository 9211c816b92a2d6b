"""Shared command-line behaviour: flags, help, one-line mistakes and exit statuses.

The exit status is what the program returns (None means 0), 2 for a user's mistake, 75 and 130 if a
signal ends the program (see `randmix.runtime.signals`), 141 if the reader of the output has gone
(`... | head`), and 1 for a bug. A mistake, or a warning of randmix's own, prints one line to
stderr; a bug keeps its traceback. Mistakes are `UserError`, flag errors from absl and
ml_collections, and any failure inside a config file.
"""

import atexit
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from randmix import config as configs
from randmix import parts
from randmix.errors import UserError, did_you_mean
from randmix.runtime import host, signals

HELP = frozenset(f"{dashes}{word}" for dashes in ("-", "--") for word in ("help", "helpfull", "h"))
_python_format = warnings.formatwarning
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def run(program: Callable[[], int | None]) -> None:
    """Runs a program to its end and exits by the rules in the module's docstring."""
    signals.listen()
    warnings.formatwarning = _format_warning
    atexit.register(signals.ignore)  # first, to be called last
    host.leave_libtpu_alone()
    try:
        try:
            sys.exit(program())
        finally:
            sys.stdout.flush()  # here a closed pipe can still be handled
    except SystemExit as end:
        code = end.code or 0
        signals.finished(code if isinstance(code, int) else 1)
        if code in (signals.START_AGAIN, signals.INTERRUPTED):
            # Everything is saved and closed. A thread may still be compiling, and Python's own
            # shutdown would then crash.
            sys.stderr.flush()
            os._exit(code)
        raise
    except UserError as error:
        signals.finished(2)
        print("randmix:", " ".join(str(error).split("\n")), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # of a library that has handled the signal
        signals.end(signal.SIGINT)
    except BrokenPipeError:
        signals.finished(141)
        # The remaining buffer would raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception:
        signals.finished(1)
        traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        # Not sys.exit: after a failed save, Orbax's threads keep the process alive for 20 minutes.
        os._exit(1)


def _format_warning(message: Any, category: type[Warning], *where: Any, **line: Any) -> str:
    if category.__module__.startswith("randmix."):
        return f"randmix: warning: {message}\n"
    return _python_format(message, category, *where, **line)


def parse(argv: list[str], help_text: Callable[[], str]) -> list[str]:
    """Parses the flags, including config files and their overrides.

    A config file configs/NAME that isn't in the current folder is the one that randmix ships, whose
    path is then printed.

    Args:
        argv: the command line, program first; must equal `sys.argv`, which ml_collections reads.
        help_text: returns what `--help` prints.

    Returns:
        The program and the positional arguments.

    Raises:
        UserError: an unknown flag, a bad value, a missing or failing config file, or an unknown
            key.
        SystemExit: after `--help`, with status 0.
    """
    options = argv[1 : argv.index("--")] if "--" in argv else argv[1:]
    if HELP.intersection(options):
        print(help_text())
        sys.exit(0)
    for name, typed in _values(options):
        if config_flags.is_config_flag(flags.FLAGS[name]):
            path = _shipped(typed) or typed
            if path != typed:
                print(f"config: {path}", flush=True)
            _check_exists(path)
            config = _load(name, path)
            _check_overrides(name, config, options)
            flags.FLAGS[name].parser = _Loaded(config)
    try:
        arguments = flags.FLAGS(argv)
    except Exception as error:  # absl and ml_collections raise a dozen types
        raise UserError(_flag_message(error, options)) from error
    if "verbosity" in flags.FLAGS and flags.FLAGS["verbosity"].using_default_value:
        # At INFO, absl prints dozens of lines per save.
        flags.FLAGS.verbosity = logging.WARNING
    return arguments


# What absl appends to the help of such a flag.
_MAY_BE_REPEATED = ";\n    repeat this option to specify a list of values"


def flags_text(names: list[str]) -> str:
    """Returns the meaning and default of each flag, for ``--help``."""
    lines = ["Flags (default):"]
    for flag in (flags.FLAGS[name] for name in names):
        name = f"[no]{flag.name}" if flag.boolean else flag.name
        without = flag.default is None or flag.default == []
        default = "" if without else f" ({flag.default_as_str})".replace("'", "")
        lines.append(f"  --{name}{default}")
        help_text = flag.help.removesuffix(_MAY_BE_REPEATED)
        lines.append(flags.text_wrap(help_text, length=100, indent="      "))
    return "\n".join(lines)


class _Loaded(flags.ArgumentParser):
    """Gives absl a config that is loaded already, as absl would hide errors in the file."""

    def __init__(self, config: Any):
        self.config = config

    def parse(self, argument: str) -> Any:
        """Returns the config, whatever the argument."""
        return self.config


def _values(options: list[str]) -> Iterator[tuple[str, str]]:
    """Yields the (name, value) of each ``--name=value`` or ``--name value`` of a known flag."""
    for i, option in enumerate(options):
        name, equals, value = option.lstrip("-").partition("=")
        if not option.startswith("-") or name not in flags.FLAGS:
            continue
        if equals:
            yield name, value
        elif not flags.FLAGS[name].boolean and i + 1 < len(options):
            yield name, options[i + 1]


def _shipped(path: str) -> str | None:
    """The shipped file of a path configs/NAME that isn't in the current folder, else None."""
    name = path.removeprefix("configs/")
    shipped = str(configs.RECIPES / name)
    missing = name != path and not os.path.exists(path.split(":")[0])
    return shipped if missing and os.path.isfile(shipped.split(":")[0]) else None


def _check_exists(path: str) -> None:
    """Raises a UserError if a config file is missing; ml_collections defers this to first use."""
    file = path.split(":")[0]  # the rest is get_config's argument
    if not os.path.isfile(file):
        folder = os.path.dirname(file)
        siblings = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
        known = [os.path.join(folder, name) for name in siblings if name.endswith(".py")]
        known += [f"configs/{shipped.name}" for shipped in configs.RECIPES.glob("*.py")]
        nearest = did_you_mean(file, known)
        raise UserError(f"there is no config file {file!r}{nearest}")


def _load(name: str, path: str):
    """Runs a config file; an error in it becomes a UserError that names the line.

    An error raised inside this package, called from the file, is our bug and is raised unchanged.
    """
    folder = os.path.dirname(os.path.abspath(path.split(":")[0]))
    parts.look_in(folder)  # the file may import its neighbours
    try:
        config = config_flags.ConfigFileFlagParser(name).parse(path)
        getattr(config, "is_locked", None)  # ml_collections defers an OSError to first use
        if isinstance(config, configs.Config):
            configs.complete(config)
            configs.set_code_dir(config, folder)
        return config
    except Exception as error:
        file = path.split(":")[0]
        chain: list[BaseException] = [error]  # ml_collections wraps what it catches
        while inner := chain[-1].__cause__ or chain[-1].__context__:
            chain.append(inner)
        reason = next((link for link in chain if _frames_from(link, file)), chain[-1])
        frames = _frames_from(reason, file)
        if any(frame.filename.startswith(_PACKAGE) for frame in frames[1:]) and not isinstance(
            reason, UserError
        ):
            raise reason from None
        # A SyntaxError in the file has no frame there.
        line = frames[0].lineno if frames else getattr(reason, "lineno", None)
        where = f"{file}, line {line}" if line else file
        raise UserError(f"config file {where}: {_message(reason)}") from error


def _frames_from(error: BaseException, file: str) -> list[traceback.FrameSummary]:
    """Returns an error's traceback frames from the last one in `file` on; [] if none is there."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [
        i
        for i, frame in enumerate(frames)
        if os.path.abspath(frame.filename) == os.path.abspath(file)
    ]
    return frames[inside[-1] :] if inside else []


def _message(error: BaseException) -> str:
    """Returns an exception's type and text, without ml_collections' nesting of key errors."""
    # ml_collections says which key was wrong in this text alone.
    if typo := re.search(r'Did you mean "(.+)" instead of "(.+)"', str(error)):
        return f"unknown key {typo[2]!r}; did you mean {typo[1]!r}?"
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _check_overrides(name: str, config: Any, options: list[str]) -> None:
    """Raises a UserError for the first --name.key that isn't in the config."""
    for option in options:
        flag = option.lstrip("-").partition("=")[0].partition("[")[0]
        if option.startswith("-") and flag.startswith((f"{name}.", f"no{name}.")):
            key = flag.partition(".")[2]
            if key not in _keys(config):
                nearest = _nearest(key, config)
                if configs.is_open(config, key.partition(".")[0]):
                    nearest += "; a key of your own must be in the file first"
                raise UserError(f"--{name}.{key}: the config has no such key{nearest}")


def _nearest(key: str, config: Any) -> str:
    """Says which key was meant, or which there are: in the key's group, if the config has that."""
    keys = list(_keys(config))
    group, dot, own = key.rpartition(".")
    beside = {one.rpartition(".")[2]: one for one in keys if one.rpartition(".")[0] == group}
    if not dot or not beside:
        return did_you_mean(key, keys) or f"; it has: {', '.join(config)}"
    if did_you_mean(own, beside):
        return did_you_mean(key, beside.values())
    return f"; config.{group} has: {', '.join(beside)}"


def _keys(config: Any, prefix: str = "") -> Iterator[str]:
    """Yields all dotted keys of a config, including those of its groups."""
    for key in config:
        yield f"{prefix}{key}"
        if isinstance(config[key], ConfigDict):
            yield from _keys(config[key], f"{prefix}{key}.")


def _flag_message(error: Exception, options: list[str]) -> str:
    """Returns the expected value of the first bad one, or else the error's own message."""
    if isinstance(error, flags.UnrecognizedFlagError):
        name, dot, _ = error.flagname.partition(".")
        if dot and name in flags.FLAGS:
            return f"--{error.flagname} changes a key of --{name}=FILE, which isn't given"
        nearest = did_you_mean(error.flagname, list(flags.FLAGS))
        return f"unknown flag --{error.flagname}{nearest}; see --help"
    if isinstance(error, flags.IllegalFlagValueError):
        for name, value in _values(options):
            if expected := _expected(flags.FLAGS[name], value):
                return f"--{name}={value}: expected {expected}"
    return f"{error}; see --help"


def _expected(flag: flags.Flag, value: str) -> str:
    """Returns what a flag takes if it doesn't take the value, or "" if it does."""
    try:
        flag.parser.parse(value)
    except (TypeError, ValueError, flags.Error):
        return "true or false" if flag.boolean else flag.parser.syntactic_help
    return ""
