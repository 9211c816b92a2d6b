"""Initial filters taken from a finished run: ``config.model.filters = "from=WORKDIR"``.

They may also be arrays in a file, "from=FILE.npz", named by the paths of the parameters, or the
depthwise kernels of a PyTorch model, "from=FILE.safetensors", "from=FILE.pt" and so on.

What identifies such a run is a hash of the filters, not the place they were read from. Assembling
a run writes the hash into its config, "from=PLACE@HASH"; ``config.identity`` leaves the place out.
A run with checkpoints doesn't need its source again, so the source may then be deleted.
"""

import contextlib
import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict

from randmix import config as configs
from randmix.errors import UserError
from randmix.models import torch_files, torch_filters
from randmix.models.filters import Transplant
from randmix.runtime import distributed
from randmix.workdir import artifacts
from randmix.workdir.checkpoints import Checkpoints, newest_fingerprint


@dataclasses.dataclass(frozen=True)
class Source:
    """The source of a config's filters.

    Attributes:
        text: the value of ``config.model.filters``, with the hash if it is known.
        bank: the filters; without kernels if they aren't available.
        missing: why they aren't available, or None.
    """

    text: str
    bank: Transplant
    missing: str | None = None


def find(filters: str, workdir: epath.PathLike | None = None) -> Source | None:
    """Looks up the source of transplanted filters; returns None for a bank by name.

    The source is a finished run, converted weights, or a file of arrays or weights. If it isn't
    there or holds other filters than the hash says, the hash is the one given, or that in the
    workdir's config, or unknown.

    Args:
        filters: "from=PLACE", "from=PLACE@HASH" or the name of a bank.
        workdir: the folder of the run that is to have the filters, which may hold its config.
    """
    if (given := configs.transplant(filters)) is None:
        return None
    folder, digest = given
    try:
        bank = _read(folder)
        if digest not in (None, bank.digest):
            raise UserError(f"the filters there have the hash {bank.digest}")
    except UserError as error:
        digest = digest or _recorded(folder, workdir) or ""
        text = f"from={folder}@{digest}" if digest else filters
        return Source(text, Transplant(digest, None), missing=str(error))
    return Source(f"from={folder}@{bank.digest}", bank)


def require(source: Source, workdir: epath.PathLike) -> None:
    """Raises a UserError unless a run has its initial filters, or a checkpoint to resume from."""
    if source.missing and newest_fingerprint(epath.Path(workdir)) is None:
        raise UserError(f"config.model.filters: got {source.text!r}, but {source.missing}")


def _read(place: str) -> Transplant:
    """Reads the depthwise filters in a file, or of a finished run's newest checkpoint.

    Raises:
        UserError: they can't be read.
    """
    if place.endswith(torch_files.SUFFIXES):
        kernels = torch_filters.read(Path(place))
        return Transplant(digest_of(kernels), kernels)
    leaves = _in_file(place) if place.endswith(".npz") else _in_checkpoint(place)
    kernels = {
        path: np.asarray(leaf, np.float32)
        for path, leaf in leaves.items()
        if path.startswith("spatial/") and path.endswith("/depthwise/kernel")
    }
    if not kernels:
        raise UserError(f"{place}: holds no arrays at spatial/.../depthwise/kernel")
    return Transplant(digest_of(kernels), kernels)


def _in_file(file: str) -> dict[str, np.ndarray]:
    try:
        with epath.Path(file).open("rb") as opened, np.load(opened) as arrays:
            return dict(arrays)
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file; give another one") from error
    except Exception as error:  # NumPy, zipfile and zlib have many kinds
        raise UserError(f"{file}: can't be read as an .npz file ({error})") from error


def _in_checkpoint(folder: str) -> dict[str, Any]:
    ended = distributed.decided_by_primary(lambda: _has_ended(epath.Path(folder)))
    if not ended:
        raise UserError(f"{folder}: no finished run there; train it first, or give another folder")
    with Checkpoints(folder) as checkpoints:
        _, variables = checkpoints.restore_variables()
    return flatten_dict(variables, sep="/")


def _has_ended(folder: epath.Path) -> bool:
    return artifacts.is_finished(folder) or (folder / artifacts.ORIGIN).exists()


def _recorded(folder: str, workdir: epath.PathLike | None) -> str | None:
    """The hash of the filters of this folder in a workdir's config, if it has one."""
    with contextlib.suppress(UserError):
        values = artifacts.read_config_values(workdir) if workdir is not None else {}
        written = configs.transplant(values.get("model", {}).get("filters"))
        if written and written[0] == folder:
            return written[1]
    return None


def digest_of(kernels: Mapping[str, np.ndarray]) -> str:
    """Returns 16 hex digits that identify filters by path, shape and float32 values."""
    whole = hashlib.sha256()
    for path, kernel in sorted(kernels.items()):
        whole.update(f"{path} {kernel.shape}\n".encode())
        whole.update(np.asarray(kernel, "<f4").tobytes())
    return whole.hexdigest()[:16]
