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
    is removed on exit, but never another one that has taken its place; a file left by a killed
    process has no effect. The lock works between machines if the file system supports that, as
    NFS 4, Lustre with ``flock`` and GPFS do. On a file system without locks, a warning is logged
    and True is yielded.

    Args:
        file: the lock file, in an existing folder. While locked it names its holder, see
            ``holder``.

    Raises:
        OSError: the file can't be written.
    """
    file = Path(file)
    # All names are relative to this folder: in one that is made anew under its path, the lock of
    # another process is out of reach, whenever that happens.
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        descriptor = _try_lock(file, folder)
        if descriptor is None:
            yield False
            return
        try:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{socket.gethostname()} process {os.getpid()}\n".encode())
            yield True
        finally:
            # Of our processes only a lock's holder removes it: the file can't change in between.
            if _is_at(descriptor, file.name, folder):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(file.name, dir_fd=folder)
            os.close(descriptor)
    finally:
        os.close(folder)


def holder(file: os.PathLike | str) -> str:
    """Returns a lock's holder as "HOST process PID", for messages: it may change at any time."""
    try:
        return Path(file).read_text().strip() or "just starting"
    except FileNotFoundError:
        return "just ended"


def _try_lock(file: Path, folder: int) -> int | None:
    """Returns a descriptor of the locked file, or None if another process holds the lock."""
    while True:
        descriptor = os.open(file.name, os.O_RDWR | os.O_CREAT, 0o666, dir_fd=folder)
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
        if _is_at(descriptor, file.name, folder):
            return descriptor
        # The previous holder removed the file after we opened it: no one else would see this lock.
        os.close(descriptor)


def _is_at(descriptor: int, name: str, folder: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(name, dir_fd=folder))
    except FileNotFoundError:
        return False
