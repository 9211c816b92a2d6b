"""Catalog of data sets: their properties, whether they are prepared, and loading into memory.

A name in a config is one of ``DATA_SETS`` or leads to a set of the user's own:

    imagefolder/NAME            a folder of images, after `randmix prepare imagefolder`
    imagenet2012/NAME           a part of ImageNet, after `randmix prepare imagenet2012`
    tfds/NAME[/CONFIG][:VERSION]    what TFDS prepared
    arrays/NAME                 arrays or an .npz file; see `randmix.data.own`
    MODULE:FUNCTION             a function that returns arrays; see `randmix.data.own`
"""

import dataclasses
import math
import os
import re
import shlex
from typing import Any

import numpy as np
from etils import epath

from randmix.data import decoded, digits, own, records
from randmix.data.data_sets import DATA_SETS, IMAGE_SIZE, IMAGENET, DataSet, Statistics
from randmix.errors import UserError, check_choice, check_name, did_you_mean

SPLITS = ("train", "test")
FOLDER, FOLDER_VERSION = "imagefolder", "1.0.0"
IN_MEMORY = ("auto", "on", "off")
# What `auto` holds in memory: images of one shape that are no larger than this, in pixels and in
# all. The limits are fixed, not the machine's, so that a run is the same on every machine.
SMALL_SIDE, SMALL_BYTES = 128, 2 * 2**30

_TFDS_NAME = re.compile(  # a version doesn't count as a CONFIG
    r"tfds/(?P<folder>\w+(?:/(?!\d+\.\d+\.\d+(?:$|:))[\w.-]+)?)(?::(?P<version>\d+\.\d+\.\d+))?"
)
FUNCTION_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_OTHER_NAMES = (
    f"{FOLDER}/NAME",
    f"{IMAGENET}/NAME",
    "tfds/NAME",
    f"{own.ARRAYS}/NAME",
    "MODULE:FUNCTION",
)


def get(
    name: str,
    data_dir: epath.PathLike | None = None,
    *,
    image_size: int | None = None,
    in_memory: str = "auto",
) -> DataSet:
    """Looks up a data set by name.

    Args:
        name: see this module's docstring.
        data_dir: TFDS's data directory; None for its default. A set that isn't in `DATA_SETS` must
            be prepared there, since only its files record its size and classes.
        image_size: side in pixels that photographs of a streamed set are cropped to; None for 224.
        in_memory: "on" holds a prepared set whose images have one shape in memory, at that size;
            "off" streams it; "auto" holds it if its images are small and few (`SMALL_SIDE` pixels,
            `SMALL_BYTES`) and `image_size` doesn't ask for another size.

    Raises:
        UserError: there is no such data set (the message lists them), it isn't prepared, or it
            can't be held in memory or streamed.

    >>> get("digits").image_shape
    (8, 8, 1)
    >>> get("imagenet2012", image_size=64).image_shape
    (64, 64, 3)
    """
    check_choice("config.data.in_memory", in_memory, IN_MEMORY)
    if not isinstance(name, str):
        raise _unknown(name)
    if name in DATA_SETS:
        data_set = DATA_SETS[name]
        _require_possible(data_set, in_memory)
        if data_set.streamed and image_size is not None:
            return dataclasses.replace(data_set, image_shape=(image_size, image_size, 3))
        return data_set
    kind, _, part = name.partition("/")
    if kind in (FOLDER, IMAGENET, own.ARRAYS) and "/" in name:
        check_name(f"data set {kind}/NAME", part)
    if name.startswith((f"{FOLDER}/", f"{IMAGENET}/", "tfds/")):
        return _prepared(name, data_dir, image_size, in_memory)
    if name.startswith(f"{own.ARRAYS}/") or FUNCTION_NAME.fullmatch(name):
        about = own.about(name, records.resolve_data_dir(data_dir))
        data_set = DataSet(
            name,
            about.image_shape,
            about.num_classes,
            about.train_examples,
            about.test_examples,
            about.digest,
            embedded=True,
            statistics=about.statistics,
        )
        _require_possible(data_set, in_memory)
        return data_set
    raise _unknown(name)


