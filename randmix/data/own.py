"""Data sets of the user's own: arrays in memory, .npz files, and functions that return arrays.

    from randmix import data
    data.from_arrays("mine", train=(images, labels), test=(test_images, test_labels))

The arrays are kept in DATA_DIR/arrays/NAME.npz, so that a later process finds them. A function is
named as `module:function`; it takes no arguments and returns

    {"train": (images, labels), "test": (images, labels), "classes": names}

of which "classes" may be left out. Each process of a run calls it once, and it must return the same
each time: the hash of the arrays is the data set's version, by which a resumed run knows its data.
"""

import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from randmix import parts
from randmix.data import records
from randmix.errors import UserError, check_name, writing
from randmix.runtime import durable

ARRAYS = "arrays"
_SPLITS = ("train", "test")
# The names of the arrays in an .npz file: MedMNIST's, which are also ours, and Keras's.
_MEMBERS = (
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("x_train", "y_train", "x_test", "y_test"),
)
_MOST_CLASSES = 100_000
_ABOUT = "about"  # JSON text beside the arrays in our own files

Pair = tuple[Any, Any]  # images and labels


@dataclasses.dataclass(frozen=True)
class About:
    """What a set of arrays holds.

    Attributes:
        image_shape: (height, width, channels).
        num_classes: one more than the largest label, or the number of names.
        train_examples, test_examples: sizes of the splits.
        classes: their names; the numbers as text if none were given.
        statistics: mean and standard deviation of the training pixels in [0, 1], per channel.
        digest: 16 hex digits of the SHA-256 of the arrays and the names.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    train_examples: int
    test_examples: int
    classes: tuple[str, ...]
    statistics: tuple[tuple[float, ...], tuple[float, ...]]
    digest: str


Arrays = Mapping[str, Mapping[str, np.ndarray]]  # split -> image and label


def from_arrays(
    name: str,
    *,
    train: Pair,
    test: Pair,
    classes: Sequence[str] | None = None,
    data_dir: epath.PathLike | None = None,
) -> str:
    """Makes arrays a data set, kept in DATA_DIR/arrays/NAME.npz.

    Args:
        name: letters, digits, _ and -.
        train, test: images [N, H, W] or [N, H, W, C] uint8 in 0..255, with 1 or 3 channels, and
            labels [N] or [N, 1], integers from 0; arrays of any library that NumPy converts.
        classes: distinct names of the classes by label; None for the numbers.
        data_dir: TFDS's data directory, a local path; None for its default.

    Returns:
        The name for a config's ``data.name``: arrays/NAME.

    Raises:
        UserError: an array isn't as above, the name is in use for other arrays, or the file can't
            be written.
    """
    check_name("name", name)
    arrays, about = _checked(f"{ARRAYS}/{name}", {"train": train, "test": test}, classes)
    file = file_of(f"{ARRAYS}/{name}", records.resolve_data_dir(data_dir))
    if file.exists():
        if _read_about(file).digest != about.digest:
            raise UserError(f"{file} holds other arrays; choose another name, or remove it")
        return f"{ARRAYS}/{name}"
    both = (arrays[split][kind] for split in _SPLITS for kind in ("image", "label"))
    members = dict(zip(_MEMBERS[0], both, strict=True))
    buffer = io.BytesIO()
    members[_ABOUT] = np.array(json.dumps(dataclasses.asdict(about)))
    np.savez(buffer, allow_pickle=False, **members)
    with writing(file, "choose another data_dir"):
        durable.make_folder(file.parent)
        durable.write(file, buffer.getvalue())
    return f"{ARRAYS}/{name}"


def from_npz(file: epath.PathLike, name: str, data_dir: epath.PathLike | None = None) -> str:
    """Makes an .npz file a data set; see `from_arrays`.

    Args:
        file: with the arrays train_images, train_labels, test_images and test_labels, or x_train,
            y_train, x_test and y_test.
        name, data_dir: see `from_arrays`.
    """
    file = epath.Path(file).expanduser()
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as saved:
            members = next((names for names in _MEMBERS if {*names} <= {*saved}), None)
            if members is None:
                raise UserError(
                    f"{file}: got the arrays {', '.join(saved)}, needed are "
                    f"{' or '.join(', '.join(names) for names in _MEMBERS)}"
                )
            train, train_labels, test, test_labels = (saved[member] for member in members)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{file} can't be read ({error.strerror}); give another") from error
    except Exception as error:  # NumPy, zipfile and zlib have many kinds
        raise UserError(f"{file} isn't an intact .npz file of numbers; give another") from error
    return from_arrays(
        name, train=(train, train_labels), test=(test, test_labels), data_dir=data_dir
    )


def about(name: str, data_dir: epath.Path) -> About:
    """Describes a set by its name in a config, arrays/NAME or MODULE:FUNCTION.

    Raises:
        UserError: there is no such file or function, or what it holds isn't as `from_arrays` takes.
    """
    if name.startswith(f"{ARRAYS}/"):
        return _read_about(file_of(name, data_dir))
    return _called(name)[1]


def load(name: str, split: str, data_dir: epath.Path) -> dict[str, np.ndarray]:
    """Loads a split, 'train' or 'test', as ``catalog.load`` does."""
    if not name.startswith(f"{ARRAYS}/"):
        return dict(_called(name)[0][split])
    file = file_of(name, data_dir)
    images, labels = _MEMBERS[0][2 * _SPLITS.index(split) :][:2]
    try:
        with np.load(io.BytesIO(file.read_bytes())) as saved:  # each member has a checksum
            return {"image": saved[images], "label": saved[labels]}
    except Exception as error:  # NumPy, zipfile and zlib have many kinds
        raise _damaged(file, error) from error


def file_of(name: str, data_dir: epath.Path) -> epath.Path:
    """The file of arrays/NAME."""
    return data_dir / f"{name}.npz"


def _read_about(file: epath.Path) -> About:
    if not file.exists():
        raise UserError(
            f"{file} doesn't exist; make it by randmix.data.from_arrays({file.stem!r}, ...), or by "
            f"`python -m randmix prepare arrays --source=FILE.npz --name={file.stem}`"
        )
    try:
        with file.open("rb") as opened, np.load(opened) as saved:
            if _ABOUT not in saved:
                raise UserError(
                    f"{file} wasn't made by randmix; move it elsewhere and run "
                    f"`python -m randmix prepare arrays --source=FILE --name={file.stem}`"
                )
            values = json.loads(str(saved[_ABOUT]))
        mean, std = values.pop("statistics")
        shape, classes = tuple(values.pop("image_shape")), tuple(values.pop("classes"))
        statistics = (tuple(mean), tuple(std))
        return About(**values, image_shape=shape, classes=classes, statistics=statistics)
    except UserError:
        raise
    except Exception as error:  # NumPy, zipfile and zlib have many kinds
        raise _damaged(file, error) from error


def _damaged(file: epath.Path, reason: object) -> UserError:
    return UserError(f"{file} is damaged ({reason}); remove it and make it again")


@functools.cache
def _called(name: str) -> tuple[Arrays, About]:
    """Calls a function named MODULE:FUNCTION, once a process."""
    function = parts.find("config.data.name", name)
    if not callable(function):
        raise UserError(f"config.data.name: got {name!r}, which isn't a function")
    with parts.running("config.data.name", name):
        returned = function()
    if not isinstance(returned, Mapping) or not {*_SPLITS} <= {*returned} <= {*_SPLITS, "classes"}:
        got = ", ".join(map(str, returned)) if isinstance(returned, Mapping) else type(returned)
        raise UserError(
            f'config.data.name: {name} returned {got}, allowed is a dict with "train" and "test", '
            'each images and labels, and "classes" if there are names'
        )
    return _checked(name, returned, returned.get("classes"))


def _checked(
    name: str, pairs: Mapping[str, Pair], classes: Sequence[str] | None
) -> tuple[Arrays, About]:
    """Checks the arrays of both splits, and brings them into the shapes and types of a data set."""
    arrays = {split: _checked_split(f"{name}, {split}", pairs[split]) for split in _SPLITS}
    train, test = (arrays[split]["image"] for split in _SPLITS)
    if train.shape[1:] != test.shape[1:]:
        raise UserError(
            f"{name}: got training images of shape {train.shape[1:]} and test images of shape "
            f"{test.shape[1:]}, allowed is one shape"
        )
    highest = max(int(split["label"].max()) for split in arrays.values())
    names = tuple(map(str, range(highest + 1))) if classes is None else classes
    if not isinstance(names, list | tuple) or len({*map(str, names)}) != len(names):
        raise UserError(
            f"{name}: got the classes {names!r}, allowed is a list of distinct names, by label"
        )
    names = tuple(map(str, names))
    if highest >= len(names):
        raise UserError(
            f"{name}: got the label {highest} and {len(names)} classes, allowed are labels from 0 "
            f"to {len(names) - 1}"
        )
    digest = hashlib.sha256(json.dumps([names, train.shape, test.shape]).encode())
    for split in _SPLITS:
        digest.update(arrays[split]["image"].data)
        digest.update(arrays[split]["label"].data)
    _, height, width, channels = train.shape
    return arrays, About(
        (height, width, channels),
        len(names),
        len(train),
        len(test),
        names,
        statistics(np.stack([_histogram(train[..., c]) for c in range(channels)])),
        digest.hexdigest()[:16],
    )


def _histogram(values: np.ndarray) -> np.ndarray:
    """Counts of the values 0..255; in blocks, because bincount needs eight bytes per value."""
    blocks = np.array_split(values, max(1, values.nbytes // 2**24))
    return np.sum([np.bincount(block.ravel(), minlength=256) for block in blocks], axis=0)


def statistics(histograms: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixels in [0, 1], per channel, to four digits.

    Args:
        histograms: [channels, 256] counts of the values 0..255.
    """
    values = np.arange(256) / 255
    mean = histograms @ values / histograms.sum(1)
    variance = histograms @ values**2 / histograms.sum(1) - mean**2
    # A channel that hardly varies would be divided by nearly zero.
    std = np.where(variance > 1e-6, np.sqrt(np.maximum(variance, 0)), 1)
    return tuple(np.round(mean, 4).tolist()), tuple(np.round(std, 4).tolist())


