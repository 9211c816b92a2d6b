"""Progress display: a live bar on a terminal, plain lines elsewhere."""

import datetime
import json
import sys
import textwrap
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

Item = TypeVar("Item")


class Reporter:
    """A context manager that shows steps, metrics, images per second and the time left."""

    def __init__(self, total_steps: int, start_step: int = 0):
        self.console = _console()
        self._total = total_steps
        self._start = start_step
        self._began = time.monotonic()
        self._bar = None
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.fields[numbers]}"),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=self.console,
            )
            self._task = self._bar.add_task(
                "train", total=total_steps, completed=start_step, numbers=""
            )

    def __enter__(self) -> "Reporter":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        self.console.print(text, markup=False, highlight=False)

    def step(self, step: int) -> None:
        """Advances the bar."""
        if self._bar:
            self._bar.update(self._task, completed=step)

    def train(self, step: int, metrics: Mapping[str, float], *, images_per_second: float) -> None:
        """Shows the means over a training interval."""
        numbers = f"{_in_words(metrics)}  {images_per_second:,.0f} images/s"
        if self._bar:
            self._bar.update(self._task, completed=step, numbers=numbers)
        else:
            self.say(f"step {step}/{self._total}  {numbers}  {self._time_left(step)} left")

    def test(self, step: int, **metrics: float) -> None:
        """Shows the metrics of an evaluation, such as ``test_loss``."""
        self.say(f"step {step}/{self._total}  {_in_words(metrics)}")

    def _time_left(self, step: int) -> str:
        seconds = (time.monotonic() - self._began) / (step - self._start) * (self._total - step)
        return str(datetime.timedelta(seconds=round(seconds)))


def _console() -> Console:
    """Returns a console for plain lines, also in notebooks, where rich would emit HTML elements."""
    console = Console(file=sys.stdout, soft_wrap=True, force_jupyter=False)
    console.width = console.width or 80  # some shells set COLUMNS to 0
    return console


def _in_words(metrics: Mapping[str, float]) -> str:
    """Formats metrics on one line, each split's loss first; compiled steps sort them by name."""
    names = sorted(
        metrics, key=lambda name: (name.startswith("validation_"), not name.endswith("loss"))
    )
    return "  ".join(f"{name.replace('_', ' ')} {_shown(name, metrics[name])}" for name in names)


def _shown(name: str, value: float) -> str:
    return f"{value:.2f} dB" if name.endswith("psnr") else f"{value:.4f}"


def result_table(result: dict[str, Any]) -> str:
    """Formats a result: what the run's config sets, then mode, test metrics and counts as a table.

    The test loss is left out, and so is the config of a result of older versions, which lack it.
    """
    metrics = {
        name.removeprefix("test_"): value
        for name, value in result["metrics"].items()
        if name.startswith("test_") and not name.endswith("loss")
    }
    row = {
        "mode": result["mode"],
        **{f"test {name}": _shown(name, value) for name, value in metrics.items()},
        "trainable": f"{result['parameters']['trainable']:,}",
        "frozen": f"{result['parameters']['frozen']:,}",
        "seconds": f"{result['wall_seconds']:.1f}",
    }
    return "\n".join([*_config_lines(result.get("config")), table([row])])


def _config_lines(config: Mapping[str, Any] | None) -> list[str]:
    """Returns ``digits: model.depth=8 seed=3``, in lines as wide as the terminal."""
    if config is None:
        return []
    words = [f"{key}={_word(value)}" for key, value in config["changed"].items()]
    text = " ".join([f"{config['name'] or 'config'}:", *(words or ["the defaults"])])
    return textwrap.wrap(
        text,
        _console().width,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _word(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def metrics_row(metrics: Mapping[str, float]) -> dict[str, str]:
    """Formats metrics as table cells."""
    return {name: _shown(name, value) for name, value in metrics.items()}


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Formats rows with the same columns as a table; the first column is left-aligned."""
    grid = Table()
    for i, name in enumerate(rows[0]):
        grid.add_column(Text(name), justify="right" if i else "left")
    for row in rows:
        grid.add_row(*(Text(str(value)) for value in row.values()))  # a str may hold markup
    console = _console()
    with console.capture() as capture:
        console.print(grid)
    return capture.get().rstrip("\n")


def narrow_table(rows: Sequence[Mapping[str, str]], *, left: Collection[str]) -> str:
    """Formats rows as a table without vertical rules, as wide as its cells need.

    Cells are never folded or cut. Headings are wrapped to the width of their cells.

    Args:
        rows: one mapping from heading to cell per row, all with the same headings.
        left: the headings of left-aligned columns.
    """
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name in rows[0]:
        width = max(len(part) for part in (*(row[name] for row in rows), *name.split()))
        heading = textwrap.fill(name, width, break_on_hyphens=False)
        grid.add_column(Text(heading), justify="left" if name in left else "right")
    for row in rows:
        grid.add_row(*map(Text, row.values()))
    console = Console(width=10_000, force_jupyter=False)
    with console.capture() as capture:
        console.print(grid)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def track(items: Iterable[Item], total: int, what: str, *, every: float = 0.0) -> Iterator[Item]:
    """Yields the items and shows progress: a bar on a terminal, elsewhere a line per 10 %.

    Lines are at least ``every`` seconds apart.
    """
    console = _console()
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            yield from bar.track(items, total=total, description=what)
        return
    began = said = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if done * 10 // total > (done - 1) * 10 // total and now - said >= every:
            seconds, said = now - began, now
            console.print(
                f"{what}: {100 * done // total} %, {seconds:.0f} s", markup=False, highlight=False
            )