def _unknown(name: object) -> UserError:
    return UserError(
        f"no data set is named {name!r}; there are: {', '.join((*DATA_SETS, *_OTHER_NAMES))}"
        f"{did_you_mean(name, DATA_SETS)}"
    )


def _require_possible(data_set: DataSet, in_memory: str) -> None:
    """Raises a UserError if a set of fixed kind is asked to be of the other kind."""
    possible = "off" if data_set.streamed else "on"
    if in_memory not in ("auto", possible):
        raise UserError(
            f"config.data.in_memory: got {in_memory!r}, allowed with {data_set.name} are auto and "
            f"{possible}"
        )


def is_prepared(name: str, data_dir: epath.PathLike | None = None) -> bool:
    """Whether a data set of TFDS's kind is complete, and in the ArrayRecord format."""
    return records.is_complete(directory_of(name, data_dir))


def prepare_command(name: str, data_dir: epath.PathLike | None = None) -> str:
    """The command line that prepares a data set.

    >>> prepare_command("fashion_mnist")
    'python -m randmix prepare fashion_mnist'
    >>> prepare_command("imagefolder/pets")
    'python -m randmix prepare imagefolder --source=DIR --name=pets'
    >>> prepare_command("imagenet2012")
    'python -m randmix prepare imagenet2012 --manual_dir=DIR'
    >>> prepare_command("imagenet2012/imagenette")
    'python -m randmix prepare imagenet2012 --source=DIR --allow_subset --name=imagenette'
    >>> prepare_command("tfds/svhn_cropped")
    'tfds build svhn_cropped --file_format=array_record'
    """
    where = records.resolve_data_dir(data_dir)
    default = records.default_data_dir()
    option = "" if where == default else f" --data_dir={shlex.quote(os.fspath(where))}"
    if match := _TFDS_NAME.fullmatch(name):
        return f"tfds build {match['folder']} --file_format=array_record{option}"
    if name.startswith(f"{FOLDER}/"):
        name = f"{FOLDER} --source=DIR --name={name.removeprefix(f'{FOLDER}/')}"
    elif name.startswith(f"{IMAGENET}/"):
        part = name.removeprefix(f"{IMAGENET}/")
        name = f"{IMAGENET} --source=DIR --allow_subset --name={part}"
    elif name == IMAGENET:
        name += " --manual_dir=DIR"
    return f"python -m randmix prepare {name}{option}"


def load(name: str, split: str, data_dir: epath.PathLike | None = None) -> dict[str, np.ndarray]:
    """Reads an entire split into memory.

    Examples of a prepared set are in the order of the records, which TFDS determines from a hash of
    each example's key: it is well mixed, and the same on every machine and for every number of
    shards. The digits come from scikit-learn's file in the same order.

    Args:
        name: a data set whose images have one shape.
        split: 'train' or 'test'.
        data_dir: TFDS's data directory; None for its default.

    Returns:
        {"image": [N, H, W, C] uint8 in 0..255, "label": [N] int32}, C-contiguous.

    Raises:
        UserError: there is no such data set or split, it isn't prepared (the message contains the
            command that prepares it), its images have many sizes, or its files are damaged.
    """
    return read(get(name, data_dir, in_memory="on"), split, data_dir)


