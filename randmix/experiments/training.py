"""Training of a sweep's runs; those that differ only in their seed can share one program."""

import contextlib
import io
import traceback
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

import jax
from etils import epath

from randmix.config import Config
from randmix.errors import UserError, writing
from randmix.runtime import durable
from randmix.runtime.preemption import Preempted
from randmix.training import ensemble, runs
from randmix.training.compiled import Programs
from randmix.training.loop import train
from randmix.workdir.artifacts import Context

LOG = "log.txt"
AUTO = "auto"


def parse_ensemble(text: str) -> int | str:
    """Parses --ensemble, the largest number of seeds trained as one program.

    Returns:
        "auto", or a number of at least 1; 1 for "off".

    Raises:
        UserError: the text is none of these.
    """
    if text in (AUTO, "off"):
        return AUTO if text == AUTO else 1
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise UserError(
            f"--ensemble: got {text!r}, allowed are auto, off and a number of seeds, at least 1"
        )
    return int(text)


def train_seeds(
    configs: Sequence[Config],
    workdirs: Sequence[epath.PathLike],
    together: int | str = 1,
    programs: Programs | None = None,
    context: Context = Context(),
) -> Iterator[tuple[int, str | None]]:
    """Trains runs that differ only in their seed, as one program or sequentially.

    A run's output goes to its log.txt. A failed run doesn't prevent the others from being trained:
    if an ensemble fails as a whole (memory, a full disk), its runs are tried one by one.

    Args:
        configs: configs that are equal except for ``seed``.
        workdirs: the runs' folders; begun runs resume, finished ones are left unchanged.
        together: largest number of runs trained as one program (see ``ensemble.cohorts``). "auto":
            as many as fit into the memory of a GPU or TPU; 1 on a CPU, which gains nothing.
        programs: compiled programs to share with other work on these runs.
        context: where the runs come from.

    Yields:
        The index of each run as soon as it has ended, and None, or the reason of its failure in
        one line.

    Raises:
        Preempted: a signal arrived; everything is saved.
    """
    folders = [epath.Path(folder) for folder in workdirs]
    programs = programs or Programs()
    for cohort in _cohorts(configs, folders, together):
        mine = [configs[i] for i in cohort], [folders[i] for i in cohort]
        reasons: Iterable[str | None] | None = None
        if len(cohort) > 1:
            reasons = _train_together(*mine, programs, context)
        if reasons is None:
            reasons = (_train_one(*run, programs, context) for run in zip(*mine, strict=True))
        yield from zip(cohort, reasons, strict=True)


def _cohorts(
    configs: Sequence[Config], folders: Sequence[epath.Path], together: int | str
) -> list[list[int]]:
    """Indices of the runs, in lists of those that are trained together."""
    alone = [[i] for i in range(len(configs))]
    if len(configs) < 2 or together == 1 or (together == AUTO and jax.default_backend() == "cpu"):
        return alone
    try:
        parts = [runs.assemble(*run) for run in zip(configs, folders, strict=True)]
        if isinstance(together, str):
            together = ensemble.largest_that_fits(parts[0], len(configs))
        return ensemble.cohorts(parts, folders, together)
    except UserError:  # a mistake that every run will report
        return alone


def _train_together(
    configs: Sequence[Config], folders: Sequence[epath.Path], programs: Programs, context: Context
) -> list[str | None] | None:
    """As ``train_seeds``, as one program; returns None if that failed as a whole."""
    with _logged(folders):
        try:
            parts = [runs.assemble(*run) for run in zip(configs, folders, strict=True)]
            return ensemble.train(parts, folders, programs=programs, context=context)
        except Preempted:
            raise
        except Exception:
            print(traceback.format_exc(), end="")
            print("training the seeds together failed; training them one by one", flush=True)
    return None


def _train_one(
    config: Config, workdir: epath.Path, programs: Programs, context: Context
) -> str | None:
    with _logged([workdir]):
        try:
            train(config, workdir, programs=programs, context=context)
        except Preempted:
            raise
        except UserError as error:
            print(error)
            return str(error)
        except Exception as error:
            # Out of memory, a full disk, a bug: the other runs may still succeed.
            print(traceback.format_exc(), end="")
            first_line = str(error).strip().splitlines()[0] if str(error).strip() else ""
            return f"{type(error).__name__}: {first_line}"
    return None


@contextlib.contextmanager
def _logged(folders: Sequence[epath.Path]) -> Iterator[None]:
    """Appends everything printed in its context to the log.txt of each folder."""
    with contextlib.ExitStack() as stack:
        logs = []
        advice = "make room, and start the same command again"
        stack.enter_context(writing(folders[0] / LOG, advice))
        for folder in folders:
            durable.make_folder(folder)
            logs.append(stack.enter_context((folder / LOG).open("a")))
        stack.enter_context(contextlib.redirect_stdout(_Copies(logs)))
        yield


class _Copies(io.TextIOBase):
    """A text file that writes to several files."""

    def __init__(self, files: Sequence[TextIO]):
        self._files = files

    def write(self, text: str) -> int:
        for file in self._files:
            file.write(text)
        return len(text)

    def flush(self) -> None:
        for file in self._files:
            file.flush()
