"""Files of a run's workdir other than checkpoints: config, parameter table and result."""

import contextlib
import importlib.metadata
import json
import platform
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from randmix import config as configs
from randmix import distributed, locks
from randmix.errors import UserError

CONFIG = "config.json"
MASKS = "masks.txt"
METRICS = "metrics.jsonl"
RESULT = "result.json"
LOCK = "train.lock"  # exists while a process trains
# Written by a run that stopped on a non-finite step: that step and its examples.
NOT_FINITE = "not_finite.json"
_PACKAGES = (
    "randmix",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "tensorflow-datasets",
    "numpy",
)


@contextlib.contextmanager
def open_workdir(
    workdir: epath.Path, config: ConfigDict, summary: object
) -> Iterator[dict[str, Any] | None]:
    """Creates the folder and writes config and table, or checks that it holds this very run.

    Process 0 does this. It also locks the folder against other runs while the context lasts,
    unless the run is finished or the folder is in an object store, which has no locks. Every
    process checks that all have the same config and see the same folder.

    Yields:
        The result of ``read_result``.

    Raises:
        UserError: the folder can't be written, another process is training there, it holds a run
            with another config (the message names the keys that differ), or the processes disagree.
    """
    distributed.require_same("config", configs.to_json(config))
    with contextlib.ExitStack() as held:
        with distributed.shared_errors():
            if distributed.is_primary():
                _make_workdir(workdir, config, summary, held)
        distributed.require_shared(workdir)
        yield read_result(workdir)


def _make_workdir(
    workdir: epath.Path, config: ConfigDict, summary: object, held: contextlib.ExitStack
) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # Before reading the config: of two runs that start at once, one writes it and the
        # other is refused.
        if is_local(workdir) and not (workdir / RESULT).exists():
            lock = workdir / LOCK
            if not held.enter_context(locks.try_lock(lock)):
                raise UserError(
                    f"{workdir}: another process is training in this workdir "
                    f"({locks.holder(lock)}); wait for it, or give another --workdir"
                )
        config_file = workdir / CONFIG
        if config_file.exists():
            _check_same_run(workdir, json.loads(config_file.read_text()), config)
        else:
            write_atomically(workdir / MASKS, f"{summary}\n")
            write_atomically(config_file, configs.to_json(config) + "\n")
    except OSError as error:
        raise UserError(
            f"{workdir}: can't be written ({error.strerror or error}); "
            "give a --workdir that you may write to"
        ) from error
    except ImportError as error:
        raise UserError(f"{workdir}: {error}; pip install 'randmix[gcs]' for gs://") from error


def _check_same_run(workdir: epath.Path, old: dict[str, Any], config: ConfigDict) -> None:
    if differences := configs.differences(old, config):
        raise UserError(
            f"{workdir}: holds a run with another config ({'; '.join(differences)}); "
            "give another --workdir, or the old values"
        )


def read_config(workdir: epath.PathLike) -> ConfigDict:
    """Returns the config of the run in a folder; raises a UserError if there is none."""
    file = epath.Path(workdir) / CONFIG
    if not file.exists():
        raise UserError(
            f"{workdir}: no run there ({CONFIG} is missing); give the --workdir of a run"
        )
    return configs.from_json(file.read_text())


def read_result(workdir: epath.Path) -> dict[str, Any] | None:
    """Returns the contents of ``result.json``, or None if the run hasn't finished."""
    file = workdir / RESULT
    return json.loads(file.read_text()) if file.exists() else None


def write_result(workdir: epath.Path, result: dict[str, Any]) -> None:
    """Writes ``result.json``, the last file of a run: its presence marks the run as finished."""
    write_atomically(workdir / RESULT, json.dumps(result, indent=2) + "\n")


def provenance(devices: list[jax.Device]) -> dict[str, Any]:
    """Returns the versions and devices that produced a result."""
    return {
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _PACKAGES},
        "device": {
            "kind": devices[0].device_kind,
            "platform": devices[0].platform,
            "count": len(devices),
        },
    }


def is_local(path: epath.PathLike) -> bool:
    """Whether a path is on a file system rather than in an object store such as gs://."""
    return "://" not in str(path)


def write_atomically(path: epath.PathLike, text: str) -> None:
    """Writes a text file so that a reader finds either the old text or the new, never a mixture."""
    path = epath.Path(path)
    if not is_local(path):
        path.write_text(text)  # objects appear atomically, and renaming would copy them
        return
    temporary = path.parent / f"{path.name}.tmp"
    temporary.write_text(text)
    temporary.replace(path)
