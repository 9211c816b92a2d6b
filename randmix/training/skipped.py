"""The damaged photographs that a run leaves out: their number in the log, their names in a file."""

import json
import logging
from collections.abc import Mapping
from typing import Any

from etils import epath

from randmix.data import feeds
from randmix.runtime import distributed, durable
from randmix.workdir import json_files

FILE = "skipped.json"
_STRUCTURE = {"train": list, "test": list}


def counts(workdir: epath.Path) -> dict[str, int]:
    """Returns how many records a run has left out, by split."""
    file = workdir / FILE
    saved = json_files.read(file, _STRUCTURE, what_to_do="remove it") if file.exists() else {}
    return {split: len(saved.get(split, ())) for split in _STRUCTURE}


class Skipped:
    """Collects the records that were left out, over steps, processes and resumes.

    A record counts from the step at which a log line, an evaluation or a checkpoint follows its
    first use, so the numbers are the same for any number of processes, and after a resume.
    """

    def __init__(
        self,
        workdir: epath.Path,
        splits: Mapping[str, feeds.Split],
        start: int,
        *,
        enabled: bool,
    ):
        """Reads what was left out up to ``start``.

        Args:
            workdir: the run's folder.
            splits: the splits, "train" and "test".
            start: the number of steps taken.
            enabled: whether damaged records are left out at all; if not, nothing is written.
        """
        self._file, self._splits, self._enabled = workdir / FILE, splits, enabled
        self._found: dict[str, dict[int, dict[str, Any]]] = {split: {} for split in splits}
        if enabled and self._file.exists():
            try:
                again = "it is written anew"
                saved = json_files.read(self._file, _STRUCTURE, what_to_do=again)
            except json_files.Damaged as damaged:
                logging.getLogger(__name__).warning("%s", damaged)
                saved = {}
                self._file.unlink(missing_ok=True)  # `collect` writes only what is new
            for split, entries in saved.items():
                self._found[split] = {e["record"]: e for e in entries if e["step"] <= start}

    def collect(self, step: int) -> dict[str, int]:
        """Writes what was left out up to a step; all processes must call it.

        Returns:
            {"train": number of records, "test": number of records}; {} unless enabled.
        """
        if not self._enabled:
            return {}
        new = False
        for name, split in self._splits.items():
            found = self._found[name]
            for row in sorted(distributed.union(split.skipped) - found.keys()):
                found[row] = {"record": row, "file": split.file_name(row), "step": step}
                new = True
        if new and distributed.is_primary():
            content = {name: list(found.values()) for name, found in self._found.items()}
            durable.write(self._file, json.dumps(content, indent=2) + "\n")
        return {name: len(found) for name, found in self._found.items()}
