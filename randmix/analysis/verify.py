"""Verifies that a run's files are unchanged since they were written, and belong together."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from randmix.errors import UserError
from randmix.training import loading, runs
from randmix.workdir import artifacts, checkpoints, metrics


def main(options: Any) -> None:
    """Verifies the workdir of the options of ``commands/verify.py``."""
    workdir = epath.Path(options.workdir)
    wrong = found = 0
    for path, problem in findings(workdir):
        print(problem or f"{path}: intact", flush=True)
        found += path.name.isdigit()
        wrong += problem is not None
    if not found:
        raise UserError(f"{workdir}: no checkpoint there; {checkpoints.how_to_train(workdir)}")
    if wrong:
        raise UserError(
            f"{workdir}: {wrong} of its files and checkpoints can't be used; what is damaged is "
            f"set aside and made anew when you {checkpoints.how_to_train(workdir)}"
        )


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
