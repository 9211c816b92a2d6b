"""Verifies runs and data sets.

A run's files must be unchanged since they were written, and belong together. Every record of a data
set must be readable, and its image complete.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from randmix.data import catalog, records, survey
from randmix.errors import UserError
from randmix.training import loading, runs
from randmix.workdir import artifacts, checkpoints, metrics


def main(options: Any) -> None:
    """Verifies the workdir or data set of the options of ``commands/verify.py``."""
    name = options.workdir_or_data_set
    workdir = epath.Path(name)
    if workdir.is_dir():
        _verify_workdir(workdir)
        return
    try:
        data_set = catalog.get(name, options.data_dir)
    except UserError as error:
        if not str(error).startswith("no data set is named"):
            raise
        raise UserError(f"there is no folder {name!r} with a run, and {error}") from error
    _verify_data_set(data_set, options.data_dir)


def _verify_workdir(workdir: epath.Path) -> None:
    wrong = found = 0
    for path, problem in findings(workdir):
        print(problem or f"{path}: intact", flush=True)
        found += path.name.isdigit()
        wrong += problem is not None
    if not found:
        raise UserError(f"{workdir}: no checkpoint there; {checkpoints.how_to_train(workdir)}")
    if wrong:
        raise UserError(
            f"{workdir}: {wrong} of its files and checkpoints can't be used; damaged files, and "
            "damaged checkpoints after the last intact one, are set aside and made anew when you "
            f"{checkpoints.how_to_train(workdir)}"
        )


def _verify_data_set(data_set: catalog.DataSet, data_dir: epath.PathLike | None) -> None:
    """Decodes every record and prints those that are damaged, or a line that all are intact."""
    splits = [split for split in catalog.SPLITS if data_set.examples(split)]
    for split in splits:  # the numbers of examples are those of the catalog
        if data_set.embedded:
            catalog.read(data_set, split, data_dir)
        else:
            catalog.open_source(data_set, split, data_dir)
    if data_set.embedded:
        count = sum(map(data_set.examples, splits))
        print(f"{data_set.name}: all {count:,} records are intact")
        return
    directory = data_set.directory(data_dir)
    found = survey.survey(directory)
    for damage in found.damaged:
        file_name = f" ({damage.file_name})" if damage.file_name else ""
        print(f"{damage.split}, record {damage.row}{file_name}: {damage.reason}")
    if found.damaged:
        raise records.damaged(
            directory, f"unreadable records: {len(found.damaged):,} of {found.examples:,}"
        )
    print(f"{data_set.name}: all {found.examples:,} records in {directory} are intact")


def findings(workdir: epath.Path) -> Iterator[tuple[epath.Path, str | None]]:
    """Yields each file or checkpoint of a workdir with one line on what is wrong, or None."""
    identity = {}
    log = workdir / artifacts.METRICS
    yield workdir / artifacts.CONFIG, _error(runs.read_config, workdir)
    with contextlib.suppress(UserError):
        identity = runs.identity(artifacts.read_config_values(workdir))
    for name, read in (
        (artifacts.DATA, artifacts.read_data),
        (artifacts.RESULT, artifacts.read_result),
    ):
        if (workdir / name).exists():
            yield workdir / name, _error(read, workdir)
    if log.exists():
        yield log, metrics.damage(log)
    for folder in (checkpoints.FOLDER, checkpoints.BEST):
        with checkpoints.Checkpoints(workdir, about=identity, folder=folder) as saved:
            steps = saved.all_steps()
            for step in reversed(steps):
                path, damage = saved.folder / str(step), saved.damage(step)
                if damage is not None:
                    yield path, f"{path}: {damage}"
                elif step == steps[0] and identity:  # what a reader would take
                    load = functools.partial(loading.load, best=folder == checkpoints.BEST)
                    yield path, _error(load, workdir)
                else:
                    yield path, saved.disagreement(step)


def _error(read: Callable[[epath.Path], Any], workdir: epath.Path) -> str | None:
    """Returns the message of the UserError that a function raises, or None."""
    try:
        read(workdir)
    except UserError as error:
        return str(error)
    return None
