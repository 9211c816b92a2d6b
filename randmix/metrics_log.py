"""metrics.jsonl: one JSON object a line, appended as the run goes."""

import json
from typing import Any

from etils import epath

from randmix.artifacts import write_atomically


class MetricsLog:
    """The log of a workdir, cut back to the step that the run starts from."""

    def __init__(self, path: epath.PathLike, start_step: int):
        """Opens the log and drops what was logged after ``start_step``: those steps will run again."""
        self._path = epath.Path(path)
        kept = [line for line in _whole_lines(self._path) if json.loads(line)["step"] <= start_step]
        write_atomically(self._path, "".join(f"{line}\n" for line in kept))
        self._file = self._path.open("a")

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def write(self, **values: Any) -> None:
        """Appends a line, flushed at once so that a checkpoint is never ahead of the log."""
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()


def _whole_lines(path: epath.Path) -> list[str]:
    # A run that was killed may have left half a line at the end.
    text = path.read_text() if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()
