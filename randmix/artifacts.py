"""What a run leaves behind in its folder, but for checkpoints: config, table of parameters, result."""

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
LOCK = "train.lock"  # while a process trains
NOT_FINITE = (
    "not_finite.json"  # of a run that stopped so: the step, and the examples that it was given
)
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
    """Makes the folder and writes config and table into it, or checks that it holds this very run.

    Process 0 does, and keeps other runs out of the folder for as long as the context lasts, unless it is finished or
    in an object store, which has no locks. Every process checks that it has the same config and sees the same folder.

    Yields:
        What ``read_result`` gives.

    Raises:
        UserError: it can't be written, another process is training there, its run has another config (the differing
            keys are named), or the processes don't agree.
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
        # Before the config is looked at: of two runs that start at once one writes it and the other is refused.
        if is_local(workdir) and not (workdir / RESULT).exists():
            lock = workdir / LOCK
            if not held.enter_context(locks.try_lock(lock)):
                raise UserError(
                    f"{workdir}: another process is training in this workdir ({locks.holder(lock)}); wait for it, or "
                    "give another --workdir"
                )
        config_file = workdir / CONFIG
        if config_file.exists():
            _check_same_run(workdir, json.loads(config_file.read_text()), config)
        else:
            write_atomically(workdir / MASKS, f"{summary}\n")
            write_atomically(config_file, configs.to_json(config) + "\n")
    except OSError as error:
        raise UserError(
            f"{workdir}: can't be written ({error.strerror or error}); give a --workdir that you may write to"
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
    """The config of the run in a folder; a UserError where there is none."""
    file = epath.Path(workdir) / CONFIG
    if not file.exists():
        raise UserError(
            f"{workdir}: no run there ({CONFIG} is missing); give the --workdir of a run"
        )
    return configs.from_json(file.read_text())


def read_result(workdir: epath.Path) -> dict[str, Any] | None:
    """What ``write_result`` wrote, or None where the run hasn't finished."""
    file = workdir / RESULT
    return json.loads(file.read_text()) if file.exists() else None


def write_result(workdir: epath.Path, result: dict[str, Any]) -> None:
    """Writes the last file of a run: where it is, the run is finished."""
    write_atomically(workdir / RESULT, json.dumps(result, indent=2) + "\n")


def provenance(devices: list[jax.Device]) -> dict[str, Any]:
    """Versions and devices, so that a figure can be traced to what made it."""
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
    """Whether a path is of a file system, not of an object store like gs://."""
    return "://" not in str(path)


def write_atomically(path: epath.PathLike, text: str) -> None:
    """Writes a file so that a reader finds the old text or the new, never half of it."""
    path = epath.Path(path)
    if not is_local(path):
        path.write_text(text)  # an object appears whole, and renaming would copy it
        return
    temporary = path.parent / f"{path.name}.tmp"
    temporary.write_text(text)
    temporary.replace(path)
