"""Prepares a data set for training: archives in, ArrayRecord files out, without TensorFlow."""

import contextlib
import errno
import functools
import io
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import logging as absl_logging
from etils import epath

from randmix.data import archives, builders, catalog, imagefolder, records, survey
from randmix.errors import UserError
from randmix.runtime import durable, locks, signals

_POLL = 0.2  # seconds between two tries to take a lock


def main(options: Any) -> None:
    """Prepares a data set with the options of ``commands/prepare.py``."""
    start, data_set = time.monotonic(), options.data_set
    _local(records.resolve_data_dir(options.data_dir), data_set)
    if data_set == catalog.FOLDER:
        if options.manual_dir:
            raise UserError(
                "--manual_dir is for archives; give the folder of an imagefolder with --source=DIR"
            )
        if not options.source:
            raise UserError(
                "--source is missing; give the folder with the images, for example --source=photos"
            )
        name = (
            f"{catalog.FOLDER}/{options.name or Path(options.source).expanduser().resolve().name}"
        )
        already = catalog.is_prepared(name, options.data_dir)
        prepare_folder(options.source, name, options.data_dir, num_shards=options.num_shards)
    else:
        if options.source or options.name:
            raise UserError(f"--source and --name are for imagefolder, got the data set {data_set}")
        name = catalog.get(data_set).name
        already = catalog.is_prepared(name, options.data_dir)
        prepare(
            name, options.data_dir, manual_dir=options.manual_dir, num_shards=options.num_shards
        )
    prepared = catalog.get(name, options.data_dir)
    took = "already prepared" if already else f"{time.monotonic() - start:.1f} s"
    print(
        f"{name}: {prepared.train_examples:,} train and {prepared.test_examples:,} test examples "
        f"in {prepared.directory(options.data_dir)} ({took})"
    )


def prepare(
    name: str,
    data_dir: epath.PathLike | None = None,
    *,
    manual_dir: str | os.PathLike | None = None,
    num_shards: int | None = None,
    progress: bool = True,
) -> Path:
    """Prepares a data set of the catalog unless it is prepared already.

    One process prepares it; others wait.

    Args:
        name: a data set of the catalog.
        data_dir: TFDS's data directory, a local path; None for its default.
        manual_dir: a directory with all the original archives; None to download them.
        num_shards: number of files per split; None lets TFDS choose. The order of the examples
            doesn't depend on it.
        progress: whether to show a progress bar, if stderr is a terminal.

    Returns:
        The directory of the prepared data set, <data_dir>/<name>/<version>.

    Raises:
        UserError: there is no such data set; its archives are missing, damaged or unreachable; the
            directory can't be written, or contains the data set in another format.
    """
    data_set = catalog.get(name)
    _check_num_shards(name, num_shards, data_set.test_examples)
    target = _local(data_set.directory(data_dir), name)

    examples = {data_set.tfds_split(split): data_set.examples(split) for split in catalog.SPLITS}
    with _preparing(name, target, progress) as scratch:
        if scratch:
            builder: Any = builders.BUILDERS[name](data_dir=scratch, file_format="array_record")
            if builder.url_infos:
                kept = None if data_set.streamed else target.parent.parent / "downloads" / name
                builder.archives = archives.locate(
                    name,
                    builder.url_infos,
                    downloads=kept,
                    manual_dir=manual_dir,
                    progress=progress,
                )
            _write(builder, examples, target, num_shards, progress=progress)
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
        source: the folder with the images; see `randmix.data.imagefolder`.
        name: imagefolder/NAME.
        data_dir, num_shards, progress: see `prepare`.

    Returns:
        The directory of the prepared data set, <data_dir>/imagefolder/NAME/1.0.0.

    Raises:
        UserError: the folder's layout is wrong, or an image is refused; the name is in use for
            other images; the directory can't be written.
    """
    folder_name = imagefolder.check_name(name.removeprefix(f"{catalog.FOLDER}/"))
    files = imagefolder.find(Path(source).expanduser())
    examples = imagefolder.count(files)
    _check_num_shards(name, num_shards, min(examples.values()))
    target = _local(records.resolve_data_dir(data_dir) / name / catalog.FOLDER_VERSION, name)

    with _preparing(name, target, progress) as scratch:
        if scratch:
            builder = imagefolder.ImageFolder(
                files=files, folder_name=folder_name, data_dir=scratch, file_format="array_record"
            )
            _write(builder, examples, target, num_shards, progress=progress)
    prepared_from = json.loads((target / "metadata.json").read_text())["files"]
    if prepared_from != imagefolder.fingerprint(files):
        raise UserError(
            f"{target} was prepared from other files than {source}; "
            "choose another --name, or remove it"
        )
    return target


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
def _preparing(name: str, target: Path, progress: bool) -> Iterator[Path | None]:
    """Yields an empty folder next to ``target``, under a lock, or None if ``target`` is complete.

    Disk errors become UserErrors.
    """
    data_dir, scratch = target.parents[name.count("/") + 1], None
    try:
        with contextlib.ExitStack() as stack:
            if not catalog.is_prepared(name, data_dir):
                target.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(_lock(target.with_name(".lock"), name))
                if not catalog.is_prepared(name, data_dir):  # by the lock's previous holder
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


def _write(
    builder: tfds.core.DatasetBuilder,
    examples: dict[str, int],
    target: Path,
    num_shards: int | None,
    *,
    progress: bool,
) -> None:
    """Writes a data set to the builder's own folder, and moves it to ``target`` when complete."""
    config = tfds.download.DownloadConfig(try_download_gcs=False, num_shards=num_shards)
    builder.download_and_prepare(download_config=config)
    for split, expected in examples.items():
        if (found := builder.info.splits[split].num_examples) != expected:
            raise UserError(
                f"{builder.name}: its archives contain {found:,} {split} images, "
                f"expected {expected:,}; download them again"
            )
    if isinstance(builder, imagefolder.ImageFolder):  # what the others hold is known
        directory = epath.Path(builder.data_dir)
        survey.write(directory, survey.survey(directory, show_progress=progress))
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
    if target.exists():
        records.require_array_record(epath.Path(target))
        raise UserError(f"{target} is not a complete data set; remove it and try again")
    folder = target.with_name("incomplete.randmix")
    remove = functools.partial(shutil.rmtree, folder, ignore_errors=True)
    remove()
    folder.mkdir()
    with signals.clean_up(remove):
        try:
            yield folder
        finally:
            remove()
