"""Records of finished runs, which outlast their folders: a line of JSON each, and its arrays.

    FOLDER/records.jsonl           a record a line
    FOLDER/arrays/NAME-HASH.npz    what a record's pictures need; of no use without its line

Files merge by concatenation: ``cat a/records.jsonl b/records.jsonl`` beside the files of both
``arrays`` folders, whose names are hashes of their content. A file that is only read may be
compressed, ``records.jsonl.gz``, to a tenth. A line that stands there twice counts
once. A run has one record, whatever the files hold: one with the measurements that are asked for,
else the one with most.
"""

import contextlib
import dataclasses
import errno
import fcntl
import functools
import gzip
import hashlib
import io
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from randmix import config as configs
from randmix.errors import UserError, writing
from randmix.experiments import measured
from randmix.runtime import durable
from randmix.workdir import artifacts, json_files, metrics

FILE = "records.jsonl"
COMPRESSED = f"{FILE}.gz"
ARRAYS = "arrays"
RUNS = "runs"  # the folder of a sweep's runs
_LINE = {
    "run": str,
    "config": {"seed": int, "model": {"name": str}},
    "result": artifacts.RESULT_STRUCTURE,
    "data": object,
    "log": list,
    "measurements": {str: object},
    "arrays": object,
}


@dataclasses.dataclass(frozen=True)
class Record:
    """A finished run.

    Attributes:
        config: its config, nested, as in ``config.json``; without the folder of its data.
        result: the contents of ``result.json``.
        data: what the catalog says of its data set, or None for an older run.
        log: the lines of ``metrics.jsonl``: "step" and the metrics of a log interval or of an
            evaluation.
        measurements: the values of its measurements by name, see ``measured``.
        source: where its arrays are: the folder of its measurements, or one file; None without.
    """

    config: Mapping[str, Any]
    result: Mapping[str, Any]
    data: Mapping[str, Any] | None
    log: Sequence[Mapping[str, Any]]
    measurements: Mapping[str, Any]
    source: epath.Path | None = None

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """All keys of its config, flat, without what its data or machine decided.

        Keys that the config lacks, as they came later, have their defaults.
        """
        default = configs.flatten(configs.expected(self.config))
        values = {**default, **configs.flatten(self.config)}
        asked = self.result.get("config", {}).get("changed", {})
        left_open = {
            key: asked.get(key, default.get(key)) for key in configs.LEFT_OPEN if key in values
        }
        return values | left_open

    @functools.cached_property
    def name(self) -> str:
        """The fingerprint of its config as it was asked for, on any machine."""
        return configs.fingerprint(self.settings)

    @property
    def seconds(self) -> float:
        """Seconds of the call that finished it, compilation and evaluation included.

        What an interrupted call took before isn't in it. Of runs that were trained together, it is
        a run's share.
        """
        return self.result["wall_seconds"] / self.result.get("ensemble", 1)

    @functools.cached_property
    def steps_per_epoch(self) -> float | None:
        """Number of steps in an epoch, from the log; None for a run that logged no interval."""
        rows = [row for row in self.log if row.get("epoch")]
        return rows[-1]["step"] / rows[-1]["epoch"] if rows else None

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """Returns the arrays of a measurement, by name; {} if it has none.

        Raises:
            UserError: the file is missing or damaged.
        """
        if self.source is None:
            return {}
        if self.source.suffix == ".npz":
            advice = (
                f"put it back beside its {FILE}, or remove its line there and make the run again"
            )
            prefix, found = f"{name}/", _load(self.source, advice)
            return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
        file = self.source / f"{name}.npz"
        advice = f"remove it and {name}.json, and start the same command again"
        return _load(file, advice) if file.exists() else {}


def of_folder(folder: epath.PathLike, values: Mapping[str, Any] | None = None) -> Record | None:
    """Returns the record of the run in a folder, or None if it hasn't finished.

    Args:
        folder: the run's folder.
        values: the config that the run must have; None for any.

    Raises:
        UserError: a file is damaged, or the folder holds another run.
    """
    folder = epath.Path(folder)
    result = artifacts.read_result(folder, values)
    if result is None:
        return None
    source = folder / measured.FOLDER
    return Record(
        config=_portable(artifacts.read_config_values(folder)),
        result=_portable_result(result),
        data=artifacts.read_data(folder),
        log=metrics.read(folder / artifacts.METRICS),
        measurements=measured.of_run(folder),
        source=source if source.exists() else None,
    )


def append(folder: epath.PathLike, record: Record) -> None:
    """Adds a record to a folder's file, unless it is there; several processes may do so at once.

    Raises:
        UserError: the folder can't be written.
    """
    folder = Path(folder)
    arrays = {
        f"{name}/{key}": array
        for name in record.measurements
        for key, array in record.arrays(name).items()
    }
    advice = "make room or give a folder that you may write to, and start the same command again"
    with writing(folder / FILE, advice):
        file = _save(folder / ARRAYS, record.name, arrays) if arrays else None
        line = {
            "run": record.name,
            "config": record.config,
            "result": record.result,
            "data": record.data,
            "log": record.log,
            "measurements": record.measurements,
            "arrays": file,
        }
        _append_line(folder / FILE, (json.dumps(line, sort_keys=True) + "\n").encode())


def read(
    *places: epath.PathLike, complete: Callable[[Record], bool] = lambda record: True
) -> dict[str, Record]:
    """Returns the records in files, by name, in their order; damaged lines are left out.

    Args:
        *places: records files, or folders with one.
        complete: of several records of a run, one of which this is true counts first.
    """
    paths = (file for place in places for file in files(place))
    return _one_each((record for path in paths for record in _parsed(path)), complete)


