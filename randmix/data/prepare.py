"""Prepares a data set for training: archives in, ArrayRecord files out, without TensorFlow."""

import contextlib
import errno
import functools
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from etils import epath
from tqdm import tqdm

from randmix.data import archives, builders, catalog, imagefolder
from randmix.errors import UserError
from randmix.runtime import durable, locks, signals

_POLL_SECONDS = 0.2  # between looks at another process's lock


def main(options: Any) -> None:
    """Prepares a data set with the options of ``commands/prepare.py``."""
    start, data_set = time.monotonic(), options.data_set
    _local(catalog.resolve_data_dir(options.data_dir), data_set)
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

    def make_builder(scratch: Path, staged: Path) -> Any:
        builder = builders.BUILDERS[name](data_dir=scratch, file_format="array_record")
        if data_set.embedded:
            return builder
        assert builder.url_infos is not None
        if data_set.streamed:
            archives.stage_manual(name, builder.url_infos, staged, manual_dir=manual_dir)
        else:
            archives.stage(
                name,
                builder.url_infos,
                staged,
                downloads=target.parent.parent / "downloads" / name,
                manual_dir=manual_dir,
                progress=progress,
            )
        return builder

    examples = {data_set.tfds_split(split): data_set.examples(split) for split in catalog.SPLITS}
    _prepare_once(name, target, make_builder, examples, num_shards, progress)
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
    target = _local(catalog.resolve_data_dir(data_dir) / name / catalog.FOLDER_VERSION, name)

    def make_builder(scratch: Path, staged: Path) -> Any:
        return imagefolder.ImageFolder(
            files=files, folder_name=folder_name, data_dir=scratch, file_format="array_record"
        )

    _prepare_once(name, target, make_builder, examples, num_shards, progress)
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


def _prepare_once(
    name: str,
    target: Path,
    make_builder: Callable[[Path, Path], Any],
    examples: dict[str, int],
    num_shards: int | None,
    progress: bool,
) -> None:
    """Prepares `target` under a lock unless it is complete; disk errors become UserErrors.

    Args:
        name: the data set's name.
        target: its directory.
        make_builder: makes the TFDS builder, given its data directory and one for archives.
        examples: number of examples per split.
        num_shards, progress: see `prepare`.
    """
    data_dir = os.fspath(target).removesuffix(f"/{name}/{target.name}")
    try:
        waiting = False
        while not catalog.is_prepared(name, data_dir):
            target.parent.mkdir(parents=True, exist_ok=True)
            with locks.try_lock(target.with_name(".lock")) as mine:
                if mine and not catalog.is_prepared(name, data_dir):
                    _build(name, target, make_builder, examples, num_shards, progress)
            if not mine:
                if not waiting:
                    logging.getLogger(__name__).warning(
                        "another process is preparing %s; waiting for it", name
                    )
                waiting = True
                time.sleep(_POLL_SECONDS)
    except (OSError, RuntimeError) as error:
        full = os.strerror(errno.ENOSPC)  # ArrayRecord's RuntimeError; any other one is a bug
        if isinstance(error, RuntimeError) and full not in str(error):
            raise
        reason = full if isinstance(error, RuntimeError) else error
        raise UserError(
            f"cannot prepare {name} in {target}: {reason}; choose another data_dir"
        ) from error


def _build(
    name: str,
    target: Path,
    make_builder: Callable[[Path, Path], Any],
    examples: dict[str, int],
    num_shards: int | None,
    progress: bool,
) -> None:
    """Builds atomically: in a scratch directory next to `target`, renamed at the end."""
    if target.exists():
        catalog.require_array_record(epath.Path(target))
        raise UserError(f"{target} is not a complete data set; remove it and try again")
    with _scratch(target.with_name("incomplete.randmix")) as scratch, catalog.quiet_tfds():
        staged = scratch / "archives"
        staged.mkdir()
        builder = make_builder(scratch, staged)
        config = tfds.download.DownloadConfig(
            manual_dir=staged,
            force_checksums_validation=True,
            try_download_gcs=False,
            num_shards=num_shards,
        )
        # disable=None shows the bar only on a terminal.
        with tqdm(
            desc=name,
            unit=" images",
            total=sum(examples.values()),
            leave=False,
            disable=None if progress else True,
        ) as bar:
            _count_examples(builder, bar)
            builder.download_and_prepare(download_config=config)
        for split, expected in examples.items():
            if (found := builder.info.splits[split].num_examples) != expected:
                raise UserError(
                    f"{name}: its archives contain {found:,} {split} images, "
                    f"expected {expected:,}; download them again"
                )
        durable.flush_tree(builder.data_dir)
        durable.move(builder.data_dir, target)


def _count_examples(builder, bar: tqdm) -> None:
    """Advances the bar at each example; TFDS would show several bars with file name patterns."""
    generate = builder._generate_examples

    def counted(*args):
        for example in generate(*args):
            bar.update()
            yield example

    builder._generate_examples = counted


@contextlib.contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """Empty directory, removed at the end; leftovers of a killed process are removed first."""
    remove = functools.partial(shutil.rmtree, path, ignore_errors=True)
    remove()
    path.mkdir()
    with signals.clean_up(remove):
        try:
            yield path
        finally:
            remove()
