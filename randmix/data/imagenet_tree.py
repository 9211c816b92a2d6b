"""ImageNet (ILSVRC 2012) as an extracted tree of files, or a part of it.

    DIR/train/n01440764/n01440764_10026.JPEG
    DIR/val/ILSVRC2012_val_00000001.JPEG, or DIR/val/n01440764/ILSVRC2012_val_00000293.JPEG

The 1,000 classes are named by synset id. Class folders give their images' classes; in a flat val/
TFDS's list gives them, by the number in the file's name. Hidden files and files that aren't named
as images are ignored.
"""

import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.datasets.imagenet2012 import imagenet_common

from randmix.data import catalog, imagefolder
from randmix.errors import UserError


@functools.cache
def synsets() -> Sequence[str]:
    """The synset ids of ImageNet's 1,000 classes, by label."""
    return imagenet_common.label_names_file().read_text().split()


@functools.cache
def validation_synsets() -> dict[str, str]:
    """The synset id of each of the 50,000 validation images, by name without the extension."""
    labels = tfds.core.tfds_path(imagenet_common._VALIDATION_LABELS_FNAME).read_text().split()
    return {f"ILSVRC2012_val_{i:08d}": label for i, label in enumerate(labels, start=1)}


def find(source: Path) -> imagefolder.Splits:
    """Finds the images of a tree: split -> synset id -> sorted files.

    The classes are those with training images; validation images of others are left out.

    Raises:
        UserError: the folder isn't laid out as this module's docstring describes; the message names
            the offending file or folder.
    """
    if not ((source / "train").is_dir() and (source / "val").is_dir()):
        raise UserError(
            f"--source: {source} lacks train or val; give the folder with train/nXXXXXXXX/*.JPEG "
            "and val, such as ILSVRC/Data/CLS-LOC"
        )
    classes = _classes(source / "train")
    if len(classes) < 2:
        raise UserError(
            f"--source: {source / 'train'} has images in {len(classes)} class folders, allowed are "
            "2 or more"
        )
    validation = _classes(source / "val") or _by_number(source / "val")
    splits = {
        "train": classes,
        "validation": {synset: validation.get(synset, []) for synset in classes},
    }
    for split, by_class in splits.items():
        names = Counter(file.name for files in by_class.values() for file in files)
        if not names:
            raise UserError(f"--source: {source / 'val'} has no image of the classes in train")
        name, times = names.most_common(1)[0]
        if times > 1:
            raise UserError(f"--source: {times} {split} images are named {name}; rename them")
    return splits


def find_all(source: Path) -> imagefolder.Splits:
    """Finds the images of the complete ImageNet.

    Raises:
        UserError: as `find` does, or the tree isn't complete.
    """
    files, whole = find(source), catalog.DATA_SETS["imagenet2012"]
    counts = imagefolder.count(files)
    got = (len(files["train"]), counts["train"], counts["validation"])
    expected = (whole.num_classes, whole.train_examples, whole.test_examples)
    if got != expected:
        raise UserError(
            f"--source: {source} holds {_in_words(got)}, ImageNet has {_in_words(expected)}; "
            "complete it, or add --allow_subset to prepare what is there as imagenet2012/NAME"
        )
    return files


def lacking(files: imagefolder.Splits) -> dict[str, Any]:
    """What ImageNet has and a part of it lacks: synset ids, numbers of images; JSON values."""
    counts, whole = imagefolder.count(files), catalog.DATA_SETS["imagenet2012"]
    missing = [synset for synset in synsets() if synset not in files["train"]]
    return {
        "classes": missing,
        "train": whole.train_examples - counts["train"],
        "validation": whole.test_examples - counts["validation"],
    }


def _in_words(counts: tuple[int, int, int]) -> str:
    classes, train, validation = counts
    return f"{classes:,} classes, {train:,} train and {validation:,} validation images"


def _classes(folder: Path) -> dict[str, list[Path]]:
    """Images of each class folder that has any; other files are ignored."""
    folders = [child for child in imagefolder.visible(folder) if child.is_dir()]
    for child in folders:
        if child.name not in synsets():
            raise UserError(
                f"--source: {child} is not named by the synset id of one of ImageNet's 1,000 "
                "classes, such as n01440764; prepare other classes with "
                "`python -m randmix prepare imagefolder --source=DIR`"
            )
    found = {child.name: _images(child) for child in folders}
    return {synset: files for synset, files in found.items() if files}


def _by_number(folder: Path) -> dict[str, list[Path]]:
    """Validation images of each class, by the numbers in their names."""
    known, classes = validation_synsets(), {}
    for file in _images(folder):
        if file.stem not in known:
            raise UserError(
                f"--source: {file} is not named as one of ImageNet's 50,000 validation images, "
                "ILSVRC2012_val_00000001.JPEG and so on, which tells its class; remove it, or move "
                "it to the folder of its class, val/nXXXXXXXX"
            )
        classes.setdefault(known[file.stem], []).append(file)
    return classes


def _images(folder: Path) -> list[Path]:
    return [
        file
        for file in imagefolder.visible(folder)
        if file.suffix.lower() in imagefolder.EXTENSIONS
    ]
