"""Checkpoint integrity: a manifest of the files' SHA-256 sums, written last.

Orbax writes a checkpoint into a temporary folder and renames it at the end, so a process killed
midway leaves nothing that looks complete. It doesn't detect later damage: of 20 checkpoints with
one flipped bit each, all 20 restored silently, with wrong numbers.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from randmix import config as configs
from randmix.errors import UserError
from randmix.runtime import durable
from randmix.workdir import json_files

FILE = "manifest.json"
# Of the values that identify a run: the fingerprint of its config, and the config's values by key.
CONFIG, VALUES = "config", "values"
_STRUCTURE = {"about": dict, "files": {str: {"bytes": int, "sha256": str}}}
# Orbax writes these after the manifest. They hold times of the save, no state, and are never read.
_BOOKKEEPING = {"_CHECKPOINT_METADATA", "commit_success.txt"}
_CHUNK = 1 << 24  # bytes per read


def write(folder: epath.Path, about: Mapping[str, Any]) -> None:
    """Writes the manifest of a checkpoint's folder, and flushes everything in it to the disk.

    Args:
        folder: a folder with the checkpoint's files only.
        about: further values to save, as JSON: the step, and the run's identity.
    """
    files = {name: _measure(path) for name, path in _files(folder)}
    (folder / FILE).write_text(_text(dict(about), files))
    durable.flush_tree(folder)


def read(folder: epath.Path) -> dict[str, Any]:
    """Returns the ``about`` that was passed to ``write``, for an intact checkpoint."""
    return json.loads((folder / FILE).read_text())["about"]


def damage(folder: epath.Path) -> str | None:
    """Returns a short description of damage to a checkpoint's files, or None if they are intact."""
    try:
        text = (folder / FILE).read_bytes()
        content = json_files.parse(text, _STRUCTURE)
        if _text(content["about"], content["files"]).encode() != text:
            raise ValueError
        expected = content["files"]
    except (FileNotFoundError, NotADirectoryError):
        return f"{FILE} is missing"
    except OSError as error:
        return f"{FILE} can't be read ({error.strerror})"
    except ValueError:  # not JSON, or not a manifest
        return f"{FILE} is damaged"
    try:
        found = dict(_files(folder))
    except OSError as error:  # also if it is deleted meanwhile
        return f"the folder can't be listed ({error.strerror})"
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} isn't in {FILE}"
        try:
            got = _measure(found[name])
        except OSError as error:
            return f"{name} can't be read ({error.strerror})"
        if got["bytes"] != expected[name]["bytes"]:
            return f"{name} has {got['bytes']} bytes, {FILE} says {expected[name]['bytes']}"
        if got != expected[name]:
            return f"the SHA-256 of {name} isn't that of {FILE}"
    return None


def disagreement(folder: epath.Path, about: Mapping[str, Any]) -> str | None:
    """Returns how an intact checkpoint differs from its folder's name or its run, or None.

    Args:
        folder: the checkpoint's folder, named after its step.
        about: the run's identity. A value that the manifest lacks isn't compared.

    Returns:
        One line that names the manifest and the key and says what to do.
    """
    saved, file = read(folder), folder / FILE
    if saved.get("step") != int(folder.name):
        step = saved.get("step")
        return f"{file}: step is {step}, but its folder is {folder.name}; rename it to {step}"
    for name, value in about.items():
        if name == VALUES or saved.get(name, value) == value:
            continue
        difference = f"{name} is {saved[name]!r}, but {value!r} in this run"
        if name == CONFIG and VALUES in saved and VALUES in about:
            changed = configs.differences(saved[VALUES], about[VALUES])
            difference = f"{name} differs from this run's ({'; '.join(changed)})"
        return f"{file}: {difference}; put back this run's own config.json or checkpoints"
    return None


def require_about(folder: epath.Path, about: Mapping[str, Any]) -> None:
    """Raises a UserError unless an intact checkpoint agrees with its folder's name and its run."""
    if difference := disagreement(folder, about):
        raise UserError(difference)


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
