"""Prepares a data set for training: archives in, ArrayRecord files out, without TensorFlow.

    python -m randmix.data.prepare NAME [flags]
    python -m randmix.data.prepare fashion_mnist
    python -m randmix.data.prepare fashion_mnist --manual_dir=/usr/share/datasets/fashion-mnist
    python -m randmix.data.prepare cifar10 --data_dir=/data/tfds --num_shards=4
    python -m randmix.data.prepare imagenet2012 --manual_dir=/data/imagenet
    python -m randmix.data.prepare imagefolder --source=/data/pets --name=pets

NAME is one of
    digits          1,437 + 360 handwritten digits of 8x8 pixels, from scikit-learn
    mnist           60,000 + 10,000 handwritten digits of 28x28 pixels
    fashion_mnist   60,000 + 10,000 articles of clothing of 28x28 pixels
    cifar10         50,000 + 10,000 colour photographs of 32x32 pixels, 10 classes
    cifar100        50,000 + 10,000 colour photographs of 32x32 pixels, 100 classes
    imagenet2012    1,281,167 + 50,000 photographs of any size, 1,000 classes; needs --manual_dir
                    with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, and 320 GB of space
    imagefolder     your own images, JPEG or PNG, from --source=DIR: DIR/train/CLASS/*.jpg and
                    DIR/test/CLASS/*.jpg (or val), or DIR/CLASS/*.jpg, of which a tenth becomes the
                    test split. The data set is named imagefolder/NAME, where NAME is --name or by
                    default the folder's name

Archives are downloaded to <data_dir>/downloads/<NAME> and kept, or read from --manual_dir, which
must contain them under their original names and is never written to. They are verified against
TFDS's checksums (ImageNet's against their sizes and the number of images).
`randmix/data/imagefolder.py` describes which images of an imagefolder are converted and which are
refused.
The result is the same as TFDS's own: `tfds.data_source(NAME, split="train")` reads it. An
interrupted preparation leaves no incomplete data set; run the command again.
"""

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

from absl import flags
from etils import epath
from tqdm import tqdm

from randmix.data import archives, catalog
from randmix.errors import UserError
from randmix.runtime import cli, durable, locks, signals

_POLL_SECONDS = 0.2  # between looks at another process's lock


def define_flags() -> None:
    """Defines the command-line flags; not at import, since `catalog.load` imports this module."""
    flags.DEFINE_string(
        "data_dir",
        None,
        "TFDS's data directory (default: $TFDS_DATA_DIR, or ~/tensorflow_datasets)",
    )
    flags.DEFINE_string(
        "manual_dir",
        None,
        "directory with the data set's original archives, instead of downloading them",
    )
    flags.DEFINE_string("source", None, "imagefolder: the folder with the images")
    flags.DEFINE_string(
        "name", None, "imagefolder: the data set's name (default: the folder's name)"
    )
    flags.DEFINE_integer(
        "num_shards",
        None,
        "number of files per split (default: TFDS chooses by size)",
        lower_bound=1,
    )


def main(argv: list[str]) -> None:
    """Prepares the data set named on the command line."""
    if len(argv) != 2:
        raise UserError(
            f"expected one data set, got {argv[1:]}; there are: {', '.join(catalog.DATA_SETS)}"
        )
    options, start = flags.FLAGS, time.monotonic()
    _local(catalog.resolve_data_dir(options.data_dir), argv[1])
    if argv[1] == catalog.FOLDER:
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
            raise UserError(f"--source and --name are for imagefolder, got the data set {argv[1]}")
        name = catalog.get(argv[1]).name
        already = catalog.is_prepared(name, options.data_dir)
        prepare(
            name, options.data_dir, manual_dir=options.manual_dir, num_shards=options.num_shards
        )
    data_set = catalog.get(name, options.data_dir)
    took = "already prepared" if already else f"{time.monotonic() - start:.1f} s"
    print(
        f"{name}: {data_set.train_examples:,} train and {data_set.test_examples:,} test examples "
        f"in {data_set.directory(options.data_dir)} ({took})"
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
        from randmix.data import builders

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
    from randmix.data import imagefolder

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
    import tensorflow_datasets as tfds

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


if __name__ == "__main__":
    define_flags()
    cli.run(main)
