"""metrics.jsonl: one JSON object per line, appended during the run."""

import json
import math
from collections.abc import Sequence
from typing import Any

from etils import epath

from randmix.artifacts import is_local, write_atomically
from randmix.trackers import Tracker


class MetricsLog:
    """The log of a workdir, truncated to the step at which the run starts.

    Each line is on disk once written, so a checkpoint is never ahead of the log. An object store
    can't append to a file; there, every write stores the complete log, at most a few hundred
    kilobytes.

    Attributes:
        names_at_start: names of the metrics that are in the log for the start step.
    """

    def __init__(
        self,
        path: epath.PathLike,
        start_step: int,
        *,
        writes: bool = True,
        trackers: Sequence[Tracker] = (),
    ):
        """Opens the log and drops the lines after ``start_step``, since those steps will run again.

        Args:
            path: the log file.
            start_step: the step at which the run starts.
            writes: False on all processes but one; those leave the file unchanged.
            trackers: further destinations of the same metrics.
        """
        self._path, self._writes, self._file = epath.Path(path), writes, None
        self._trackers = trackers
        rows = [row for row in read(self._path) if row["step"] <= start_step]
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
        """Returns the largest logged value of a metric; minus infinity if it was never logged."""
        return self._largest.get(name, -math.inf)

    def _note(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._largest[name] = max(self.largest(name), value)


def read(path: epath.Path) -> list[dict[str, Any]]:
    """Returns the lines of a log, oldest first; [] if there is no file."""
    text = path.read_text() if path.exists() else ""
    # A killed run may have left an incomplete last line.
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