def read(
    data_set: DataSet, split: str, data_dir: epath.PathLike | None = None
) -> dict[str, np.ndarray]:
    """Reads an entire split of a set that isn't streamed; see `load`.

    Args:
        data_set: from `get`.
        split, data_dir: see `load`.
    """
    require_split(data_set, split)
    if data_set.embedded:
        if data_set.name == "digits":
            return digits.load(split)
        return own.load(data_set.name, split, records.resolve_data_dir(data_dir))
    require_prepared(data_set.name, data_dir)
    directory, name = data_set.directory(data_dir), data_set.tfds_split(split)
    return decoded.read(
        directory,
        name,
        (data_set.examples(split), *data_set.image_shape),
        lambda: records.read_arrays(
            directory,
            name,
            examples=data_set.examples(split),
            held=records.contents(directory),
            shape=data_set.image_shape,
        ),
    )


def require_split(data_set: DataSet, split: str) -> None:
    """Raises a UserError unless the data set has that split, 'train' or 'test'."""
    if split not in SPLITS:
        raise UserError(f"{data_set.name} has no split {split!r}; it has: {', '.join(SPLITS)}")
    if not data_set.examples(split):
        raise UserError(
            f"{data_set.name} has no examples to {'train on' if split == 'train' else 'test on'}; "
            "give another data set"
        )


def describe(data_set: DataSet, data_dir: epath.PathLike | None = None) -> dict[str, Any]:
    """What the images and labels of a data set are, as JSON values.

    Args:
        data_set: from `get`.
        data_dir: TFDS's data directory; None for its default.

    Returns:
        {"name", "version", "image_shape", "num_classes", "train_examples", "test_examples",
        "classes"}: the last is `class_names`, or None if the data set isn't prepared.
    """
    known = data_set.embedded or is_prepared(data_set.name, data_dir)
    return {
        "name": data_set.name,
        "version": data_set.version,
        "image_shape": list(data_set.image_shape),
        "num_classes": data_set.num_classes,
        "train_examples": data_set.train_examples,
        "test_examples": data_set.test_examples,
        "classes": class_names(data_set.name, data_dir) if known else None,
    }


def class_names(name: str, data_dir: epath.PathLike | None = None) -> list[str]:
    """Class names of a data set, by label; the numbers as text if it has no names.

    Raises:
        UserError: there is no such data set, or it isn't prepared.
    """
    if name == "digits":
        return [str(label) for label in range(10)]
    data_set = get(name, data_dir)
    if data_set.embedded:
        return list(own.about(name, records.resolve_data_dir(data_dir)).classes)
    require_prepared(name, data_dir)
    directory = data_set.directory(data_dir)
    return records.class_names(directory, records.contents(directory))


def require_prepared(name: str, data_dir: epath.PathLike | None = None) -> None:
    """Raises a UserError with the command that prepares the data set, unless `is_prepared`."""
    directory = directory_of(name, data_dir)
    if records.is_complete(directory):
        return
    records.require_array_record(directory)
    where = records.resolve_data_dir(data_dir)
    configs = sorted(
        child.name
        for child in (directory.iterdir() if directory.is_dir() else ())
        if records.newest_version(child)
    )
    if name.startswith("tfds/") and configs:
        raise UserError(
            f"{name} in {where} has the configs {', '.join(configs)}; "
            f"name one, for example {name.partition(':')[0]}/{configs[0]}"
        )
    raise UserError(f"{name} is not prepared in {where}; run `{prepare_command(name, data_dir)}`")


def open_source(
    data_set: DataSet, split: str, data_dir: epath.PathLike | None = None
) -> records.Source:
    """Opens the records of a prepared split.

    Args:
        data_set: from `get`.
        split: 'train' or 'test'.
        data_dir: TFDS's data directory; None for its default.

    Raises:
        UserError: as `records.open_source` does, or the data set isn't prepared.
    """
    require_prepared(data_set.name, data_dir)
    require_split(data_set, split)
    directory = data_set.directory(data_dir)
    return records.open_source(
        directory,
        data_set.tfds_split(split),
        records.contents(directory),
        examples=data_set.examples(split),
    )