def _checked_split(what: str, pair: Pair) -> dict[str, np.ndarray]:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        size = f" of {len(pair)}" if isinstance(pair, list | tuple) else ""
        raise UserError(
            f"{what}: got a {type(pair).__name__}{size}, allowed are two arrays, (images, labels)"
        )
    try:
        images, labels = map(np.asarray, pair)
    except ValueError as error:
        raise UserError(f"{what}: got arrays of several shapes, allowed is one") from error
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise UserError(
            f"{what}: got images {list(images.shape)} {images.dtype}, allowed are [N, H, W], "
            "[N, H, W, 1] or [N, H, W, 3] uint8; move channels last, and scale other values to "
            "0..255"
        )
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
        raise UserError(
            f"{what}: got labels {list(labels.shape)} {labels.dtype} for {len(images)} images, "
            "allowed is one integer per image"
        )
    if not images.size or labels.min() < 0 or labels.max() >= _MOST_CLASSES:
        got = f"labels from {labels.min()} to {labels.max()}" if len(labels) else "no images"
        raise UserError(
            f"{what}: got {got}, allowed are one image or more and labels from 0 to "
            f"{_MOST_CLASSES - 1}"
        )
    return {"image": np.ascontiguousarray(images), "label": labels.astype(np.int32)}
