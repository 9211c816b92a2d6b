"""Prepares a data set for training: archives in, ArrayRecord files out, without TensorFlow.

Over 400 lines: archives, folders and TFDS's own sets share the lock and the scratch folder below.
"""

import contextlib
import errno
import functools
import io
import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import logging as absl_logging
from etils import epath

from randmix.data import (
    archives,
    builders,
    catalog,
    imagefolder,
    imagenet,
    imagenet_tree,
    own,
    photographs,
    records,
    survey,
    tfrecords,
)
from randmix.errors import UserError, check_name
from randmix.runtime import durable, locks, signals

_POLL = 0.2  # seconds between two tries to take a lock
# The flags that data sets take, by the first word of their names; _OTHERS is for the other sets.
_FLAGS = {
    catalog.FOLDER: ("source", "name", "num_shards"),
    catalog.IMAGENET: ("manual_dir", "source", "allow_subset", "name", "num_shards"),
    "tfds": (),
    own.ARRAYS: ("source", "name"),
}
_OTHERS = ("manual_dir", "num_shards")


def main(options: Any) -> None:
    """Prepares a data set with the options of ``commands/prepare.py``."""
    start, data_dir = time.monotonic(), options.data_dir
    _local(records.resolve_data_dir(data_dir), options.data_set)
    name = _name(options)
    arrays = options.data_set == own.ARRAYS
    already = not arrays and catalog.is_prepared(name, data_dir)
    if name.startswith("tfds/"):
        already = already and (catalog.directory_of(name, data_dir) / records.SURVEY).exists()
    if arrays:
        own.from_npz(options.source, name.partition("/")[2], data_dir)
    elif name.startswith("tfds/"):
        convert(name, data_dir)
    elif "/" in options.data_set:
        catalog.require_prepared(name, data_dir)  # says how to prepare it
    elif "/" in name:
        prepare_folder(options.source, name, data_dir, num_shards=options.num_shards)
    else:
        prepare(
            name,
            data_dir,
            manual_dir=options.manual_dir,
            source=options.source,
            num_shards=options.num_shards,
        )
    prepared = catalog.get(name, data_dir)
    where = (
        own.file_of(name, records.resolve_data_dir(data_dir))
        if arrays
        else prepared.directory(data_dir)
    )
    took = "already prepared" if already else f"{time.monotonic() - start:.1f} s"
    print(
        f"{name}: {prepared.train_examples:,} train and {prepared.test_examples:,} test examples "
        f"in {where} ({took})"
    )


def _name(options: Any) -> str:
    """The full name of the data set to prepare; raises a UserError if the flags don't fit it."""
    name = options.data_set
    if name == "tfds":
        raise UserError("data set: got 'tfds', allowed is tfds/NAME, for example tfds/svhn_cropped")
    if name.startswith(f"{own.ARRAYS}/"):
        part = name.partition("/")[2]
        raise UserError(
            f"data set: got {name!r}, which is made by `python -m randmix prepare arrays "
            f"--source=FILE.npz --name={part}` or by randmix.data.from_arrays({part!r}, ...)"
        )
    if catalog.FUNCTION_NAME.fullmatch(name):
        raise UserError(f"data set: got the function {name!r}, which needs no preparation")
    allowed = _FLAGS.get(name.partition("/")[0], _OTHERS)
    for flag in ("manual_dir", "source", "allow_subset", "name", "num_shards"):
        if getattr(options, flag) and flag not in allowed:
            takes = " ".join(f"--{each}" for each in allowed) or "none of its own"
            raise UserError(f"--{flag} is not a flag of {name}; its flags are: {takes}")
    if options.source and options.manual_dir:
        raise UserError("got --source and --manual_dir, allowed is one of them; leave one out")
    if name in (catalog.FOLDER, own.ARRAYS) or (name == catalog.IMAGENET and options.allow_subset):
        if not options.source:
            what, example = ("file", "a.npz") if name == own.ARRAYS else ("folder", "photos")
            raise UserError(
                f"--source is missing; give the {what} with the images, for example "
                f"--source={example}"
            )
        path = Path(options.source).expanduser().resolve()
        folder = path.stem if name == own.ARRAYS else path.name
        if options.allow_subset:
            folder = re.sub("[^A-Za-z0-9_-]+", "-", folder).strip("-_")
        return f"{name}/{options.name or folder}"
    if options.name and name == catalog.IMAGENET:
        raise UserError("--name is for a part of ImageNet; add --allow_subset, or leave it out")
    return name


