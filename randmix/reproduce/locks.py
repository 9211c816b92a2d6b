"""A lock file in a run's folder, so that two sweeps never train one run."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

NAME = "lock"


@contextlib.contextmanager
def try_lock(folder: os.PathLike) -> Iterator[bool]:
    """Whether this process has the folder to itself for as long as the context lasts.

    The system frees the lock when the process ends, however it ends, so there is no stale one. It holds between machines
    where the file system passes locks on, as NFS 4, Lustre with ``flock`` and GPFS do.

    Args:
        folder: it is made where it doesn't exist.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / NAME).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        file.truncate(0)
        file.write(f"{socket.gethostname()} process {os.getpid()}\n")  # for a person who wonders
        file.flush()
        yield True
