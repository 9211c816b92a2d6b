"""User data sets: folders of JPEGs and PNGs, one per class, as a TFDS data set.

The folders are either split already, or each class is split here:

    DIR/train/CLASS/*.jpg and DIR/test/CLASS/*.jpg (or val, or validation)
    DIR/CLASS/*.jpg

In the second case the test split is a tenth of each class, at least one image: those whose path
CLASS/FILE has the smallest SHA-256. The same files are split the same way on every machine.

Every record is an 8-bit RGB image. Files in this format are stored byte for byte. Others are
converted if there is only one right way, and refused if the user must choose:

    grey, CMYK, palette, fully opaque alpha    converted to RGB and stored as PNG, losslessly
    any other alpha, 16 bits per channel       refused
    incomplete JPEG or PNG, other extension    refused
    pipe, socket, device, broken link          refused

Links are followed to their file. Only hidden files and those of file managers are ignored. EXIF
orientation isn't applied; TFDS doesn't apply it either.
"""

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from randmix.data import catalog, photographs
from randmix.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png")
_LEFT_BY_FILE_MANAGERS = {"thumbs.db", "desktop.ini"}
_SPLIT_FOLDERS = {"train": "train", "test": "test", "val": "validation", "validation": "validation"}
_UNDECODED = re.compile("[\ud800-\udfff]")  # what Python makes of bytes that aren't UTF-8

Splits = Mapping[str, Mapping[str, Sequence[Path]]]  # split -> class -> files


class ImageFolder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Builder of one data set from folders; its TFDS config is the set's name."""

    name = catalog.FOLDER
    VERSION = tfds.core.Version(catalog.FOLDER_VERSION)

    def __init__(self, *, files: Splits, folder_name: str, **kwargs):
        self._files = files
        config = tfds.core.BuilderConfig(name=folder_name, version=self.VERSION)
        super().__init__(config=config, **kwargs)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description="Images from folders, one folder per class.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=sorted(self._files["train"])),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            metadata=tfds.core.MetadataDict(files=fingerprint(self._files)),
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(classes) for split, classes in self._files.items()}

    def _generate_examples(self, classes):
        for label, files in classes.items():
            for file in files:
                key = f"{label}/{file.name}"
                yield key, {"image": rgb_bytes(file), "label": label, "file_name": key}


def find(source: Path) -> Splits:
    """Finds the image files of a folder: split -> class -> sorted files.

    Raises:
        UserError: the folder isn't laid out as this module's docstring describes; the message names
            the offending file or folder.
    """
    if not source.is_dir():
        raise UserError(
            f"--source: {source} is not a folder; "
            "give the one that contains train/CLASS or CLASS folders"
        )
    folders = _folders(source)
    if "train" not in {folder.name for folder in folders}:
        return _split_by_hash(_require_two(source, _classes(source)))
    splits = {}
    for folder in folders:
        split = _SPLIT_FOLDERS.get(folder.name)
        if split is None or split in splits:
            raise UserError(
                f"--source: {folder} is next to {source / 'train'}; "
                "allowed there are train, test, and val or validation"
            )
        splits[split] = _classes(folder)
    _require_two(source / "train", splits["train"])
    if len(splits) == 1:
        raise UserError(f"--source: {source} has a train folder but neither test nor val; add one")
    for split, classes in splits.items():
        if unknown := sorted(classes.keys() - splits["train"].keys()):
            raise UserError(f"--source: {split} has the class {unknown[0]!r}, which train lacks")
    return splits


def count(files: Splits) -> dict[str, int]:
    """Number of images in each split."""
    return {split: sum(map(len, classes.values())) for split, classes in files.items()}


