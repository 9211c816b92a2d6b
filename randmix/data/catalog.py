"""Catalog of data sets: their properties, whether they are prepared, and loading into memory.

A data directory can be any path that etils' epath supports, including gs://bucket/folder; only
`randmix.data.prepare` needs a local one.
"""

import dataclasses
import io
import json
import os
import shlex
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from randmix.data import digits
from randmix.errors import UserError, did_you_mean

SPLITS = ("train", "test")
FOLDER = "imagefolder"  # user data sets are named imagefolder/NAME
FOLDER_VERSION = "1.0.0"
IMAGE_SIZE = 224  # default side of cropped photographs, in pixels


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set of labelled images.

    Attributes:
        name: the name in TFDS and in a config.
        image_shape: (height, width, channels) of a model's input.
        num_classes: the number of classes; labels are 0 .. num_classes - 1.
        train_examples: size of the train split.
        test_examples: size of the test split.
        version: the version that TFDS prepares and `load` reads.
        embedded: whether it comes with an installed package; `load` then needs no prepared files.
        streamed: whether it consists of photographs of any size, too many for memory;
            `randmix.data.stream` decodes and crops them during training.
        evaluation_split: TFDS's name of the split that is called "test" here.
    """

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    train_examples: int
    test_examples: int
    version: str
    embedded: bool = False
    streamed: bool = False
    evaluation_split: str = "test"

    def examples(self, split: str) -> int:
        """The number of examples in a split, 'train' or 'test'."""
        return {"train": self.train_examples, "test": self.test_examples}[split]

    def tfds_split(self, split: str) -> str:
        """TFDS's name of a split, 'train' or 'test'."""
        return self.evaluation_split if split == "test" else split

    def directory(self, data_dir: epath.PathLike | None = None) -> epath.Path:
        """The data set's directory: <data_dir>/<name>/<version>."""
        return resolve_data_dir(data_dir) / self.name / self.version


DATA_SETS = {
    data_set.name: data_set
    for data_set in (
        DataSet("digits", (8, 8, 1), 10, 1437, 360, "1.0.0", embedded=True),
        DataSet("mnist", (28, 28, 1), 10, 60_000, 10_000, "3.0.1"),
        DataSet("fashion_mnist", (28, 28, 1), 10, 60_000, 10_000, "3.0.1"),
        DataSet("cifar10", (32, 32, 3), 10, 50_000, 10_000, "3.0.2"),
        DataSet("cifar100", (32, 32, 3), 100, 50_000, 10_000, "3.0.2"),
        DataSet(
            "imagenet2012",
            (IMAGE_SIZE, IMAGE_SIZE, 3),
            1000,
            1_281_167,
            50_000,
            "5.1.0",
            streamed=True,
            evaluation_split="validation",
        ),
    )
}

