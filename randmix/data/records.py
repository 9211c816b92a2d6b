"""Data sets on disk as TFDS lays them out: where they are, what they hold, and their records.

A data directory can be any path that etils' epath supports, including gs://bucket/folder; only
`randmix.data.prepare` needs a local one.
"""

import dataclasses
import io
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from randmix.data import photographs
from randmix.errors import UserError

SURVEY = "randmix.json"  # next to dataset_info.json; see `randmix.data.survey`


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a prepared data set holds, from its own files.

    Attributes:
        examples: split -> number of examples, as TFDS names the splits.
        image_key, label_key: names of the two features.
        image_shape: (height, width, channels); None if the images have many sizes, or their sizes
            are unknown.
        channels: 1 or 3.
        num_classes: the number of classes.
        survey: the content of ``SURVEY``; {} if there is none.
    """

    examples: Mapping[str, int]
    image_key: str
    label_key: str
    image_shape: tuple[int, int, int] | None
    channels: int
    num_classes: int
    survey: Mapping[str, Any]


def default_data_dir() -> epath.Path:
    """TFDS's default data directory: $TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    return epath.Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def resolve_data_dir(data_dir: epath.PathLike | None) -> epath.Path:
    """Returns `data_dir` with ~ expanded, or the default if it is None or empty."""
    return epath.Path(data_dir).expanduser() if data_dir else default_data_dir()


def is_complete(directory: epath.Path) -> bool:
    """Whether a data set can be read: complete, and in the ArrayRecord format.

    TFDS writes to a temporary directory, dataset_info.json last, and renames it at the end, so an
    interrupted preparation never counts as complete.
    """
    return "array_record" in file_formats(directory)


def newest_version(folder: epath.Path) -> str | None:
    """The highest version among a data set's folders, such as '3.0.1'; None if there is none."""
    try:
        names = [child.name for child in folder.iterdir()]
    except OSError:
        return None
    versions = [name for name in names if re.fullmatch(r"\d+\.\d+\.\d+", name)]
    return max(versions, key=lambda text: tuple(map(int, text.split("."))), default=None)


def require_array_record(directory: epath.Path) -> None:
    """Raises a UserError that says what to do if a data set lacks ArrayRecord files."""
    formats = file_formats(directory)
    if not formats or "array_record" in formats:
        return
    advice = "choose another data_dir and prepare it there"
    if "tfrecord" in formats:
        info = _read_json(directory / "dataset_info.json")
        names = [info[key] for key in ("name", "configName") if info.get(key)]
        where = directory.parents[len(names)]
        option = "" if where == default_data_dir() else f" --data_dir={shlex.quote(str(where))}"
        name = f"tfds/{'/'.join(names)}:{directory.name}"
        advice = f"run `python -m randmix prepare {name}{option}`"
    raise UserError(f"{directory} holds {' and '.join(formats)} files, not array_record; {advice}")


def contents(directory: epath.Path) -> Contents:
    """Reads what a complete data set holds.

    Raises:
        UserError: its description is damaged, or it doesn't hold labelled images of 8 bits.
    """
    features = _features(directory)
    info = _read_json(directory / "dataset_info.json")
    named = info.get("supervisedKeys", {}).get("tuple", {}).get("items", [])
    preferred = [item.get("featureKey") for item in named]
    image_key = _feature(directory, features, "image", preferred)
    label_key = _feature(directory, features, "classLabel", preferred)
    image = features[image_key]["image"]
    num_classes = int(features[label_key]["classLabel"]["numClasses"])
    if image.get("dtype", "uint8") != "uint8":
        raise UserError(
            f"{directory}: the feature {image_key!r} has the type {image['dtype']}, allowed is "
            "uint8; convert the images as their values require"
        )
    dimensions = [int(size) for size in image.get("shape", {}).get("dimensions", [])] or [-1] * 3
    if dimensions[-1] not in (-1, 1, 3):
        raise UserError(
            f"{directory}: the images have {dimensions[-1]} channels, allowed are 1 and 3; convert "
            "them as their meaning requires"
        )
    survey = _read_json(directory / SURVEY)
    if not survey and (directory / SURVEY).exists():
        raise UserError(
            f"{directory / SURVEY} is damaged; remove it and prepare the data set again, which "
            "writes it anew"
        )
    shape = survey.get("image_shape") or (dimensions if min(dimensions) > 0 else None)
    return Contents(
        examples={
            split["name"]: sum(map(int, split.get("shardLengths", []))) for split in info["splits"]
        },
        image_key=image_key,
        label_key=label_key,
        image_shape=None if shape is None else (shape[0], shape[1], shape[2]),
        channels=1 if dimensions[-1] == 1 else 3,
        num_classes=num_classes,
        survey=survey,
    )


