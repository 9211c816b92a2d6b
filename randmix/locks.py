"""File locks between processes, so that no two train one run or write one report."""

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
    """Tries to take a lock and holds it until the context exits; yields whether it was taken.

    The system frees the lock when the process ends for any reason, so it is never stale. The file
    is removed on exit; a file left by a killed process has no effect. The lock works between
    machines if the file system supports that, as NFS 4, Lustre with ``flock`` and GPFS do. On a
    file system without locks, a warning is logged and True is yielded.

    Args:
        file: the lock file, in an existing folder. While locked it names its holder, see
            ``holder``.

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
    """Returns a lock's holder as "HOST process PID", for messages: it may change at any time."""
    try:
        return Path(file).read_text().strip() or "just starting"
    except FileNotFoundError:
        return "just ended"


def _try_lock(file: Path) -> int | None:
    """Returns a descriptor of the locked file, or None if another process holds the lock."""
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
        # The previous holder removed the file after we opened it: no one else would see this lock.
        os.close(descriptor)


def _is_at(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file))
    except FileNotFoundError:
        return False
