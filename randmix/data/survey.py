"""A look at every image of a prepared data set: sizes, channel statistics, and what is damaged."""

import concurrent.futures
import dataclasses
import io
import json
import os
import statistics as numbers
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image
from tensorflow_datasets.core import file_adapters
from tqdm import tqdm

from randmix.data import own, photographs, records
from randmix.runtime import durable

_TOGETHER = 128  # records per read
_UNKNOWN = "its label is -1"


class Damage(NamedTuple):
    """A record that can't be read or decoded.

    Attributes:
        split: TFDS's name of its split.
        row: its row in the split.
        file_name: the file that it came from, "" if that isn't recorded.
        reason: what is wrong with it.
    """

    split: str
    row: int
    file_name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Survey:
    """What the images of a data set are like.

    Attributes:
        examples: the number of records that were looked at, in all splits.
        image_shape: (height, width, channels) of every image; None if they differ.
        shorter_side: median of the images' shorter sides, in pixels.
        statistics: mean and standard deviation of the training pixels in [0, 1], per channel; None
            without a training split.
        damaged: the records that can't be read or decoded, or whose label is none of the classes'.
        unlabelled: the splits of which every label is -1, unknown.
    """

    examples: int
    image_shape: tuple[int, int, int] | None
    shorter_side: int | None
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None
    damaged: tuple[Damage, ...]
    unlabelled: tuple[str, ...]


def survey(directory: epath.Path, *, show_progress: bool = True) -> Survey:
    """Decodes every record of every split, by Pillow, in one thread per core.

    Args:
        directory: of a complete data set.
        show_progress: whether to show a bar, if stderr is a terminal.

    Raises:
        UserError: a file is missing, or the description is damaged.
    """
    held = records.contents(directory)
    _require_files(directory)
    sources = {
        split: records.open_source(directory, split, held, examples=count)
        for split, count in held.examples.items()
    }
    groups = [
        (split, range(start, min(start + _TOGETHER, count)))
        for split, count in held.examples.items()
        for start in range(0, count, _TOGETHER)
    ]
    sizes: Counter[tuple[int, int]] = Counter()
    histogram, damaged = np.zeros((held.channels, 256), np.int64), []
    unlabelled = {split for split, count in held.examples.items() if count}
    examples = sum(held.examples.values())
    with (
        concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads,
        tqdm(
            total=examples,
            desc="look at every image",
            unit="",
            leave=False,
            disable=None if show_progress else True,
        ) as bar,
    ):
        looks = threads.map(lambda group: _look(sources[group[0]], group, held), groups)
        for (split, rows), seen in zip(groups, looks, strict=True):
            sizes += seen.sizes
            damaged += seen.damaged
            histogram += seen.histogram if split == "train" else 0
            if seen.labelled:
                unlabelled.discard(split)
            bar.update(len(rows))
    (height, width), *others = sizes or [(0, 0)]
    return Survey(
        examples=examples,
        image_shape=(height, width, held.channels) if sizes and not others else None,
        shorter_side=numbers.median_low(map(min, sizes.elements())) if sizes else None,
        statistics=own.statistics(histogram) if histogram.any() else None,
        damaged=tuple(d for d in damaged if not (d.split in unlabelled and d.reason == _UNKNOWN)),
        unlabelled=tuple(sorted(unlabelled)),
    )


def write(directory: epath.PathLike, found: Survey) -> None:
    """Writes what ``records.contents`` reads again, next to dataset_info.json."""
    mean, std = found.statistics or ((), ())
    content = {
        "image_shape": found.image_shape,
        "shorter_side": found.shorter_side,
        "mean": mean,
        "std": std,
        "unlabelled": found.unlabelled,
        "damaged": len(found.damaged),
    }
    durable.write(epath.Path(directory) / records.SURVEY, json.dumps(content, indent=2) + "\n")


def _require_files(directory: epath.Path) -> None:
    """Raises a UserError unless all files can be opened: TFDS opens one only to read from it."""
    broken = []
    splits: Any = tfds.builder_from_directory(directory).info.splits
    for split in splits.values():
        template = split.filename_template.replace(filetype_suffix="array_record")
        files = template.sharded_filepaths(len(split.shard_lengths))
        for file, expected in zip(files, split.shard_lengths, strict=True):
            try:
                found = file_adapters.ArrayRecordFileAdapter.num_examples(file)
            except RuntimeError as error:
                broken.append(f"{file.name}: {photographs.reason(error)}")
            else:
                if found != expected:
                    broken.append(f"{file.name}: {found:,} records, expected {expected:,}")
    if broken:
        more = f", and {len(broken) - 1:,} more files" if broken[1:] else ""
        raise records.damaged(directory, broken[0] + more)


class _Seen(NamedTuple):
    """What a group of records holds: sizes of images, counts of values, rows with a label."""

    sizes: Counter[tuple[int, int]]
    histogram: np.ndarray
    damaged: list[Damage]
    labelled: list[int]


def _look(source: Any, group: tuple[str, range], held: records.Contents) -> _Seen:
    split, rows = group
    mode = "L" if held.channels == 1 else "RGB"
    seen = _Seen(Counter(), np.zeros((held.channels, 256), np.int64), [], [])
    for row, record in zip(rows, _read(source, rows), strict=True):
        try:
            if isinstance(record, RuntimeError):
                raise record
            image = Image.open(io.BytesIO(record["image"])).convert(mode)
        except (*photographs.BAD_IMAGE, RuntimeError) as error:
            name = b"" if isinstance(record, RuntimeError) else record["file_name"]
            reason = photographs.reason(error)
            seen.damaged.append(Damage(split, row, name.decode(), reason))
        else:
            if 0 <= record["label"] < held.num_classes:
                seen.labelled.append(row)
            else:
                reason = _UNKNOWN if record["label"] == -1 else f"its label is {record['label']}"
                seen.damaged.append(Damage(split, row, record["file_name"].decode(), reason))
            seen.sizes[image.height, image.width] += 1
            seen.histogram[:] += np.reshape(image.histogram(), seen.histogram.shape)
    return seen


def _read(source: Any, rows: Sequence[int]) -> Sequence[Mapping[str, Any] | RuntimeError]:
    """Reads records together, or one by one where one of them can't be read."""
    try:
        return source.__getitems__(rows)
    except RuntimeError as error:
        if len(rows) == 1:
            return [error]
        return [record for row in rows for record in _read(source, [row])]
