"""Results of measurements in JSON files, so that each is made only once.

A file's name ends in a `key`, a hash of the measurement's settings: with other settings it is made
anew, and the old file stays.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from typing import Any

from etils import epath

from randmix.runtime import durable
from randmix.workdir import json_files

FOLDER = "measurements"  # of a run's folder
# Increase it whenever the meaning of the stored numbers changes.
_VERSION = 2


def key(*how: Any) -> str:
    """Hash of a measurement's settings: eight hex digits."""
    text = json.dumps([_VERSION, *how], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def kept(file: epath.Path, compute: Callable[[], Any]) -> Any:
    """Returns the content of a JSON file, computed and written first if it's missing or damaged."""
    if file.exists():
        try:
            return json_files.read(file, object, what_to_do="it is computed anew")
        except json_files.Damaged as damaged:
            logging.getLogger(__name__).warning("%s", damaged)
    durable.make_folder(file.parent)
    durable.write(file, json.dumps(compute(), indent=1) + "\n")
    return read(file)


def read(file: epath.Path, structure: Any = object) -> Any:
    """Returns the content of a measurement's JSON file; raises a UserError if it is damaged."""
    return json_files.read(file, structure, what_to_do="remove it and start the same command again")
