"""Files of a run's workdir other than checkpoints: config, parameter table and result."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from etils import epath

from randmix import __version__
from randmix import config as configs
from randmix.errors import UserError, writing
from randmix.runtime import distributed, durable, locks
from randmix.workdir import json_files
from randmix.workdir.checkpoints import newest_fingerprint, set_aside

CONFIG = "config.json"
DATA = "data.json"  # the data set that the run was trained on, see `catalog.describe`
MASKS = "masks.txt"
METRICS = "metrics.jsonl"
RESULT = "result.json"
ORIGIN = "origin.json"  # the source of converted weights, which stand in place of a finished run
LOCK = "train.lock"  # exists while a process trains
# Written by a run that stopped on a non-finite step: that step and its examples.
NOT_FINITE = "not_finite.json"
_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "tensorflow-datasets",
    "numpy",
)


# The structures of data.json and result.json, as far as they are read; see `json_files.parse`.
_DATA = {
    "name": str,
    "version": str,
    "image_shape": list,
    "num_classes": int,
    "classes": object,
}
RESULT_STRUCTURE = {
    "mode": str,
    "metrics": {str: float},
    "parameters": {"trainable": int, "frozen": int},
    "step": int,
    "seed": int,
    "wall_seconds": float,
    "versions": {str: str},
    "device": {"kind": str, "platform": str, "count": int},
    "config?": {"name": str, "changed": {str: object}},  # older results lack it
    "ensemble?": range(1, 2**31),  # of a run that was trained with others, their number
}


@dataclasses.dataclass(frozen=True)
class Context:
    """Where a run comes from.

    Attributes:
        name: the name of its config, such as "digits-tiny"; "" for one made in Python.
        sweep: the name of the sweep that the run is part of, or "".
        varied: the config's keys, with dots, in which the sweep's runs differ.
    """

    name: str = ""
    sweep: str = ""
    varied: tuple[str, ...] = ()


@contextlib.contextmanager
def open_workdir(
    workdir: epath.Path,
    values: Mapping[str, Any],
    summary: object,
    data: Mapping[str, Any] | None = None,
) -> Iterator[dict[str, Any] | None]:
    """Creates the folder and writes config and table, or checks that it holds this very run.

    Process 0 does this. It also locks the folder against other runs while the context lasts,
    unless the run is finished or the folder is in an object store, which has no locks. Every
    process checks that all have the same config and see the same folder.

    A damaged config.json is written anew unless the newest intact checkpoint is another config's. A
    damaged result.json is moved to ``set_aside``, and the run counts as unfinished.

    Yields:
        The contents of ``result.json``; None if the run is unfinished.

    Raises:
        UserError: the folder can't be written, another process is training there, it holds a run
            with another config (the message names the keys that differ), or the processes disagree.
    """
    distributed.require_same("config", configs.to_json(values))
    distributed.require_same("data set", json.dumps(data))
    with contextlib.ExitStack() as held:
        result = distributed.decided_by_primary(
            lambda: _make_workdir(workdir, values, summary, data, held)
        )
        distributed.require_shared(workdir)
        yield result


def _make_workdir(
    workdir: epath.Path,
    values: Mapping[str, Any],
    summary: object,
    data: Mapping[str, Any] | None,
    held: contextlib.ExitStack,
) -> dict[str, Any] | None:
    try:
        with writing(workdir, "give a --workdir that you may write to"):
            durable.make_folder(workdir)
            # Before reading the config: of two runs that start at once, one writes it and the
            # other is refused.
            if durable.is_local(workdir) and not is_finished(workdir):
                lock = workdir / LOCK
                if not held.enter_context(locks.try_lock(lock)):
                    raise UserError(
                        f"{workdir}: another process is training in this workdir "
                        f"({locks.holder(lock)}); wait for it, or give another --workdir"
                    )
            _claim(workdir, values)
            if data is not None:
                _claim_data(workdir, data)
            result = _usable_result(workdir)
            if result is None:
                durable.write(workdir / MASKS, f"{summary}\n")
            return result
    except ImportError as error:
        raise UserError(f"{workdir}: {error}; pip install 'randmix[gcs]' for gs://") from error


def _claim(workdir: epath.Path, values: Mapping[str, Any]) -> None:
    """Writes config.json, or checks that it is of the same run."""
    file, old, lost = workdir / CONFIG, None, f"{workdir / CONFIG} is missing"
    if file.exists():
        try:
            old = read_config_values(workdir)
        except json_files.Damaged as damaged:
            lost = str(damaged).partition(";")[0]
    if old is not None:
        _require_same_run(workdir, old, values)
        return
    saved, own = newest_fingerprint(workdir), configs.fingerprint(values)
    if saved not in (None, own):
        raise UserError(
            f"{lost}, and the checkpoints are of a config with the fingerprint {saved}, while this "
            f"one has {own}; give the old config, which writes it anew, or another --workdir"
        )
    if file.exists():
        set_aside(file, workdir, lost, " and written anew")
    durable.write(file, configs.to_json(values) + "\n")


def _require_same_run(
    workdir: epath.PathLike, old: dict[str, Any], values: Mapping[str, Any]
) -> None:
    newer = sorted(configs.identity(values).keys() - configs.identity(old).keys())
    if newer and old.get("model", {}).get("name") == values["model"]["name"]:
        raise UserError(
            f"{workdir}: holds a run of an older version, whose config lacks {', '.join(newer)}; "
            "give another --workdir"
        )
    if differences := configs.differences(old, values):
        raise UserError(
            f"{workdir}: holds a run with another config ({'; '.join(differences)}); "
            "give another --workdir, or the old values"
        )


def _claim_data(workdir: epath.Path, data: Mapping[str, Any]) -> None:
    """Writes data.json, or checks that the run was trained on the same data, as far as it says."""
    file = workdir / DATA
    try:
        old = read_data(workdir)
    except json_files.Damaged as damaged:
        set_aside(file, workdir, str(damaged).partition(";")[0], " and written anew")
        old = None
    if old is None:
        durable.write(file, json.dumps(data, indent=2) + "\n")
    elif differing := [key for key in data if key in old and old[key] != data[key]]:
        raise UserError(
            f"{file}: the run was trained on a data set with another {' and '.join(differing)}; "
            "give its own data set, or another --workdir"
        )


def _usable_result(workdir: epath.Path) -> dict[str, Any] | None:
    try:
        return read_result(workdir)
    except json_files.Damaged as damaged:
        reason = str(damaged).partition(";")[0]
        set_aside(workdir / RESULT, workdir, reason, " and computed anew")
        return None


def is_finished(workdir: epath.Path) -> bool:
    """Whether a run has ended and its result can be read."""
    try:
        return _parsed_result(workdir) is not None
    except json_files.Damaged:
        return False


def read_config_values(workdir: epath.PathLike) -> dict[str, Any]:
    """Returns the content of ``config.json`` as it was written, without newer keys.

    Raises:
        UserError: there is none, or it is damaged.
    """
    file = epath.Path(workdir) / CONFIG
    if not file.exists():
        raise UserError(
            f"{workdir}: no run there ({CONFIG} is missing); give the --workdir of a run"
        )
    return json_files.read(
        file,
        {"seed": int, "model": {"name": str}},
        what_to_do="start the run's training again with its own config, which writes it anew",
    )


def read_data(workdir: epath.PathLike) -> dict[str, Any] | None:
    """Returns the contents of ``data.json``, or None if the run was made without it.

    Raises:
        UserError: it is damaged.
    """
    file = epath.Path(workdir) / DATA
    if not file.exists():
        return None
    again = "start the run's training again with its own config, which writes it anew"
    return json_files.read(file, _DATA, what_to_do=again)


def read_result(
    workdir: epath.PathLike, values: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """Returns the contents of ``result.json``, or None if the run hasn't finished.

    Args:
        workdir: the run's folder.
        values: the config's values that the run must have; None for any.

    Raises:
        UserError: it is damaged, of another run than ``config.json``, or that is another config.
    """
    result = _parsed_result(workdir)
    if result is None:
        return None
    written = read_config_values(workdir)
    if values is not None:
        _require_same_run(workdir, written, values)
    if written["seed"] != result["seed"]:
        raise UserError(
            f"{epath.Path(workdir) / RESULT}: seed is {result['seed']}, but {written['seed']} in "
            f"{CONFIG}; "
            "one of the two is another run's: put back what was here"
        )
    return result


def _parsed_result(workdir: epath.PathLike) -> dict[str, Any] | None:
    file = epath.Path(workdir) / RESULT
    if not file.exists():
        return None
    again = "train this workdir again, which computes it anew from the last checkpoint"
    return json_files.read(file, RESULT_STRUCTURE, what_to_do=again)


def write_result(workdir: epath.Path, result: dict[str, Any]) -> None:
    """Writes ``result.json``, the last file of a run: its presence marks the run as finished."""
    durable.write(workdir / RESULT, json.dumps(result, indent=2) + "\n")


@functools.cache
def commit() -> str | None:
    """Returns the commit of the code, with "+" after it if files have changed since.

    None if the code isn't in a git repository, as when it was installed from a wheel.
    """
    git = ["git", "-C", str(pathlib.Path(__file__).parent)]

    def output(*arguments: str) -> str:
        done = subprocess.run([*git, *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        # A wheel may be installed inside another project's repository, which doesn't track it.
        output("ls-files", "--error-unmatch", pathlib.Path(__file__).name)
        return output("describe", "--always", "--exclude=*", "--dirty=+", "--abbrev=12")
    except (OSError, subprocess.CalledProcessError):
        return None


def provenance(devices: list[jax.Device]) -> dict[str, Any]:
    """Returns the commit, the versions and the machine that produced a result."""
    return {
        "commit": commit(),
        "versions": {"python": platform.python_version(), "randmix": __version__}
        | {name: importlib.metadata.version(name) for name in _PACKAGES},
        **machine(devices),
    }


def machine(devices: list[jax.Device]) -> dict[str, Any]:
    """Returns the devices, and the number of CPU cores that this process may use."""
    return {
        "device": {
            "kind": devices[0].device_kind,
            "platform": devices[0].platform,
            "count": len(devices),
        },
        "cores": len(os.sched_getaffinity(0)),
    }
