"""Checkpoint integrity: a manifest of the files' SHA-256 sums, written last.

Orbax writes a checkpoint into a temporary folder and renames it at the end, so a process killed
midway leaves nothing that looks complete. It doesn't detect later damage: of 20 checkpoints with
one flipped bit each, all 20 restored silently, with wrong numbers.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping

from etils import epath

from randmix.errors import UserError

FILE = "manifest.json"
# Orbax writes these after the manifest. They hold times of the save, no state, and are never read.
_BOOKKEEPING = {"_CHECKPOINT_METADATA", "commit_success.txt"}
_CHUNK = 1 << 24  # bytes per read


def write(folder: epath.Path, about: Mapping[str, str | int]) -> None:
    """Writes the manifest of a checkpoint's folder.

    Args:
        folder: a folder with the checkpoint's files only.
        about: further values to save: the step, and the run's identity.
    """
    files = {name: _measure(path) for name, path in _files(folder)}
    (folder / FILE).write_text(_text(dict(about), files))


def read(folder: epath.Path) -> Mapping[str, str | int]:
    """Returns the ``about`` that was passed to ``write``, for an intact checkpoint."""
    return json.loads((folder / FILE).read_text())["about"]


def damage(folder: epath.Path) -> str | None:
    """Returns a short description of damage to a checkpoint's files, or None if they are intact."""
    try:
        text = (folder / FILE).read_text()
        manifest = json.loads(text)
        if _text(manifest["about"], manifest["files"]) != text:
            raise ValueError
        expected = manifest["files"]
    except FileNotFoundError:
        return f"{FILE} is missing"
    except (ValueError, KeyError, TypeError):  # not JSON, not UTF-8, or not a manifest
        return f"{FILE} is damaged"
    found = dict(_files(folder))
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} isn't in {FILE}"
        got = _measure(found[name])
        if got["bytes"] != expected[name]["bytes"]:
            return f"{name} has {got['bytes']} bytes, {FILE} says {expected[name]['bytes']}"
        if got != expected[name]:
            return f"the SHA-256 of {name} isn't that of {FILE}"
    return None


def require_about(folder: epath.Path, about: Mapping[str, str | int]) -> None:
    """Raises a UserError unless an intact checkpoint was saved with these values."""
    saved = read(folder)
    for name, value in about.items():
        if saved.get(name) != value:
            raise UserError(
                f"{folder}: was saved with another {name} ({saved.get(name)}, this run's is "
                f"{value}); use the config and the version that it was trained with, or another "
                "workdir"
            )


def _files(folder: epath.Path) -> Iterator[tuple[str, epath.Path]]:
    for path in _walk(folder):
        if path.name not in {FILE, *_BOOKKEEPING}:
            yield str(path.relative_to(folder)), path


def _walk(folder: epath.Path) -> Iterator[epath.Path]:
    # epath has no recursive glob, because of buckets.
    for path in folder.iterdir():
        if path.is_dir():
            yield from _walk(path)
        else:
            yield path


def _measure(path: epath.Path) -> dict[str, str | int]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _text(about: Mapping[str, object], files: Mapping[str, object]) -> str:
    # The manifest has its own sum: a flipped bit in a hash in `about` would otherwise look like
    # another config's checkpoint.
    content = {"about": about, "files": files}
    own = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, "sha256": own}, indent=1, sort_keys=True) + "\n"
