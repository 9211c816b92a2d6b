"""The data sets: what they are, whether they are on disk, and the small ones as arrays.

Importing this module is cheap; TFDS comes with the first `load`.
"""

import contextlib
import dataclasses
import difflib
import io
import json
import logging
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from randmix.errors import UserError

SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class DataSet:
    """One data set of labelled images.

    Attributes:
        name: TFDS's name of it, also the name in a config.
        image_shape: (height, width, channels).
        num_classes: labels are 0 .. num_classes - 1.
        train_examples: size of the train split.
        test_examples: size of the test split.
        version: the version that TFDS prepares and `load` reads.
        embedded: comes with an installed package, so `load` prepares it when it's first asked for.
    """

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    train_examples: int
    test_examples: int
    version: str
    embedded: bool = False

    def examples(self, split: str) -> int:
        """The number of examples in a split, 'train' or 'test'."""
        return {"train": self.train_examples, "test": self.test_examples}[split]

    def directory(self, data_dir: str | os.PathLike | None = None) -> Path:
        """Where TFDS keeps it: <data_dir>/<name>/<version>."""
        return resolve_data_dir(data_dir) / self.name / self.version


DATA_SETS = {
    data_set.name: data_set
    for data_set in (
        DataSet("digits", (8, 8, 1), 10, 1437, 360, "1.0.0", embedded=True),
        DataSet("mnist", (28, 28, 1), 10, 60_000, 10_000, "3.0.1"),
        DataSet("fashion_mnist", (28, 28, 1), 10, 60_000, 10_000, "3.0.1"),
        DataSet("cifar10", (32, 32, 3), 10, 50_000, 10_000, "3.0.2"),
        DataSet("cifar100", (32, 32, 3), 100, 50_000, 10_000, "3.0.2"),
    )
}


def get(name: str) -> DataSet:
    """The data set of this name; a UserError that lists them if there is none.

    >>> get("digits").image_shape
    (8, 8, 1)
    """
    if name in DATA_SETS:
        return DATA_SETS[name]
    nearest = difflib.get_close_matches(str(name), DATA_SETS, n=1)
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    raise UserError(f"no data set is named {name!r}{hint}; there are: {', '.join(DATA_SETS)}")


