"""Filters that one run of a sweep learns and others start from (E14), kept in the sweep's folder.

    ROOT/filters/NAME.npz    the filters of the run NAME

They are read from the run's record, so that the run may have been made on another machine.
"""

import contextlib
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from randmix import config as configs
from randmix.errors import UserError
from randmix.experiments import measured
from randmix.experiments.plan import Group
from randmix.experiments.records import Record
from randmix.reproduce import measurements
from randmix.training import transplants


def reference(name: str, root: epath.PathLike, known: Mapping[str, Record]) -> str:
    """The value of ``model.filters`` for the filters that a run learned.

    Args:
        name: the run's name.
        root: the sweep's folder.
        known: the records at hand, by name.

    Returns:
        "from=FILE@HASH", or "from=FILE" as long as the run's filters aren't among them.
    """
    learned = _learned(name, known)
    return f"from={_file(name, root)}" + (f"@{transplants.digest_of(learned)}" if learned else "")


def write(groups: Sequence[Group], root: epath.PathLike, known: Mapping[str, Record]) -> None:
    """Writes the files that the groups' configs refer to, as far as their filters are known."""
    for run, *_ in groups:
        folder, _ = configs.transplant(run.config.model.filters) or ("", None)
        name = epath.Path(folder).stem
        if folder and not epath.Path(folder).exists() and (learned := _learned(name, known)):
            measured.write_arrays(_file(name, root), learned)


def _file(name: str, root: epath.PathLike) -> epath.Path:
    return epath.Path(root) / "filters" / f"{name}.npz"


def _learned(name: str, known: Mapping[str, Record]) -> dict[str, np.ndarray]:
    """The filters of a run by the paths of its parameters; {} if they aren't at hand."""
    record = known.get(name)
    if record is None or measurements.LAYERS not in record.measurements:
        return {}
    with contextlib.suppress(UserError):  # the arrays weren't copied along
        kernels = measurements.kernels(record)
        return {f"spatial/{layer}/depthwise/kernel": array for layer, array in kernels.items()}
    return {}