# Commonly used mean and standard deviation of the training pixels in [0, 1], per channel.
_STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "digits": ((), ()),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.286,), (0.353,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet2012": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def channel_statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the training pixels, for ``model.mean`` and ``model.std``.

    >>> channel_statistics("mnist")
    ((0.1307,), (0.3081,))
    """
    return _STATISTICS[name]


def get(
    name: str, data_dir: epath.PathLike | None = None, *, image_size: int | None = None
) -> DataSet:
    """Looks up a data set by name.

    Args:
        name: one of `DATA_SETS`, or imagefolder/NAME.
        data_dir: TFDS's data directory; None for its default. An imagefolder must be prepared
            there, since only its files record its size and classes.
        image_size: side in pixels that photographs of a streamed set are cropped to; None for 224.

    Raises:
        UserError: there is no such data set (the message lists them), or no such imagefolder.

    >>> get("digits").image_shape
    (8, 8, 1)
    >>> get("imagenet2012", image_size=64).image_shape
    (64, 64, 3)
    """
    if isinstance(name, str) and name.startswith(f"{FOLDER}/"):
        data_set = _image_folder(name, data_dir)
    elif name in DATA_SETS:
        data_set = DATA_SETS[name]
    else:
        raise UserError(
            f"no data set is named {name!r}; there are: {', '.join(DATA_SETS)}, {FOLDER}/NAME"
            f"{did_you_mean(name, DATA_SETS)}"
        )
    if data_set.streamed and image_size is not None:
        return dataclasses.replace(data_set, image_shape=(image_size, image_size, 3))
    return data_set


def image_shape(name: str, image_size: int | None = None) -> tuple[int, int, int]:
    """Image shape (height, width, channels) of `get`, without reading an imagefolder's files."""
    if name.startswith(f"{FOLDER}/"):
        return (image_size or IMAGE_SIZE, image_size or IMAGE_SIZE, 3)
    return get(name, image_size=image_size).image_shape


def default_data_dir() -> epath.Path:
    """TFDS's default data directory: $TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    return epath.Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def resolve_data_dir(data_dir: epath.PathLike | None) -> epath.Path:
    """Returns `data_dir` with ~ expanded, or the default if it is None or empty."""
    return epath.Path(data_dir).expanduser() if data_dir else default_data_dir()


def is_prepared(name: str, data_dir: epath.PathLike | None = None) -> bool:
    """Whether a data set can be read: complete, and in the ArrayRecord format.

    TFDS writes to a temporary directory, dataset_info.json last, and renames it at the end, so an
    interrupted preparation never counts as complete.
    """
    return "array_record" in _file_formats(_directory(name, data_dir))


def prepare_command(name: str, data_dir: epath.PathLike | None = None) -> str:
    """The command line that prepares a data set.

    >>> prepare_command("fashion_mnist")
    'python -m randmix prepare fashion_mnist'
    >>> prepare_command("imagefolder/pets")
    'python -m randmix prepare imagefolder --source=DIR --name=pets'
    >>> prepare_command("imagenet2012")
    'python -m randmix prepare imagenet2012 --manual_dir=DIR'
    """
    where = resolve_data_dir(data_dir)
    option = "" if where == default_data_dir() else f" --data_dir={shlex.quote(os.fspath(where))}"
    if name.startswith(f"{FOLDER}/"):
        name = f"{FOLDER} --source=DIR --name={name.removeprefix(f'{FOLDER}/')}"
    elif name == "imagenet2012":
        name += " --manual_dir=DIR"
    return f"python -m randmix prepare {name}{option}"


def load(name: str, split: str, data_dir: epath.PathLike | None = None) -> dict[str, np.ndarray]:
    """Reads an entire split into memory.

    Examples are in the order of the records, which TFDS determines from a hash of each example's
    key: it is well mixed, and the same on every machine and for every number of shards. The digits
    come from scikit-learn's file in the same order, whether they are prepared or not.

    Args:
        name: a data set of this catalog that isn't streamed.
        split: 'train' or 'test'.
        data_dir: TFDS's data directory; None for its default.

    Returns:
        {"image": [N, H, W, C] uint8 in 0..255, "label": [N] int32}, C-contiguous.

    Raises:
        UserError: there is no such data set or split, it isn't prepared (the message contains the
            command that prepares it), or its files are damaged.
    """
    data_set = get(name)
    assert not data_set.streamed, f"{name} may not fit in memory; see randmix.data.stream"
    if split not in SPLITS:
        raise UserError(f"{name} has no split {split!r}; it has: {', '.join(SPLITS)}")
    if data_set.embedded:
        return digits.load(split)
    return _read(data_set, split, data_dir)


def describe(data_set: DataSet, data_dir: epath.PathLike | None = None) -> dict[str, Any]:
    """What the images and labels of a data set are, as JSON values.

    Args:
        data_set: from `get`.
        data_dir: TFDS's data directory; None for its default.

    Returns:
        {"name", "version", "image_shape", "num_classes", "classes"}: the last is `class_names`, or
        None if the data set isn't prepared.
    """
    known = data_set.embedded or is_prepared(data_set.name, data_dir)
    return {
        "name": data_set.name,
        "version": data_set.version,
        "image_shape": list(data_set.image_shape),
        "num_classes": data_set.num_classes,
        "classes": class_names(data_set.name, data_dir) if known else None,
    }


def class_names(name: str, data_dir: epath.PathLike | None = None) -> list[str]:
    """TFDS's class names of a prepared data set, by label; the numbers as text if it has no names.

    An embedded data set, the digits, needn't be prepared.

    Raises:
        UserError: there is no such data set, or it isn't prepared.
    """
    data_set = get(name, data_dir)
    if data_set.embedded:
        return [str(label) for label in range(data_set.num_classes)]
    require_prepared(name, data_dir)
    names = data_set.directory(data_dir) / "label.labels.txt"  # TFDS writes it if there are names
    if not names.exists():
        return [str(label) for label in range(data_set.num_classes)]
    return [name.strip() for name in names.read_text().split("\n") if name.strip()]


def require_prepared(name: str, data_dir: epath.PathLike | None = None) -> None:
    """Raises a UserError with the command that prepares the data set, unless `is_prepared`."""
    if not is_prepared(name, data_dir):
        require_array_record(_directory(name, data_dir))
        raise UserError(
            f"{name} is not prepared in {resolve_data_dir(data_dir)}; "
            f"run `{prepare_command(name, data_dir)}`"
        )


def require_array_record(directory: epath.Path) -> None:
    """Raises a UserError with TFDS's conversion command if a data set lacks ArrayRecord files."""
    formats = _file_formats(directory)
    if formats and "array_record" not in formats:
        raise UserError(
            f"{directory} holds {' and '.join(formats)} files, not array_record; "
            "choose another data_dir and prepare it there, or run "
            f"`tfds convert_format --dataset_version_dir={shlex.quote(str(directory))} "
            "--out_file_format=array_record` where TensorFlow, apache-beam and mlcroissant are "
            "installed"
        )