def directory_of(name: str, data_dir: epath.PathLike | None) -> epath.Path:
    """The directory of a data set of TFDS's kind, which may not be prepared."""
    where = records.resolve_data_dir(data_dir)
    if name.startswith("tfds/"):
        if not (match := _TFDS_NAME.fullmatch(name)):
            raise UserError(
                f"data set: got {name!r}, allowed are tfds/NAME, tfds/NAME/CONFIG, and either with "
                ":VERSION, for example tfds/svhn_cropped:3.0.0"
            )
        folder = where / match["folder"]
        version = match["version"] or records.newest_version(folder)
        return folder / version if version else folder
    if name.startswith(f"{FOLDER}/"):
        return where / name / FOLDER_VERSION
    whole = IMAGENET if name.startswith(f"{IMAGENET}/") else name
    if whole not in DATA_SETS:
        raise _unknown(name)
    return where / name / DATA_SETS[whole].version


def _prepared(
    name: str, data_dir: epath.PathLike | None, image_size: int | None, in_memory: str
) -> DataSet:
    """Reads a data set's properties from its prepared files."""
    require_prepared(name, data_dir)
    directory = directory_of(name, data_dir)
    held = records.contents(directory)
    size = image_size or IMAGE_SIZE
    shape = held.image_shape if _fits_in_memory(name, held, image_size, in_memory) else None
    data_set = DataSet(
        name,
        shape or (size, size, 3),
        held.num_classes,
        train_examples=held.examples.get("train", 0),
        test_examples=0,
        version=directory.name,
        streamed=shape is None,
        statistics=_statistics(name, held, channels=3 if shape is None else shape[2]),
        shorter_side=held.survey.get("shorter_side"),
    )
    for split in ("test", "validation"):
        count = held.examples.get(split)
        if count and split not in held.survey.get("unlabelled", ()):
            return dataclasses.replace(data_set, evaluation_split=split, test_examples=count)
    if data_set.train_examples < 2:
        splits = ", ".join(f"{split} ({count:,})" for split, count in held.examples.items())
        raise UserError(
            f"{name}: got the splits {splits}, needed are labelled examples in test or validation, "
            "or two in train; give another data set"
        )
    # TFDS mixed the records, so the last tenth is a fair sample.
    cut = data_set.train_examples - max(1, round(data_set.train_examples / 10))
    return dataclasses.replace(
        data_set,
        train_examples=cut,
        test_examples=data_set.train_examples - cut,
        train_split=f"train[:{cut}]",
        evaluation_split=f"train[{cut}:]",
    )


def _statistics(name: str, held: records.Contents, *, channels: int) -> Statistics | None:
    if name.startswith(f"{IMAGENET}/"):
        return DATA_SETS[IMAGENET].statistics
    if mean := held.survey.get("mean"):
        copies = channels // len(mean)  # a stream decodes grey images to three equal channels
        return tuple(mean) * copies, tuple(held.survey["std"]) * copies
    return None


def _fits_in_memory(
    name: str, held: records.Contents, image_size: int | None, in_memory: str
) -> bool:
    """Whether a prepared set is held in memory; see `get`."""
    shape, got = held.image_shape, f"config.data.in_memory: got {in_memory!r}"
    if in_memory == "off":
        return False
    if in_memory == "on":
        if shape is None:
            raise UserError(
                f"{got}, but the images of {name} have many sizes, or nobody has looked at them; "
                "set off, or resize the images and prepare them again"
            )
        if image_size is not None and shape[:2] != (image_size, image_size):
            raise UserError(
                f"{got} and config.data.image_size {image_size}, but the images of {name} have "
                f"{shape[0]} x {shape[1]} pixels; leave image_size out, or set in_memory to off"
            )
        return True
    return (
        shape is not None
        and not held.survey.get("damaged")  # a stream can leave them out
        and max(shape[:2]) <= SMALL_SIDE
        and sum(held.examples.values()) * math.prod(shape) <= SMALL_BYTES
        and (image_size is None or shape[:2] == (image_size, image_size))
    )