class Source(Sequence[dict[str, Any]]):
    """Random access to the records of a split, with undecoded images.

    Each is {"image": bytes, "label": int, "file_name": bytes}, the last b"" if it isn't recorded.
    Reading raises a RuntimeError if records are damaged, since ArrayRecord checksums each chunk.
    """

    def __init__(self, serialized: Any, held: Contents):
        """Wraps TFDS's source of serialized tf.train.Examples.

        TFDS's own parsing checks every feature's shape and type, at 0.05 ms for a photograph.
        """
        from tensorflow_datasets.proto import tf_example_pb2

        example = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]  # made late
        self._serialized, self._parse = serialized, example.FromString
        self._image, self._label = held.image_key, held.label_key

    def __len__(self) -> int:
        return len(self._serialized)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self._example(self._serialized[row])

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Reads several records at once, which takes a quarter of the time."""
        return [self._example(data) for data in self._serialized.__getitems__(rows)]

    def _example(self, data: bytes) -> dict[str, Any]:
        features = self._parse(data).features.feature
        names = features["file_name"].bytes_list.value if "file_name" in features else [b""]
        return {
            "image": features[self._image].bytes_list.value[0],
            "label": features[self._label].int64_list.value[0],
            "file_name": names[0],
        }


def open_source(directory: epath.Path, split: str, held: Contents, *, examples: int) -> Source:
    """Opens a split of a complete data set.

    Args:
        directory: of the data set.
        split: TFDS's name of a split or of a part of it.
        held: from `contents`.
        examples: the number of examples that it must have.

    Raises:
        UserError: files are missing or damaged, or the number of examples is wrong.
    """
    # Not at the top: TFDS takes a second to import, and --help and the digits don't need it.
    import tensorflow_datasets as tfds

    try:
        source = tfds.builder_from_directory(directory).as_data_source(
            split,  # pyright: ignore[reportCallIssue]  # decorator hides it
            file_format="array_record",
            deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise damaged(directory, photographs.reason(error)) from error
    if len(source) != examples:
        raise damaged(directory, f"found {len(source)} examples in {split}, expected {examples}")
    return Source(source, held)


def damaged(directory: epath.Path, reason: object) -> UserError:
    """Error for files that can't be read."""
    return UserError(f"{directory} is damaged ({reason}); remove it and prepare it again")


def read_arrays(
    directory: epath.Path, split: str, *, examples: int, held: Contents, shape: tuple[int, int, int]
) -> dict[str, np.ndarray]:
    """Reads and decodes a split whose images have one shape.

    Args:
        directory, split, examples: see `open_source`.
        held: from `contents`.
        shape: (height, width, channels) of every image.

    Returns:
        {"image": [N, H, W, C] uint8 in 0..255, "label": [N] int32}, C-contiguous.

    Raises:
        UserError: as `open_source` does, or an image can't be decoded or has another shape.
    """
    source = open_source(directory, split, held, examples=examples)
    images = np.empty((examples, *shape), np.uint8)
    labels = np.empty(examples, np.int32)
    mode = "L" if shape[-1] == 1 else "RGB"
    row = 0
    try:
        for start in range(0, examples, 128):
            rows = range(start, min(start + 128, examples))
            for row, example in zip(rows, source.__getitems__(rows), strict=True):
                image = Image.open(io.BytesIO(example["image"]))
                if (image.height, image.width) != shape[:2]:
                    raise ValueError(f"{image.width} x {image.height} pixels")
                images[row] = np.asarray(image.convert(mode)).reshape(shape)
                labels[row] = label_of(example, f"{directory}, {split}, record {row}", held)
    except UserError:
        raise
    except RuntimeError as error:
        raise damaged(directory, error) from error
    except photographs.BAD_IMAGE as error:
        raise UserError(
            f"{directory}: {split}, record {row} is damaged ({photographs.reason(error)}); remove "
            "the folder and prepare it again, or, if it is a set of photographs, set "
            "config.data.in_memory to off and config.data.corrupt to skip"
        ) from error
    return {"image": images, "label": labels}


def label_of(example: Mapping[str, Any], where: str, held: Contents) -> int:
    """Returns a record's label; raises a UserError if it isn't in 0 .. num_classes - 1."""
    if not 0 <= example["label"] < held.num_classes:
        raise UserError(
            f"{where}: got the label {example['label']}, allowed are 0 to {held.num_classes - 1}; "
            "if it is TFDS's -1 for unknown, `python -m randmix prepare tfds/NAME` finds another "
            "split"
        )
    return example["label"]


def class_names(directory: epath.Path, held: Contents) -> list[str]:
    """Class names by label; the numbers as text if there are none."""
    names = directory / f"{held.label_key}.labels.txt"  # TFDS writes it if there are names
    if not names.exists():
        return [str(label) for label in range(held.num_classes)]
    return [name.strip() for name in names.read_text().split("\n") if name.strip()]


def _features(directory: epath.Path) -> dict[str, Any]:
    """The features by name, from features.json."""
    features = _read_json(directory / "features.json").get("featuresDict", {}).get("features")
    if not features:
        raise damaged(directory, "features.json can't be read")
    return features


def _feature(
    directory: epath.Path, features: Mapping[str, Any], kind: str, preferred: list[str]
) -> str:
    """The name of the one feature of a kind, or of the supervised one if there are several."""
    names = [name for name, feature in features.items() if kind in feature]
    chosen = [name for name in names if name in preferred] if len(names) > 1 else names
    if len(chosen) != 1:
        what = {"image": "an image", "classLabel": "a class label"}[kind]
        raise UserError(
            f"{directory}: got the features {', '.join(features)}, {len(names)} of them {what}; "
            "allowed are data sets with one image and one class label"
        )
    return chosen[0]


def _read_json(file: epath.Path) -> dict[str, Any]:
    """Parses a JSON file; {} if it is missing or incomplete."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    except ImportError as error:  # from epath, for a bucket whose library isn't installed
        raise UserError(f"{file} is unreachable: {error}") from error


def file_formats(directory: epath.Path) -> list[str]:
    """Record formats of a prepared data set; [] if it isn't one."""
    info = _read_json(directory / "dataset_info.json")
    if not info:
        return []
    return [info.get("fileFormat", "tfrecord"), *info.get("alternativeFileFormats", [])]
