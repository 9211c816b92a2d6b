"""Verifies that a run's files are unchanged since they were written, and belong together.

    python -m randmix.analysis.verify verify WORKDIR

Reads every file of each checkpoint and compares its SHA-256 with the manifest that was saved with
it; compares the manifests with config.json and with the names of their folders; and reads the
config, the result and the log. Changes nothing. Exit status: 0 all is well, 2 something is damaged
or of another run, or there is no checkpoint.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from randmix.errors import UserError
from randmix.runtime import cli
from randmix.training import loading, runs
from randmix.workdir import artifacts, metrics
from randmix.workdir import checkpoints as checkpoint


def main(argv: list[str]) -> None:
    """Verifies the workdir that the command line names."""
    if len(argv) != 3 or argv[1] != "verify":
        raise UserError(f"expected `verify WORKDIR`, got {argv[1:]}; see --help")
    workdir = epath.Path(argv[2])
    wrong = found = 0
    for path, problem in findings(workdir):
        print(problem or f"{path}: intact", flush=True)
        found += path.name.isdigit()
        wrong += problem is not None
    if not found:
        raise UserError(f"{workdir}: no checkpoint there; {checkpoint.how_to_train(workdir)}")
    if wrong:
        raise UserError(
            f"{workdir}: {wrong} of its files and checkpoints can't be used; what is damaged is "
            f"set aside and made anew when you {checkpoint.how_to_train(workdir)}"
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
    for folder in (checkpoint.FOLDER, checkpoint.BEST):
        with checkpoint.Checkpoints(workdir, about=identity, folder=folder) as checkpoints:
            steps = checkpoints.all_steps()
            for step in reversed(steps):
                path, damage = checkpoints.folder / str(step), checkpoints.damage(step)
                if damage is not None:
                    yield path, f"{path}: {damage}"
                elif step == steps[0] and identity:  # what a reader would take
                    load = functools.partial(loading.load, best=folder == checkpoint.BEST)
                    yield path, _error(load, workdir)
                else:
                    yield path, checkpoints.disagreement(step)


def _error(read: Callable[[epath.Path], Any], workdir: epath.Path) -> str | None:
    """Returns the message of the UserError that a function raises, or None."""
    try:
        read(workdir)
    except UserError as error:
        return str(error)
    return None


if __name__ == "__main__":
    cli.run(main)
