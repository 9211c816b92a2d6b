"""What a person sees of a run: a live bar on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


class Reporter:
    """Shows steps, loss, accuracy, images/s and time left; a context manager."""

    def __init__(self, total_steps: int, start_step: int = 0):
        self.console = Console(soft_wrap=True)
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
            self._task = self._bar.add_task("train", total=total_steps, completed=start_step, numbers="")

    def __enter__(self) -> "Reporter":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Prints a line; above the bar where there is one."""
        self.console.print(text, markup=False, highlight=False)

    def step(self, step: int) -> None:
        """Moves the bar."""
        if self._bar:
            self._bar.update(self._task, completed=step)

    def train(self, step: int, *, loss: float, accuracy: float, images_per_second: float, **_: Any) -> None:
        """Shows a training interval's means."""
        numbers = f"loss {loss:.4f}  accuracy {accuracy:.4f}  {images_per_second:,.0f} images/s"
        if self._bar:
            self._bar.update(self._task, completed=step, numbers=numbers)
        else:
            self.say(f"step {step}/{self._total}  {numbers}  {self._time_left(step)} left")

    def test(self, step: int, *, loss: float, accuracy: float) -> None:
        """Shows an evaluation."""
        self.say(f"step {step}/{self._total}  test loss {loss:.4f}  test accuracy {accuracy:.4f}")

    def _time_left(self, step: int) -> str:
        seconds = (time.monotonic() - self._began) / (step - self._start) * (self._total - step)
        minutes, seconds = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02d}:{seconds:02d}"


def result_table(result: dict[str, Any]) -> str:
    """The end of a run as a table: mode, test accuracy, parameter counts, seconds."""
    table = Table()
    for name in ("mode", "test accuracy", "trainable", "frozen", "seconds"):
        table.add_column(name, justify="left" if name == "mode" else "right")
    table.add_row(
        result["mode"],
        f"{result['metrics']['test_accuracy']:.4f}",
        f"{result['parameters']['trainable']:,}",
        f"{result['parameters']['frozen']:,}",
        f"{result['wall_seconds']:.1f}",
    )
    console = Console(file=sys.stdout, soft_wrap=True)
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip("\n")
