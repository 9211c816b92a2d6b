"""Writing that survives a power cut: what is written counts only once it is on the disk.

A file system may put the rename of a file on the disk before the file's own content. After a power
cut, the file is then empty under its final name. So a file is flushed before it is renamed, and its
folder after. Object stores such as gs:// do both by themselves and are left alone.
"""

import errno
import os
import uuid

from etils import epath


def is_local(path: epath.PathLike) -> bool:
    """Whether a path is on a file system rather than in an object store such as gs://."""
    return "://" not in str(path)


def flush(*paths: epath.PathLike) -> None:
    """Waits until files' contents, or folders' lists of names, are on the disk."""
    for path in filter(is_local, paths):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a file system that can't flush a folder
                raise
        finally:
            os.close(descriptor)


def flush_tree(folder: epath.PathLike) -> None:
    """Flushes every file and folder below a folder, and the folder itself."""
    if is_local(folder):
        for path, _, files in os.walk(folder, topdown=False):
            flush(*(os.path.join(path, name) for name in files), path)


def make_folder(folder: epath.PathLike) -> None:
    """Makes a folder and its missing parents, and flushes the folders that hold the new names."""
    folder = epath.Path(folder)
    new = [path for path in (folder, *folder.parents) if is_local(folder) and not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    flush(*(path.parent for path in reversed(new)))


def write(path: epath.PathLike, content: str | bytes) -> None:
    """Writes a file so that a reader finds either all of the old content or all of the new."""
    path = epath.Path(path)
    data = content.encode() if isinstance(content, str) else content
    if not is_local(path):
        path.write_bytes(data)  # objects appear atomically, and renaming would copy them
        return
    temporary = path.parent / f"{path.name}.{uuid.uuid4().hex[:8]}.tmp"  # no other writer's
    try:
        temporary.write_bytes(data)
        flush(temporary)
        move(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def move(source: epath.PathLike, target: epath.PathLike) -> None:
    """Renames a file or folder whose content is on the disk already, replacing a file."""
    source, target = epath.Path(source), epath.Path(target)
    source.replace(target)
    flush(*{target.parent, source.parent})
