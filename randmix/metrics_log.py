"""metrics.jsonl: one JSON object a line, appended as the run goes."""

import json
import math
from collections.abc import Sequence
from typing import Any

from etils import epath

from randmix.artifacts import is_local, write_atomically
from randmix.trackers import Tracker


class MetricsLog:
    """The log of a workdir, cut back to the step that the run starts from.

    A line is there as soon as it is written, so that a checkpoint is never ahead of the log. An object store can't
    append to a file: there the whole log, some hundred kilobytes at most, is written again.

    Attributes:
        names_at_start: of the metrics that are in the log for the step that the run starts from.
    """

    def __init__(
        self,
        path: epath.PathLike,
        start_step: int,
        *,
        writes: bool = True,
        trackers: Sequence[Tracker] = (),
    ):
        """Opens the log and drops what was logged after ``start_step``: those steps will run again.

        Args:
            path: of the file.
            start_step: that the run starts from.
            writes: False on all processes but one: they leave the file alone.
            trackers: that get the same metrics.
        """
        self._path, self._writes, self._file = epath.Path(path), writes, None
        self._trackers = trackers
        rows = [
            row for row in map(json.loads, _whole_lines(self._path)) if row["step"] <= start_step
        ]
        self.names_at_start = {name for row in rows if row["step"] == start_step for name in row}
        self._largest: dict[str, float] = {}
        for row in rows:
            self._note(row)
        if writes:
            self._text = "".join(json.dumps(row) + "\n" for row in rows)
            write_atomically(self._path, self._text)
            self._file = self._path.open("a") if is_local(self._path) else None

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file:
            self._file.close()

    def write(self, *, step: int, **metrics: Any) -> None:
        """Appends a line."""
        self._note(metrics)
        line = json.dumps({"step": step, **metrics}) + "\n"
        if self._file:
            self._file.write(line)
            self._file.flush()
        elif self._writes:
            self._text += line
            write_atomically(self._path, self._text)
        for tracker in self._trackers:
            tracker.write(step, metrics)

    def largest(self, name: str) -> float:
        """The largest value of a metric in the log; minus infinity without one."""
        return self._largest.get(name, -math.inf)

    def _note(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._largest[name] = max(self.largest(name), value)


def _whole_lines(path: epath.Path) -> list[str]:
    # A run that was killed may have left half a line at the end.
    text = path.read_text() if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()