def prepare(
    name: str,
    data_dir: epath.PathLike | None = None,
    *,
    manual_dir: str | os.PathLike | None = None,
    source: str | os.PathLike | None = None,
    num_shards: int | None = None,
    progress: bool = True,
) -> Path:
    """Prepares a data set of the catalog unless it is prepared already.

    One process prepares it; others wait.

    Args:
        name: a data set of the catalog.
        data_dir: TFDS's data directory, a local path; None for its default.
        manual_dir: a directory with all the original archives; None to download them.
        source: imagenet2012: the folder with the extracted images instead; see
            `randmix.data.imagenet_tree`.
        num_shards: number of files per split; None lets TFDS choose. The order of the examples
            doesn't depend on it.
        progress: whether to show a progress bar, if stderr is a terminal.

    Returns:
        The directory of the prepared data set, <data_dir>/<name>/<version>.

    Raises:
        UserError: there is no such data set; its archives or images are missing, damaged or
            unreachable; the directory can't be written, or contains the data set in another format.
    """
    data_set = catalog.get(name)
    _check_num_shards(name, num_shards, data_set.test_examples)
    target = _local(data_set.directory(data_dir), name)

    examples = {data_set.tfds_split(split): data_set.examples(split) for split in catalog.SPLITS}
    with _preparing(name, target, progress) as scratch:
        if scratch:
            builder: Any = builders.BUILDERS[name](data_dir=scratch, file_format="array_record")
            if source is not None:
                builder.files = imagenet_tree.find_all(Path(source).expanduser())
            elif builder.url_infos:
                kept = None if data_set.streamed else target.parent.parent / "downloads" / name
                builder.archives = archives.locate(
                    name,
                    builder.url_infos,
                    downloads=kept,
                    manual_dir=manual_dir,
                    progress=progress,
                )
            _build(builder, examples, num_shards)
            _keep(builder, target)
    return target


def prepare_folder(
    source: str | os.PathLike,
    name: str,
    data_dir: epath.PathLike | None = None,
    *,
    num_shards: int | None = None,
    progress: bool = True,
) -> Path:
    """Prepares a data set from a folder of images unless it is prepared already.

    One process prepares it; others wait.

    Args:
        source: the folder with the images; see `randmix.data.imagefolder` and
            `randmix.data.imagenet_tree`.
        name: imagefolder/NAME, or imagenet2012/NAME for a part of ImageNet.
        data_dir, num_shards, progress: see `prepare`.

    Returns:
        The directory of the prepared data set, <data_dir>/<name>/<version>.

    Raises:
        UserError: the folder's layout is wrong, or an image is refused; the name is in use for
            other images; the directory can't be written.
    """
    kind, _, folder_name = name.partition("/")
    check_name("--name", folder_name)
    find, build = {
        catalog.FOLDER: (imagefolder.find, imagefolder.ImageFolder),
        catalog.IMAGENET: (imagenet_tree.find, imagenet.ImagenetSubset),
    }[kind]
    files = find(Path(source).expanduser())
    examples = imagefolder.count(files)
    _check_num_shards(name, num_shards, min(examples.values()))
    target = _local(records.resolve_data_dir(data_dir) / name / str(build.VERSION), name)

    found = None
    with _preparing(name, target, progress) as scratch:
        if scratch:
            builder = build(
                files=files, folder_name=folder_name, data_dir=scratch, file_format="array_record"
            )
            _build(builder, examples, num_shards)
            found = _look(epath.Path(builder.data_dir), progress)
            _keep(builder, target)
        elif not (target / records.SURVEY).exists():  # prepared by an older version
            found = _look(epath.Path(target), progress)
    if found is not None:
        _warn_of_damage(name, found)
    try:
        prepared_from = json.loads((target / "metadata.json").read_text())["files"]
    except (OSError, ValueError, KeyError) as error:
        reason = f"metadata.json: {photographs.reason(error)}"
        raise records.damaged(epath.Path(target), reason) from error
    if prepared_from != imagefolder.fingerprint(files):
        raise UserError(
            f"{target} was prepared from other files than {source}; "
            "choose another --name, or remove it"
        )
    return target


def convert(name: str, data_dir: epath.PathLike | None = None, *, progress: bool = True) -> Path:
    """Makes a set that TFDS prepared readable here: in the ArrayRecord format, and surveyed.

    TFRecord files are copied to ArrayRecord files beside them unless this was done before. One
    process does it; others wait.

    Args:
        name: `tfds/NAME[/CONFIG][:VERSION]`.
        data_dir, progress: see `prepare`.

    Returns:
        The directory of the prepared data set, `<data_dir>/NAME[/CONFIG]/VERSION`.

    Raises:
        UserError: TFDS hasn't prepared such a set; it doesn't hold labelled images; its files are
            missing or damaged; the directory can't be written.
    """
    directory = catalog.directory_of(name, data_dir)
    if "tfrecord" not in records.file_formats(directory):
        catalog.require_prepared(name, data_dir)
    records.contents(directory)
    target, found = _local(directory, name), None
    with _preparing(name, target, progress, existing=True) as scratch:
        if scratch:
            tfrecords.convert(target, scratch, progress=progress)
        if not (target / records.SURVEY).exists():
            found = _look(directory, progress)
    if found is not None:
        _warn_of_damage(name, found)
    return target


