"""Locks between processes, as a file each: two never train one run, nor write one report."""

import contextlib
import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextlib.contextmanager
def try_lock(file: os.PathLike | str) -> Iterator[bool]:
    """Whether this holder, and no other on this file, has the lock for as long as the context lasts.

    The system frees the lock when the process ends, however it ends, so there is no stale one; the file itself goes
    with the context, and one that a killed process left means nothing. It holds between machines where the file
    system passes locks on, as NFS 4, Lustre with ``flock`` and GPFS do. A file system without locks gets a warning.

    Args:
        file: of the lock; its folder exists. While it is held it says by whom, see ``holder``.

    Raises:
        OSError: the file can't be written.
    """
    file = Path(file)
    descriptor = _try_lock(file)
    if descriptor is None:
        yield False
        return
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{socket.gethostname()} process {os.getpid()}\n".encode())
        yield True
    finally:
        file.unlink(missing_ok=True)  # while it is still ours
        os.close(descriptor)


def holder(file: os.PathLike | str) -> str:
    """Who has a lock, as "HOST process PID"; for a message, since it may change at any time."""
    try:
        return Path(file).read_text().strip() or "just starting"
    except FileNotFoundError:
        return "just ended"


def _try_lock(file: Path) -> int | None:
    """A descriptor of the locked file, or None where another has it."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                os.close(descriptor)
                raise
            logging.getLogger(__name__).warning(
                "%s: this file system has no locks (%s); never start two runs in one folder there",
                file,
                error.strerror,
            )
            return descriptor
        if _is_at(descriptor, file):
            return descriptor
        # The holder before has removed the file after we opened it: nobody else would see this lock.
        os.close(descriptor)


def _is_at(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file))
    except FileNotFoundError:
        return False
