"""The one place where a sweep trains: runs that differ only in their seed are handed over together."""

import contextlib
import traceback
from collections.abc import Sequence

from etils import epath
from ml_collections import ConfigDict

from randmix.errors import UserError
from randmix.preemption import Preempted
from randmix.train import train

LOG = "log.txt"


def train_seeds(configs: Sequence[ConfigDict], workdirs: Sequence[epath.PathLike]) -> list[str | None]:
    """Trains runs that differ only in their seed, one after the other.

    What a run prints goes to its log.txt. A run that fails doesn't keep the others from being trained.

    Args:
        configs: equal but for ``seed``.
        workdirs: of the runs; those that were begun go on, finished ones are left as they are.

    Returns:
        For each run why it failed, in one line, or None.

    Raises:
        Preempted: SIGTERM or SIGINT came; everything is saved.
    """
    return [_train_one(config, epath.Path(folder)) for config, folder in zip(configs, workdirs, strict=True)]


def _train_one(config: ConfigDict, workdir: epath.Path) -> str | None:
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / LOG).open("a") as log, contextlib.redirect_stdout(log):
        try:
            train(config, workdir)
        except Preempted:
            raise
        except UserError as error:
            print(error)
            return str(error)
        except Exception as error:  # out of memory, a full disk, a bug: the others may still succeed
            traceback.print_exc(file=log)
            return (
                f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            )
    return None
