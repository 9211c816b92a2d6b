"""``python -m randmix compare``."""

from collections.abc import Iterable
from typing import Any

from absl import flags

from randmix.commands import Command, shared
from randmix.errors import UserError, check_choice

HELP = """
    python -m randmix compare runs/depth
    python -m randmix compare runs/a runs/b results/records.jsonl
    python -m randmix compare runs/depth --against=mode=full --csv=table.csv --markdown
    python -m randmix compare runs/depth --plot=x=depth,y=test_accuracy,hue=mode
    python -m randmix compare runs/depth --plot=x=epoch,y=train_loss,hue=mode --html=page.html

RUNS are folders of a run, of a sweep or of several runs, and records files (records.jsonl). A run
that is found twice counts once.

Prints a table. Runs that differ only in their seed are one row; columns are the config keys that
differ, the number of seeds, the mean and sample standard deviation over seeds of each test metric,
the numbers of trained and of all parameters, and the seconds of training (of a resumed run, since
its last start). The keys that all runs share are printed above the table.

A key is given by its full name or, if that is unambiguous, by its last part: depth is model.depth.

--against compares every row with the reference row whose other keys are equal: the mean difference
between runs of one seed, with its 95 % Student interval over the seeds that both rows have. Repeat
it to fix several keys of the reference: --against=mode=full --against=depth=2.

--plot draws METRIC against a key that differs, a line for each value of the key hue, with error
bars of one sample standard deviation over seeds. Other keys that differ have panels of their own,
or without hue lines of their own: only seeds are averaged. x=epoch and x=step draw a metric of the
training log (metrics.jsonl), such as train_loss. Writes METRIC-X-HUE.png, .svg and .csv to --out.

--html writes the table, the plots and the list of runs as one self-contained page.

Exit status: 0 done, 2 a mistake in the command.
"""

_PARTS = ("x", "y", "hue")


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_multi_string("against", [], "KEY=VALUE of the reference rows; may be repeated.")
    flags.DEFINE_multi_string(
        "plot", [], "x=KEY,y=METRIC or x=KEY,y=METRIC,hue=KEY; may be repeated."
    )
    flags.DEFINE_string(
        "csv", None, "File for the table with all columns, full names and full precision."
    )
    flags.DEFINE_bool("markdown", False, "Print the table in GitHub's Markdown.")
    flags.DEFINE_string("html", None, "File for a page with the table, the plots and the runs.")
    shared.out("runs/compare", "The folder to write plots to.")


def prepare(options: Any) -> None:
    """Makes a dict of --against, and one of each --plot."""
    options.against = _parsed("against", options.against, "KEY=VALUE")
    options.plot = [_plot(text) for text in options.plot]


def _plot(text: str) -> dict[str, str]:
    parts = _parsed("plot", text.split(","), "x=KEY,y=METRIC or x=KEY,y=METRIC,hue=KEY")
    for name in parts:
        check_choice(f"--plot={text}", name, _PARTS)
    for name in ("x", "y"):
        if name not in parts:
            raise UserError(
                f"--plot={text}: {name} is missing; for example "
                "--plot=x=depth,y=test_accuracy,hue=mode"
            )
    return parts


def _parsed(flag: str, words: Iterable[str], allowed: str) -> dict[str, str]:
    """Returns KEY=VALUE words as a dict."""
    found: dict[str, str] = {}
    for word in words:
        key, _, value = word.partition("=")
        if not (key and value):
            raise UserError(f"--{flag}: got {word!r}, allowed is {allowed}")
        if key in found:
            raise UserError(f"--{flag}: got {key} twice, allowed is each key once")
        found[key] = value
    return found


COMMAND = Command(HELP, "randmix.analysis.compare", define_flags, ("RUNS...",), prepare)
