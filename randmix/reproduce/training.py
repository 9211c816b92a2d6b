"""The one place where a sweep trains: runs that differ only in their seed are handed over together."""

import contextlib
import io
import traceback
from collections.abc import Iterator, Sequence
from typing import TextIO

import jax
from etils import epath
from ml_collections import ConfigDict

from randmix import ensemble
from randmix.compiled import Programs
from randmix.errors import UserError
from randmix.preemption import Preempted
from randmix.train import train

LOG = "log.txt"
AUTO = "auto"


def parse_ensemble(text: str) -> int | str:
    """How many seeds are trained as one program at most: "auto", or a number; "off" is 1.

    Raises:
        UserError: it is none of these.
    """
    if text in (AUTO, "off"):
        return AUTO if text == AUTO else 1
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise UserError(
            f"--ensemble: got {text!r}, allowed are auto, off and a number from 1, of seeds together"
        )
    return int(text)


def train_seeds(
    configs: Sequence[ConfigDict],
    workdirs: Sequence[epath.PathLike],
    together: int | str = 1,
    programs: Programs | None = None,
) -> list[str | None]:
    """Trains runs that differ only in their seed: as one program, or one after the other.

    What a run prints goes to its log.txt. A run that fails doesn't keep the others from being trained: where an
    ensemble fails as a whole (memory, a full disk), its runs are tried one after the other.

    Args:
        configs: equal but for ``seed``.
        workdirs: of the runs; those that were begun go on, finished ones are left as they are.
        together: how many are trained as one program at most (see ``ensemble.cohorts``); "auto": on a GPU or TPU as
            many as its memory holds, on a CPU, which gains nothing by it, 1.
        programs: of these runs, where something else is compiled for them too.

    Returns:
        For each run why it failed, in one line, or None.

    Raises:
        Preempted: SIGTERM or SIGINT came; everything is saved.
    """
    folders = [epath.Path(folder) for folder in workdirs]
    reasons: list[str | None] = [None] * len(configs)
    programs = programs or Programs()
    for cohort in _cohorts(configs, folders, together):
        mine = [configs[i] for i in cohort], [folders[i] for i in cohort]
        found = _train_together(*mine, programs) if len(cohort) > 1 else None
        if found is None:
            found = [
                _train_one(config, folder, programs) for config, folder in zip(*mine, strict=True)
            ]
        for i, reason in zip(cohort, found, strict=True):
            reasons[i] = reason
    return reasons


def _cohorts(
    configs: Sequence[ConfigDict], folders: Sequence[epath.Path], together: int | str
) -> list[list[int]]:
    """The runs' indices, in lists of those that are trained together."""
    alone = [[i] for i in range(len(configs))]
    if len(configs) == 1 or together == 1 or (together == AUTO and jax.default_backend() == "cpu"):
        return alone
    try:
        if together == AUTO:
            together = ensemble.largest_that_fits(configs[0], len(configs))
        return ensemble.cohorts(configs, folders, together)
    except UserError:  # a mistake that each run will name
        return alone


def _train_together(
    configs: Sequence[ConfigDict], folders: Sequence[epath.Path], programs: Programs
) -> list[str | None] | None:
    """As ``train_seeds``, in one program; None where that failed as a whole."""
    with _logged(folders):
        try:
            return ensemble.train(configs, folders, programs=programs)
        except Preempted:
            raise
        except Exception:
            print(traceback.format_exc(), end="")
            print("together it failed; the seeds are trained one after the other", flush=True)
    return None


def _train_one(config: ConfigDict, workdir: epath.Path, programs: Programs) -> str | None:
    with _logged([workdir]):
        try:
            train(config, workdir, programs=programs)
        except Preempted:
            raise
        except UserError as error:
            print(error)
            return str(error)
        except (
            Exception
        ) as error:  # out of memory, a full disk, a bug: the others may still succeed
            print(traceback.format_exc(), end="")
            return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    return None


@contextlib.contextmanager
def _logged(folders: Sequence[epath.Path]) -> Iterator[None]:
    """What is printed meanwhile goes to the log.txt of each folder."""
    with contextlib.ExitStack() as stack:
        logs = []
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            logs.append(stack.enter_context((folder / LOG).open("a")))
        stack.enter_context(contextlib.redirect_stdout(_Copies(logs)))
        yield


class _Copies(io.TextIOBase):
    """A text file whose lines go to several."""

    def __init__(self, files: Sequence[TextIO]):
        self._files = files

    def write(self, text: str) -> int:
        for file in self._files:
            file.write(text)
        return len(text)

    def flush(self) -> None:
        for file in self._files:
            file.flush()