def files(place: epath.PathLike) -> list[epath.Path]:
    """The records files of a folder, or where its file would be; a file itself."""
    place = epath.Path(place)
    if not place.is_dir():
        return [place]
    found = [place / name for name in (FILE, COMPRESSED) if (place / name).exists()]
    return found or [place / FILE]


def _one_each(
    records: Iterable[Record], complete: Callable[[Record], bool] = lambda record: True
) -> dict[str, Record]:
    """The record of each run with most measurements; of equals, whatever their order, the same."""

    def rank(record: Record) -> tuple[bool, int, str]:
        content = [record.config, record.result, record.data, record.log, record.measurements]
        return complete(record), len(record.measurements), json.dumps(content, sort_keys=True)

    found: dict[str, Record] = {}
    for record in records:
        kept = found.setdefault(record.name, record)
        if kept is not record and rank(kept) < rank(record):
            found[record.name] = record
    return found


def gather(places: Iterable[epath.PathLike]) -> tuple[list[Record], list[str]]:
    """Finds all runs in folders of runs, folders of sweeps and records files.

    Args:
        places: folders of a run, of a sweep or of several runs, and records files.

    Returns:
        The records, each run once, in the order found; and the folders of unfinished runs.

    Raises:
        UserError: a place holds no run.
    """
    found: list[Record] = []
    unfinished: dict[str, None] = {}
    for place in map(epath.Path, places):
        folders = _run_folders(place)
        existing = [file for file in files(place) if file.exists()]
        if not folders and not existing:
            raise UserError(
                f"{place}: got no run there; allowed are folders of a run or of a sweep, folders "
                f"with folders of runs, and {FILE} files"
            )
        kept = read(*existing)
        for folder in folders:
            record = of_folder(folder)
            if record is not None:
                found.append(record)
            elif folder.name not in kept:
                unfinished[str(folder)] = None
        found += kept.values()
    return list(_one_each(found).values()), list(unfinished)


def _run_folders(place: epath.Path) -> list[epath.Path]:
    if not place.is_dir():
        return []
    if (place / artifacts.CONFIG).exists():
        return [place]
    parent = place / RUNS if (place / RUNS).is_dir() else place
    return sorted(folder for folder in parent.iterdir() if (folder / artifacts.CONFIG).exists())


def _portable(values: Mapping[str, Any]) -> dict[str, Any]:
    """A config without what is true of one machine alone: folders of code, data and filters."""
    data, model = {**values["data"], "data_dir": None}, dict(values["model"])
    if "filters" in model:
        model["filters"] = _without_place(model["filters"])
    return {**values, "data": data, "model": model, "code_dir": None}


def _portable_result(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result whose "config", what differs from the defaults, says as little of the machine."""
    asked = result.get("config", {})
    if "model.filters" not in asked.get("changed", {}):
        return {**result}
    filters = _without_place(asked["changed"]["model.filters"])
    return {
        **result,
        "config": {**asked, "changed": {**asked["changed"], "model.filters": filters}},
    }


def _without_place(filters: str) -> str:
    """Filters from another run without the place they came from, if their hash is known."""
    _, digest = configs.transplant(filters) or (None, None)
    return f"from=@{digest}" if digest else filters


def _parsed(file: epath.Path) -> Iterable[Record]:
    """Yields the records of the intact lines."""
    try:
        content = file.read_bytes()
        lines = (gzip.decompress(content) if file.suffix == ".gz" else content).splitlines()
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{file}: can't be read ({reason})") from error
    damaged = []
    for number, line in enumerate(lines, start=1):
        try:
            values = json_files.parse(line, _LINE)
            configs.from_values(values["config"])
            if arrays := values["arrays"]:
                json_files.check(arrays, str, "arrays")
                if "/" in arrays:
                    raise ValueError(f"arrays is {arrays!r}, expected the name of a file")
        except (ValueError, UserError) as error:
            damaged.append(f"line {number} ({error})")
            continue
        fields = {k: values[k] for k in ("config", "result", "data", "log", "measurements")}
        source = file.parent / ARRAYS / arrays if arrays else None
        yield Record(source=source, **fields)
    if damaged:
        logging.getLogger(__name__).warning(
            "%s: can't use %s%s; using the other lines",
            file,
            damaged[0],
            f" and {more} more" if (more := len(damaged) - 1) else "",
        )


def _append_line(file: Path, line: bytes) -> None:
    durable.make_folder(file.parent)
    # One write: a killed writer leaves all of the line or, rarely, its beginning.
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    with os.fdopen(descriptor, "rb+", buffering=0) as opened:
        with contextlib.suppress(OSError):  # no locks here: the write alone must do
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        before = opened.read() or b""
        if line in before.splitlines(keepends=True):
            return
        # A process that was killed in a write has left part of a line.
        cut = before and not before.endswith(b"\n")
        line = b"\n" + line if cut else line
        if opened.write(line) < len(line):  # a full disk takes a part, and says so the next time
            os.ftruncate(descriptor, len(before))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)
    durable.flush(file.parent)


def _save(folder: Path, name: str, arrays: Mapping[str, Any]) -> str:
    """Writes arrays under a name that their content decides, and returns it."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    data = content.getvalue()
    file = folder / f"{name}-{hashlib.sha256(data).hexdigest()[:8]}.npz"
    if not file.exists() or file.read_bytes() != data:  # or it was damaged since
        durable.make_folder(folder)
        durable.write(file, data)
    return file.name


# A picture asks for several arrays of a few runs.
_load = functools.lru_cache(maxsize=8)(measured.read_arrays)
