"""Decoded images in a file beside a data set's records, so that only the first run decodes them.

A checksum for each array (zip's) finds damage, and a note of the records' files finds others in
their place; the images are then decoded again. So the file can be removed at any time, and need not
survive a power cut.
"""

import json
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
from etils import epath

from randmix.runtime import durable

_SHARE = 0.1  # of the free space on the disk, at most


def read(
    directory: epath.Path,
    split: str,
    shape: tuple[int, int, int, int],
    decode: Callable[[], dict[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """Returns the images and labels of a split, as ``decode`` did when it was called first.

    Nothing is written to an object store, to a folder that isn't writable, or if the arrays would
    take more than a tenth of the free space.

    Args:
        directory: of a complete data set.
        split: TFDS's name of a split or of a part of it.
        shape: of its images, [N, H, W, C].
        decode: reads {"image", "label"} from the records.
    """
    if not durable.is_local(directory):
        return decode()
    file, of = Path(directory) / f"decoded-{split}.npz", _records(Path(directory))
    try:
        with file.open("rb") as opened, np.load(opened) as saved:
            if str(saved["records"]) == of:
                arrays = {name: saved[name] for name in ("image", "label")}
                if arrays["image"].shape == shape:
                    return arrays
    except Exception:  # NumPy, zipfile and zlib have many kinds
        pass  # there is no such file, or it is damaged
    arrays = decode()
    _save(file, {**arrays, "records": np.array(of)})
    return arrays


def _records(directory: Path) -> str:
    """The names, sizes and times of the files that the arrays are made from."""
    files = [(file.name, file.stat()) for file in directory.glob("*.array_record*")]
    return json.dumps(sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in files))


def _save(file: Path, arrays: dict[str, np.ndarray]) -> None:
    temporary = file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}.tmp")  # no other process's
    try:
        size = sum(array.nbytes for array in arrays.values())
        if size > _SHARE * shutil.disk_usage(file.parent).free:
            return
        with temporary.open("wb") as opened:
            np.savez(opened, **arrays)  # pyright: ignore[reportArgumentType]  # none is a bool
        temporary.replace(file)
    except OSError:
        temporary.unlink(missing_ok=True)
