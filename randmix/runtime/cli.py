"""Shared command-line entry point: flags, help, one-line errors and exit statuses.

    def main(argv: list[str]) -> int | None: ...

    if __name__ == "__main__":
        cli.run(main)

The exit status is what `main` returns (None means 0), 2 for a user's mistake, 75 and 130 if a
signal ends the program (see `randmix.runtime.signals`), 141 if the reader of the output has gone
(`... | head`), and 1 for a bug. A mistake prints one line to stderr; a bug keeps its traceback.
Mistakes are `UserError`, flag errors from absl and ml_collections, and any failure inside a config
file.
"""

import atexit
import difflib
import inspect
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from absl import app, flags, logging
from ml_collections import config_dict
from ml_collections.config_flags import config_flags

from randmix import config as configs
from randmix.errors import UserError
from randmix.runtime import host, signals

_HELP = re.compile(r"--?(help|helpfull|helpshort|h|\?)")
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def run(main: Callable[[list[str]], int | None]) -> None:
    """Parses `sys.argv`, runs `main` and exits, by the rules in the module's docstring.

    Args:
        main: called with [program, *positional arguments] after the flags are parsed. `--help`
            prints the docstring of its module and the flags defined there.
    """
    signals.listen()
    signals.watch()
    atexit.register(signals.ignore)  # first, to be called last
    host.leave_libtpu_alone()
    try:
        try:
            app.run(main, flags_parser=lambda argv: parse(argv, sys.modules[main.__module__]))
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


def parse(argv: list[str], module: ModuleType) -> list[str]:
    """Parses the flags, including config files and their overrides.

    A config file configs/NAME that isn't in the current folder is the one that randmix ships, whose
    path is then printed.

    Args:
        argv: the command line, program first; must equal `sys.argv`, which ml_collections reads.
        module: the module whose docstring and flags `--help` prints.

    Returns:
        The program and the positional arguments.

    Raises:
        UserError: an unknown flag, a bad value, a missing or failing config file, or an unknown
            key.
        SystemExit: after `--help`, with status 0.
    """
    options = argv[1 : argv.index("--")] if "--" in argv else argv[1:]
    if any(_HELP.fullmatch(option) for option in options):
        print(help_text(module))
        sys.exit(0)
    files = list(_config_files(options))
    try:
        for name, _ in files:
            flags.FLAGS[name].parser = _ConfigFiles(name)
        arguments = flags.FLAGS(argv)
        for name, _ in files:
            # A config file that couldn't be read raises on first use.
            getattr(flags.FLAGS[name].value, "is_locked", None)
        if "verbosity" in flags.FLAGS and flags.FLAGS["verbosity"].using_default_value:
            # At INFO, absl prints dozens of lines per save.
            flags.FLAGS.verbosity = logging.WARNING
        return arguments
    except Exception as error:
        mistake = error
    # absl and ml_collections raise a dozen error types, so find the cause here.
    for name, typed in files:
        path = _shipped(typed) or typed
        _check_exists(path)
        _check_overrides(name, _load(name, path), options)
    raise UserError(_flag_message(mistake)) from mistake


def help_text(module: ModuleType) -> str:
    """Returns a module's docstring and the flags that it defines, without those of libraries."""
    lines = [inspect.getdoc(module) or "", "", "Flags:"]
    for flag in sorted(flags.FLAGS.get_key_flags_for_module(module), key=lambda flag: flag.name):
        default = "" if flag.default is None else f" (default: {flag.default_as_str})"
        lines.append(f"  --{flag.name}")
        lines.append(flags.text_wrap(flag.help + default, length=100, indent="      "))
    return "\n".join(lines)


def _config_files(options: list[str]) -> Iterator[tuple[str, str]]:
    """Yields (flag, path) of each config file on the command line."""
    names = [name for name in flags.FLAGS if config_flags.is_config_flag(flags.FLAGS[name])]
    for i, option in enumerate(options):
        name, equals, value = option.lstrip("-").partition("=")
        if option.startswith("-") and name in names and (equals or i + 1 < len(options)):
            yield name, value if equals else options[i + 1]


class _ConfigFiles(config_flags.ConfigFileFlagParser):
    """Loads config files, those that randmix ships from any folder."""

    def parse(self, path: str) -> Any:
        """Returns the config of ``FILE`` or ``FILE:VARIANT``."""
        if shipped := _shipped(path):
            print(f"config: {shipped}", flush=True)
        return super().parse(shipped or path)


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
        nearest = _nearest(file, known)
        raise UserError(f"there is no config file {file!r}{nearest}")


def _load(name: str, path: str):
    """Runs a config file; an error in it becomes a UserError that names the line.

    An error raised inside this package, called from the file, is our bug and is raised unchanged.
    """
    try:
        config = config_flags.ConfigFileFlagParser(name).parse(path)
        getattr(config, "is_locked", None)  # ml_collections defers an OSError to first use
        return config
    except Exception as error:
        file = path.split(":")[0]
        chain: list[BaseException] = [error]  # ml_collections wraps what it catches
        while inner := chain[-1].__cause__ or chain[-1].__context__:
            chain.append(inner)
        reason = next((link for link in chain if _frames_from(link, file)), chain[-1])
        frames = _frames_from(reason, file)
        if any(frame.filename.startswith(_PACKAGE) for frame in frames) and not isinstance(
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
    if typo := re.search(r'Did you mean "(.+)" instead of "(.+)"', str(error)):
        return f"unknown key {typo[2]!r}; did you mean {typo[1]!r}?"
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _check_overrides(name: str, config, options: list[str]) -> None:
    """Raises a UserError for the first --name.key that isn't in the config."""
    for option in options:
        match = re.match(rf"--?(?:no)?{re.escape(name)}\.([^=\[]+)", option)
        if match and match[1] not in (keys := list(_keys(config))):
            nearest = _nearest(match[1], keys) or f"; it has: {', '.join(config)}"
            raise UserError(f"--{name}.{match[1]}: the config has no such key{nearest}")


def _keys(config, prefix: str = "") -> Iterator[str]:
    """Yields all dotted keys of a ConfigDict, including those of its groups."""
    for key in config:
        yield f"{prefix}{key}"
        if config.get_type(key) is config_dict.ConfigDict:
            yield from _keys(config[key], f"{prefix}{key}.")


def _flag_message(error: Exception) -> str:
    """Returns absl's message, or the expected value where absl only quotes Python's `int()`."""
    match = re.match(r"flag --([^=\s]+)=(.*?): ", str(error), re.DOTALL)
    if match and match[1] in flags.FLAGS:
        name, value = match.groups()
        if value == "None":
            return f"--{name} is required; see --help"
        flag = flags.FLAGS[name]
        takes = {"bool": "true or false"}.get(flag.flag_type(), flag.parser.syntactic_help)
        return f"--{name}={value}: expected {takes}" if takes else str(error)
    if isinstance(error, flags.UnrecognizedFlagError):
        name, dot, _ = error.flagname.partition(".")
        if dot and name in flags.FLAGS:
            return f"--{error.flagname} changes a key of --{name}=FILE, which isn't given"
        nearest = _nearest(error.flagname, list(flags.FLAGS))
        return f"unknown flag --{error.flagname}{nearest}; see --help"
    return f"{error}; see --help"


def _nearest(word: str, choices: list[str]) -> str:
    """Returns '; did you mean ...?' if one of the choices is close."""
    nearest = difflib.get_close_matches(word, choices, n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
