"""Measurements of a run, in files of its folder, so that each is made only once.

    RUN/measurements/NAME-KEY.json    the result
    RUN/measurements/NAME-KEY.npz     arrays that belong to it, if it has any

A file's name ends in a `key`, a hash of the measurement's settings: with other settings it is made
anew, and the old file stays.
"""

import hashlib
import io
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from randmix.errors import UserError
from randmix.runtime import durable
from randmix.workdir import json_files

FOLDER = "measurements"  # of a run's folder
FAILED = "failed.json"  # there: the measurements that failed in the latest attempt
# Increase it whenever the meaning of the stored numbers changes.
_VERSION = 2


def key(*how: Any) -> str:
    """Hash of a measurement's settings: eight hex digits."""
    text = json.dumps([_VERSION, *how], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def path(run: epath.Path, name: str) -> epath.Path:
    """Path of the result of a measurement of the run in a folder."""
    return run / FOLDER / f"{name}.json"


def arrays_path(file: epath.Path) -> epath.Path:
    """Path of the arrays that belong to a result."""
    return file.parent / f"{file.name.removesuffix('.json')}.npz"


def write_arrays(file: epath.Path, arrays: Mapping[str, Any]) -> None:
    """Writes arrays in a compressed file, which is replaced as a whole or not at all."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    durable.make_folder(file.parent)
    durable.write(file, content.getvalue())


def read_arrays(file: epath.Path, advice: str) -> dict[str, np.ndarray]:
    """Returns the arrays in a file; raises a UserError that ends with the advice if it can't."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}; {advice}") from error
    try:
        with np.load(io.BytesIO(content)) as arrays:
            return dict(arrays)
    except Exception as error:  # NumPy, zipfile and zlib have many kinds
        raise UserError(f"{file}: damaged: {error}; {advice}") from error


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


def of_run(folder: epath.Path) -> dict[str, Any]:
    """Returns the results of all measurements in a run's folder, by name."""
    files = sorted((folder / FOLDER).glob("*.json"))
    return {file.stem: read(file) for file in files if file.name != FAILED}
