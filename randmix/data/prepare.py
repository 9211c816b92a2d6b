"""Prepares a data set for training: archives in, ArrayRecord files out, without TensorFlow.

    python -m randmix.data.prepare NAME [flags]
    python -m randmix.data.prepare fashion_mnist
    python -m randmix.data.prepare fashion_mnist --manual_dir=/usr/share/datasets/fashion-mnist
    python -m randmix.data.prepare cifar10 --data_dir=/data/tfds --num_shards=4

NAME is one of
    digits          1,437 + 360 handwritten digits of 8x8 pixels, from scikit-learn
    mnist           60,000 + 10,000 handwritten digits of 28x28 pixels
    fashion_mnist   60,000 + 10,000 articles of clothing of 28x28 pixels
    cifar10         50,000 + 10,000 colour photographs of 32x32 pixels, 10 classes
    cifar100        50,000 + 10,000 colour photographs of 32x32 pixels, 100 classes

The archives are downloaded to <data_dir>/downloads/<NAME> and kept, or taken from --manual_dir, where they
have their original names and are only read. TFDS's checksums decide whether they are the right ones.
The result is what TFDS itself would prepare: `tfds.data_source(NAME, split="train")` reads it. A
preparation that was interrupted leaves nothing that is taken for a data set: start it again.
"""

import contextlib
import errno
import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from absl import flags
from tqdm import tqdm

from randmix import cli
from randmix.data import archives, catalog
from randmix.errors import UserError


def define_flags() -> None:
    """Defines the command line's flags; not at import, for `catalog.load` imports this in any program."""
    flags.DEFINE_string(
        "data_dir", None, "where TFDS keeps its data sets (default: $TFDS_DATA_DIR, or ~/tensorflow_datasets)"
    )
    flags.DEFINE_string(
        "manual_dir", None, "a directory with the data set's original archives, instead of downloading them"
    )
    flags.DEFINE_integer(
        "num_shards", None, "files a split is written to (default: TFDS chooses by size)", lower_bound=1
    )


def main(argv: list[str]) -> None:
    """Prepares the data set that the command line names."""
    if len(argv) != 2:
        raise UserError(f"expected one data set, got {argv[1:]}; there are: {', '.join(catalog.DATA_SETS)}")
    data_set, options = catalog.get(argv[1]), flags.FLAGS
    start = time.monotonic()
    already = catalog.is_prepared(data_set.name, options.data_dir)
    directory = prepare(
        data_set.name, options.data_dir, manual_dir=options.manual_dir, num_shards=options.num_shards
    )
    took = "was prepared before" if already else f"{time.monotonic() - start:.1f} s"
    print(
        f"{data_set.name}: {data_set.train_examples:,} train and {data_set.test_examples:,} test examples "
        f"in {directory} ({took})"
    )


def prepare(
    name: str,
    data_dir: str | os.PathLike | None = None,
    *,
    manual_dir: str | os.PathLike | None = None,
    num_shards: int | None = None,
    progress: bool = True,
) -> Path:
    """Prepares a data set, unless it is; one process at a time, the others wait for it.

    Args:
        name: a data set of the catalog.
        data_dir: where TFDS keeps its data sets; None for its default.
        manual_dir: a directory with all the original archives; None to download them.
        num_shards: files a split is written to, of which the order of the examples doesn't depend;
          None lets TFDS choose.
        progress: whether to show a bar, if stderr is a terminal.

    Returns:
        The directory of the prepared data set, <data_dir>/<name>/<version>.

    Raises:
        UserError: there is no such data set; its archives are missing, damaged or out of reach; the
          directory can't be written, or holds the data set in another format.
    """
    data_set = catalog.get(name)
    if num_shards is not None and not 1 <= num_shards <= data_set.test_examples:
        raise UserError(f"num_shards of {name} is 1..{data_set.test_examples}, got {num_shards}")
    target = data_set.directory(data_dir)
    try:
        if not catalog.is_prepared(name, data_dir):
            target.parent.mkdir(parents=True, exist_ok=True)
            with _lock(target.with_name(".lock"), name):
                if not catalog.is_prepared(name, data_dir):
                    _prepare(data_set, target, manual_dir, num_shards, progress)
    except (OSError, RuntimeError) as error:
        full = os.strerror(errno.ENOSPC)  # a RuntimeError of ArrayRecord's; any other one is a bug
        if isinstance(error, RuntimeError) and full not in str(error):
            raise
        reason = full if isinstance(error, RuntimeError) else error
        raise UserError(f"cannot prepare {name} in {target}: {reason}; choose another data_dir") from error
    return target


def _prepare(
    data_set: catalog.DataSet,
    target: Path,
    manual_dir: str | os.PathLike | None,
    num_shards: int | None,
    progress: bool,
) -> None:
    """Builds in a scratch directory beside `target` and renames at the end: all of it or nothing."""
    if target.exists():
        catalog.require_array_record(target)
        raise UserError(f"{target} is not a complete data set; remove it and try again")
    import tensorflow_datasets as tfds

    from randmix.data import builders

    with _scratch(target.with_name("incomplete.randmix")) as scratch, catalog.quiet_tfds():
        builder = builders.BUILDERS[data_set.name](data_dir=scratch, file_format="array_record")
        staged = scratch / "archives"
        staged.mkdir()
        if not data_set.embedded:
            downloads = target.parent.parent / "downloads" / data_set.name
            archives.stage(
                data_set.name,
                builder.url_infos,
                staged,
                downloads=downloads,
                manual_dir=manual_dir,
                progress=progress,
            )
        config = tfds.download.DownloadConfig(
            manual_dir=staged, force_checksums_validation=True, try_download_gcs=False, num_shards=num_shards
        )
        total = data_set.train_examples + data_set.test_examples
        # disable=None: shown on a terminal only.
        with tqdm(
            desc=data_set.name, unit=" images", total=total, leave=False, disable=None if progress else True
        ) as bar:
            _count_examples(builder, bar)
            builder.download_and_prepare(download_config=config)
        os.rename(builder.data_dir, target)


def _count_examples(builder, bar: tqdm) -> None:
    """Moves the bar at each example. TFDS's own bars are several, and show patterns of file names."""
    generate = builder._generate_examples

    def counted(*args):
        for example in generate(*args):
            bar.update()
            yield example

    builder._generate_examples = counted


@contextlib.contextmanager
def _lock(path: Path, name: str) -> Iterator[None]:
    """Holds a lock file, which the system frees when the process ends, however it ends."""
    import fcntl

    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logging.getLogger(__name__).warning("another process is preparing %s; waiting for it", name)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """An empty directory, removed at the end. What a killed process left there is removed first."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