def default_data_dir() -> Path:
    """TFDS's own default: $TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def resolve_data_dir(data_dir: str | os.PathLike | None) -> Path:
    """`data_dir` with ~ expanded, or the default if it is None or empty."""
    return Path(data_dir).expanduser() if data_dir else default_data_dir()


def is_prepared(name: str, data_dir: str | os.PathLike | None = None) -> bool:
    """Whether `load` can read this data set: complete, and in the ArrayRecord format.

    TFDS writes into a directory of another name and renames it at the end, with dataset_info.json
    the last file: what is interrupted is never taken for whole.
    """
    return "array_record" in _file_formats(get(name).directory(data_dir))


def prepare_command(name: str, data_dir: str | os.PathLike | None = None) -> str:
    """The command line that prepares a data set.

    >>> prepare_command("fashion_mnist")
    'python -m randmix.data.prepare fashion_mnist'
    """
    where = resolve_data_dir(data_dir)
    option = "" if where == default_data_dir() else f" --data_dir={shlex.quote(os.fspath(where))}"
    return f"python -m randmix.data.prepare {name}{option}"


def load(name: str, split: str, data_dir: str | os.PathLike | None = None) -> dict[str, np.ndarray]:
    """Reads a whole split into memory.

    The order is that of the records, which TFDS fixes by a hash of each example's key: the same on
    every machine and for every number of shards, and well mixed.

    Args:
        name: a data set of this catalog.
        split: 'train' or 'test'.
        data_dir: where TFDS keeps its data sets; None for its default.

    Returns:
        {"image": [N, H, W, C] uint8 in 0..255, "label": [N] int32}, C-contiguous.

    Raises:
        UserError: no such data set or split, or it isn't prepared (with the command that prepares it),
          or its files are damaged. The embedded data sets are prepared here.
    """
    data_set = get(name)
    if split not in SPLITS:
        raise UserError(f"{name} has no split {split!r}; it has: {', '.join(SPLITS)}")
    if data_set.embedded and not is_prepared(name, data_dir):
        from randmix.data import prepare

        logging.getLogger(__name__).info("preparing %s in %s", name, resolve_data_dir(data_dir))
        prepare.prepare(name, data_dir, progress=False)
    require_prepared(name, data_dir)
    return _read(data_set, split, data_set.directory(data_dir))


def class_names(name: str, data_dir: str | os.PathLike | None = None) -> list[str]:
    """What TFDS calls the classes of a prepared data set, by label; their numbers where it has no names.

    Raises:
        UserError: as `load`.
    """
    import tensorflow_datasets as tfds

    require_prepared(name, data_dir)
    with quiet_tfds():
        builder = tfds.builder_from_directory(get(name).directory(data_dir))
    return list(builder.info.features["label"].names)


def require_prepared(name: str, data_dir: str | os.PathLike | None = None) -> None:
    """Raises a UserError with the command that helps, unless `is_prepared`."""
    if not is_prepared(name, data_dir):
        require_array_record(get(name).directory(data_dir))
        raise UserError(
            f"{name} is not prepared in {resolve_data_dir(data_dir)}; run `{prepare_command(name, data_dir)}`"
        )


def require_array_record(directory: Path) -> None:
    """Raises a UserError with TFDS's conversion command if a data set is in other formats only."""
    formats = _file_formats(directory)
    if formats and "array_record" not in formats:
        raise UserError(
            f"{directory} holds {' and '.join(formats)} files, not array_record; choose another data_dir and prepare "
            f"it there, or run `tfds convert_format --dataset_version_dir={shlex.quote(str(directory))} "
            "--out_file_format=array_record` where TensorFlow, apache-beam and mlcroissant are installed"
        )


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
    """Keeps TFDS from printing, logging what is no warning, and showing bars."""
    import tensorflow_datasets as tfds
    from absl import logging as absl_logging

    verbosity = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.WARNING)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        absl_logging.set_verbosity(verbosity)


def _file_formats(directory: Path) -> list[str]:
    """The record formats of a prepared data set, or [] if it isn't one."""
    try:
        info = json.loads((directory / "dataset_info.json").read_text())
    except (OSError, ValueError):
        return []
    return [info.get("fileFormat", "tfrecord"), *info.get("alternativeFileFormats", [])]


def _read(data_set: DataSet, split: str, directory: Path) -> dict[str, np.ndarray]:
    """Reads and decodes a split. 128 records a call: one by one takes four times as long."""
    import tensorflow_datasets as tfds
    from PIL import Image

    n = data_set.examples(split)
    images = np.empty((n, *data_set.image_shape), np.uint8)
    labels = np.empty(n, np.int32)
    try:
        with quiet_tfds():
            builder = tfds.builder_from_directory(directory)
            # TFDS's own decoding takes longer, and warns that OpenCV is missing.
            source = builder.as_data_source(
                split, file_format="array_record", decoders={"image": tfds.decode.SkipDecoding()}
            )
        if len(source) != n:
            raise RuntimeError(f"{len(source)} {split} examples where {n} are expected")
        for start in range(0, n, 128):
            rows = range(start, min(start + 128, n))
            for row, example in zip(rows, source.__getitems__(rows), strict=True):
                pixels = np.asarray(Image.open(io.BytesIO(example["image"])))
                images[row] = pixels.reshape(data_set.image_shape)
                labels[row] = example["label"]
    except RuntimeError as error:  # ArrayRecord's, which has a checksum over each chunk
        raise UserError(f"{directory} is damaged ({error}); remove it and prepare it again") from error
    return {"image": images, "label": labels}