def _look(directory: epath.Path, progress: bool) -> survey.Survey:
    """Looks at every image of a data set, and writes what they are like."""
    found = survey.survey(directory, show_progress=progress)
    survey.write(directory, found)
    return found


def _warn_of_damage(name: str, found: survey.Survey) -> None:
    if found.damaged:
        first = found.damaged[0]
        logging.getLogger(__name__).warning(
            "%s: %d of %d records are damaged, the first of them record %d of %s (%s); training "
            "stops at one unless config.data.corrupt is skip; `python -m randmix verify %s` lists "
            "them",
            *(name, len(found.damaged), found.examples, first.row, first.split, first.reason, name),
        )


def _local(target: epath.Path, name: str) -> Path:
    """Converts a directory to a local path; raises a UserError if it is remote."""
    if "://" in os.fspath(target):
        raise UserError(
            f"{target} is not a local folder, as preparation requires; "
            f"prepare with a local --data_dir and copy the folder {name} from there"
        )
    return Path(target)


def _check_num_shards(name: str, num_shards: int | None, most: int) -> None:
    if num_shards is not None and not 1 <= num_shards <= most:
        raise UserError(f"num_shards: got {num_shards}, allowed is 1 to {most} for {name}")


@contextlib.contextmanager
def _preparing(
    name: str, target: Path, progress: bool, *, existing: bool = False
) -> Iterator[Path | None]:
    """Yields an empty folder next to ``target``, under a lock, or None if ``target`` is complete.

    Unless ``existing``, there may be no incomplete ``target``. Disk errors become UserErrors.
    """
    directory, scratch = epath.Path(target), None
    try:
        with contextlib.ExitStack() as stack:
            if not records.is_complete(directory):
                durable.make_folder(target.parent)
                stack.enter_context(_lock(target.with_name(".lock"), name))
                if not records.is_complete(directory):  # by the lock's previous holder
                    if target.exists() and not existing:
                        records.require_array_record(directory)
                        raise UserError(
                            f"{target} is not a complete data set; remove it and try again"
                        )
                    scratch = stack.enter_context(_scratch(target))
                    stack.enter_context(_quiet_tfds(progress))
            yield scratch
    except (OSError, RuntimeError) as error:
        full = os.strerror(errno.ENOSPC)  # ArrayRecord's RuntimeError; any other one is a bug
        if isinstance(error, RuntimeError) and full not in str(error):
            raise
        reason = full if isinstance(error, RuntimeError) else error
        raise UserError(
            f"cannot prepare {name} in {target}: {reason}; choose another data_dir"
        ) from error


def _build(
    builder: tfds.core.DatasetBuilder, examples: dict[str, int], num_shards: int | None
) -> None:
    """Writes a data set to the builder's own folder, and checks the sizes of its splits."""
    config = tfds.download.DownloadConfig(try_download_gcs=False, num_shards=num_shards)
    builder.download_and_prepare(download_config=config)
    for split, expected in examples.items():
        if (found := builder.info.splits[split].num_examples) != expected:
            raise UserError(
                f"{builder.name}: its archives contain {found:,} {split} images, "
                f"expected {expected:,}; download them again"
            )


def _keep(builder: tfds.core.DatasetBuilder, target: Path) -> None:
    """Moves a complete data set to ``target``."""
    durable.flush_tree(builder.data_dir)
    durable.move(builder.data_dir, target)


@contextlib.contextmanager
def _quiet_tfds(progress: bool) -> Iterator[None]:
    """Keeps TFDS's announcements and its warning about new configs off the command line's output.

    Its progress bars remain, on a terminal. TFDS has no argument for any of this.
    """
    verbosity = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)
    if not (progress and sys.stderr.isatty()):
        tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        absl_logging.set_verbosity(verbosity)


@contextlib.contextmanager
def _lock(file: Path, name: str) -> Iterator[None]:
    """Waits for a lock and holds it."""
    told = False
    while True:
        with locks.try_lock(file) as mine:
            if mine:
                yield
                return
        if not told:
            logging.getLogger(__name__).warning(
                "another process is preparing %s; waiting for it", name
            )
        told = True
        time.sleep(_POLL)


@contextlib.contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """Empty folder, removed at the end; leftovers of a killed process are removed first."""
    folder = target.with_name("incomplete.randmix")
    remove = functools.partial(shutil.rmtree, folder, ignore_errors=True)
    remove()
    folder.mkdir()
    with signals.clean_up(remove):
        try:
            yield folder
        finally:
            remove()