def fingerprint(files: Splits) -> str:
    """SHA-256 of the list of files with split, class, name and size."""
    lines = [
        f"{split}/{label}/{file.name} {file.stat().st_size}"
        for split, classes in sorted(files.items())
        for label, of_class in classes.items()
        for file in of_class
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def rgb_bytes(file: Path) -> bytes:
    """Reads an image as the bytes of an 8-bit RGB JPEG or PNG; see this module's docstring.

    Raises:
        UserError: the file can't be read, isn't a complete JPEG or PNG, is partly transparent, or
            has 16 bits per channel; the message names it.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} can't be read ({error.strerror}); remove or replace it") from error
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
        image.load()
    except photographs.BAD_IMAGE as error:
        reason = "not a JPEG or PNG" if isinstance(error, Image.UnidentifiedImageError) else error
        raise UserError(
            f"{file} is not a complete image ({reason}); remove or replace it"
        ) from error
    # Byte 24 of a PNG is its bits per channel; Pillow silently reads 16-bit colour as 8-bit.
    if image.format == "PNG" and data[24] == 16:
        raise UserError(
            f"{file} has 16 bits per channel, allowed are 8; convert it as its values require"
        )
    if image.mode == "RGB" and "transparency" not in image.info:
        return data
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        if np.asarray(image)[..., 3].min() < 255:
            raise UserError(
                f"{file} is partly transparent; flatten it onto a background of your choice"
            )
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def _split_by_hash(classes: Mapping[str, Sequence[Path]]) -> Splits:
    splits: dict[str, dict[str, Sequence[Path]]] = {"train": {}, "test": {}}
    for label, files in classes.items():
        if len(files) < 2:
            raise UserError(
                f"--source: class {label!r} has one image, but splitting needs two; "
                "add some, or split into train and test yourself"
            )
        ranked = sorted(
            files, key=lambda file: hashlib.sha256(f"{label}/{file.name}".encode()).hexdigest()
        )
        tenth = max(1, round(len(files) / 10))
        splits["test"][label] = sorted(ranked[:tenth])
        splits["train"][label] = sorted(ranked[tenth:])
    return splits


def _classes(folder: Path) -> dict[str, list[Path]]:
    """Image files of each class folder."""
    return {child.name: _images(child) for child in _folders(folder)}


def _require_two(folder: Path, classes: dict[str, list[Path]]) -> dict[str, list[Path]]:
    """Returns the classes; raises a UserError if there are fewer than two."""
    if len(classes) < 2:
        raise UserError(
            f"--source: {folder} contains {len(classes)} class folders, allowed are 2 or more"
        )
    return classes


def _folders(folder: Path) -> list[Path]:
    """Subfolders of a folder; of files beside them, only those such as a README are ignored."""
    children = visible(folder)
    for child in children:
        if not child.is_dir() and (not child.is_file() or child.suffix.lower() in EXTENSIONS):
            raise UserError(
                f"--source: {child} is next to folders; only folders, and files that aren't "
                "images, are allowed there"
            )
    return [child for child in children if child.is_dir()]


def _images(folder: Path) -> list[Path]:
    """Images in a class folder, which must contain nothing else."""
    children = visible(folder)
    for child in children:
        if child.is_dir() or child.suffix.lower() not in EXTENSIONS:
            raise UserError(
                f"--source: {child} is not an image by its name; "
                f"allowed in a class folder are {', '.join(EXTENSIONS)}"
            )
        if not child.is_file():  # reading a pipe would wait for a writer
            raise UserError(
                f"--source: {child} is a pipe, a socket, a device or a broken link, allowed are "
                "files; remove or replace it"
            )
    if not children:
        raise UserError(f"--source: class folder {folder} is empty; fill or remove it")
    return children


def visible(folder: Path) -> list[Path]:
    """Sorted content of a folder, without hidden files and those of file managers."""
    try:
        children = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"--source: {folder} can't be read ({error.strerror})") from error
    for child in children:
        if _UNDECODED.search(child.name):
            raise UserError(f"--source: {str(child)!r} has a name that isn't UTF-8; rename it")
    return [
        child
        for child in children
        if not child.name.startswith(".") and child.name.lower() not in _LEFT_BY_FILE_MANAGERS
    ]
