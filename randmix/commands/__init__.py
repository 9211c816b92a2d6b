"""The commands of ``python -m randmix``: a light file each, which imports no JAX.

A command's file names its flags, its help and the module that does the work. That module imports
all it needs at its top, so it is imported last: once the flags are parsed and the host settings
made, which must precede JAX.
"""

import dataclasses
import functools
import gc
import importlib
import types
from collections.abc import Callable, Mapping
from typing import Any

from absl import app, flags

from randmix import config as configs
from randmix.errors import UserError
from randmix.runtime import cli, signals

# What each command does, in the order of `python -m randmix --help`.
SUMMARIES: Mapping[str, str] = {
    "train": "Train and evaluate the run that a config describes.",
    "evaluate": "Evaluate a trained run on a full split, clean or under attack.",
    "sweep": "Train runs with every combination of some config keys' values, over seeds.",
    "compare": "Tabulate and plot trained runs side by side: what was varied and what came out.",
    "reproduce": "Run the paper's experiments and write a report with a verdict on every claim.",
    "prepare": "Prepare a data set for training.",
    "show": "Draw training images before and after augmentation.",
    "spectrum": "Plot which frequencies filters cover, or what smoothing them gains under attack.",
    "roles": "Show the role of each parameter, or propose roles for a model that declares none.",
    "unshuffle": "Draw the images that un-shuffling runs reconstruct.",
    "convert": "Convert PyTorch's ConvMixer weights to a run.",
    "verify": "Check that a run's files are unchanged, or that a data set's images are intact.",
}


@dataclasses.dataclass(frozen=True)
class Command:
    """A command, as its light file describes it.

    Attributes:
        help: what `--help` prints between the summary and the flags.
        work: the module that does the work. Its `main(options)` returns the exit status (None
            means 0). The options are the values of the command's flags and positional arguments,
            and `given`, the names of the flags on the command line.
        define_flags: defines the command's flags.
        arguments: the names of the positional arguments, all of which are needed. A last name
            that ends with "..." takes one or more words, as a list.
        prepare: checks the options as far as that is cheap, makes the host settings and may add
            what follows from the options; called before `work` is imported.
    """

    help: str
    work: str
    define_flags: Callable[[], None] = lambda: None
    arguments: tuple[str, ...] = ()
    prepare: Callable[[Any], None] = lambda options: None


def run(name: str) -> None:
    """Runs the command with the flags in `sys.argv`.

    Raises:
        UserError: a mistake in the flags, or one that the command found.
        SystemExit: with the command's exit status, at its end.
    """
    command: Command = importlib.import_module(f"randmix.commands.{name}").COMMAND
    others = set(flags.FLAGS)
    command.define_flags()
    names = [flag for flag in flags.FLAGS if flag not in others]
    app.run(
        functools.partial(_work, command, names),
        flags_parser=lambda argv: cli.parse(argv, lambda: _help(name, command, names)),
    )


def _work(command: Command, names: list[str], argv: list[str]) -> int | None:
    """Runs the command with the parsed flags of these names and the positional arguments."""
    options = types.SimpleNamespace(
        given={name for name in names if flags.FLAGS[name].present},
        **{name: flags.FLAGS[name].value for name in names},
        **_positional(command.arguments, argv[1:]),
    )
    command.prepare(options)
    signals.watch()  # a thread, after the settings of malloc: it would have memory of its own
    gc.disable()  # importing makes only objects that stay; checking them took a sixth of its time
    work = importlib.import_module(command.work)
    gc.freeze()
    gc.enable()
    return work.main(options)


def _positional(names: tuple[str, ...], words: list[str]) -> dict[str, str | list[str]]:
    """The words by the names of the positional arguments, in lower case and without "..."."""
    if words and not names:
        raise UserError(f"got {words[0]!r}, allowed are flags only; see --help")
    several = bool(names) and names[-1].endswith("...")
    if len(words) < len(names) or (len(words) > len(names) and not several):
        got = " ".join(words) or "nothing"
        raise UserError(f"expected {' '.join(names)}, got {got}; see --help")
    last = len(names) - 1
    values = [*words[:last], words[last:]] if several else words
    return {
        name.lower().removesuffix("..."): value for name, value in zip(names, values, strict=True)
    }


def _help(name: str, command: Command, names: list[str]) -> str:
    usage = " ".join(["Usage: python -m randmix", name, *command.arguments, "[flags]"])
    parts = [usage, SUMMARIES[name], command.help.strip("\n")]
    if names:
        parts.append(cli.flags_text(names))
    if "config" in names:
        parts.append(configs.describe())
    return "\n\n".join(parts)