def _directory(name: str, data_dir: epath.PathLike | None) -> epath.Path:
    """The directory of a data set that may not be prepared."""
    version = FOLDER_VERSION if name.startswith(f"{FOLDER}/") else get(name).version
    return resolve_data_dir(data_dir) / name / version


def _image_folder(name: str, data_dir: epath.PathLike | None) -> DataSet:
    """Reads an imagefolder's properties from its prepared files."""
    require_prepared(name, data_dir)
    directory = _directory(name, data_dir)
    info = _read_json(directory / "dataset_info.json")
    features = _read_json(directory / "features.json")
    if not features:
        raise damaged(directory, "features.json can't be read")
    examples = {split["name"]: sum(map(int, split["shardLengths"])) for split in info["splits"]}
    evaluation_split = "test" if "test" in examples else "validation"
    label = features["featuresDict"]["features"]["label"]
    return DataSet(
        name,
        (IMAGE_SIZE, IMAGE_SIZE, 3),
        int(label["classLabel"]["numClasses"]),
        examples["train"],
        examples[evaluation_split],
        FOLDER_VERSION,
        streamed=True,
        evaluation_split=evaluation_split,
    )


def _read_json(file: epath.Path) -> dict[str, Any]:
    """Parses a JSON file of TFDS; {} if it is missing or incomplete."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    except ImportError as error:  # from epath, for a bucket whose library isn't installed
        raise UserError(f"{file} is unreachable: {error}") from error


def _file_formats(directory: epath.Path) -> list[str]:
    """Record formats of a prepared data set; [] if it isn't one."""
    info = _read_json(directory / "dataset_info.json")
    if not info:
        return []
    return [info.get("fileFormat", "tfrecord"), *info.get("alternativeFileFormats", [])]


def open_source(data_set: DataSet, split: str, data_dir: epath.PathLike | None = None) -> Any:
    """Opens a prepared split as TFDS's random-access source, with undecoded images.

    Args:
        data_set: from `get`.
        split: 'train' or 'test'.
        data_dir: TFDS's data directory; None for its default.

    Returns:
        A sequence of {"image": bytes, "label": int, ...}; `__getitems__` reads several rows at
        once. Reading raises a RuntimeError if records are damaged, since ArrayRecord checksums each
        chunk; see `damaged`.

    Raises:
        UserError: the data set isn't prepared, files are missing or damaged, or the number of
            examples is wrong.
    """
    # Not at the top: TFDS takes a second to import, and --help and the digits don't need it.
    import tensorflow_datasets as tfds

    require_prepared(data_set.name, data_dir)
    directory = data_set.directory(data_dir)
    try:
        # TFDS's own decoding is slower, and warns if OpenCV is missing.
        source = tfds.builder_from_directory(directory).as_data_source(
            data_set.tfds_split(split),  # pyright: ignore[reportCallIssue]  # decorator hides it
            file_format="array_record",
            decoders={"image": tfds.decode.SkipDecoding()},
        )
    except RuntimeError as error:
        raise damaged(directory, error) from error
    n = data_set.examples(split)
    if len(source) != n:
        raise damaged(directory, f"found {len(source)} {split} examples, expected {n}")
    return source


def damaged(directory: epath.Path, reason: object) -> UserError:
    """Error for files that can't be read."""
    return UserError(f"{directory} is damaged ({reason}); remove it and prepare it again")


def _read(data_set: DataSet, split: str, data_dir: epath.PathLike | None) -> dict[str, np.ndarray]:
    """Reads and decodes a split, 128 records per call: single reads take four times as long."""
    source, n = open_source(data_set, split, data_dir), data_set.examples(split)
    images = np.empty((n, *data_set.image_shape), np.uint8)
    labels = np.empty(n, np.int32)
    try:
        for start in range(0, n, 128):
            rows = range(start, min(start + 128, n))
            for row, example in zip(rows, source.__getitems__(rows), strict=True):
                pixels = np.asarray(Image.open(io.BytesIO(example["image"])))
                images[row] = pixels.reshape(data_set.image_shape)
                labels[row] = example["label"]
    except RuntimeError as error:
        raise damaged(data_set.directory(data_dir), error) from error
    return {"image": images, "label": labels}
