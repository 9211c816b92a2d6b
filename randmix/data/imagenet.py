"""TFDS's ImageNet (ILSVRC 2012), prepared without TensorFlow.

The stock builder reads its archives with ``tf.io.gfile`` and re-encodes 23 images with TensorFlow's
codecs. The class here keeps its name, version, features, splits, keys and texts, but reads the
archives with the standard library and re-encodes with Pillow: the same encoder with the same
settings, whose input differs by about one level.
"""

import dataclasses
import io
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder as stock
from tensorflow_datasets.datasets.imagenet2012 import imagenet_common

from randmix.errors import UserError

TRAIN, VALIDATION = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
# TFDS's list of the two archives has their file names in the URLs only.
assert stock.Builder.url_infos is not None
_ARCHIVES = {
    url: dataclasses.replace(info, filename=url.rsplit("/", 1)[1])
    for url, info in stock.Builder.url_infos.items()
}
_Examples = Iterator[tuple[str, dict[str, Any]]]


class Imagenet2012(stock.Builder, skip_registration=True):
    """ImageNet's train and validation splits; the test split has no labels and is omitted."""

    name = "imagenet2012"
    pkg_dir_path = stock.Builder.pkg_dir_path or tfds.core.tfds_path("datasets/imagenet2012")
    url_infos = _ARCHIVES

    archives: Mapping[str, Path]  # file name -> path; set before the data set is prepared

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(self.archives[TRAIN]),
            "validation": self._generate_examples(self.archives[VALIDATION]),
        }

    def _generate_examples(self, archive):
        generate = _training_examples if archive.name == TRAIN else _validation_examples
        try:
            yield from generate(archive)
        except tarfile.TarError as error:
            raise UserError(
                f"{archive.name} is truncated or not a tar archive ({error}); download it again"
            ) from error


def _training_examples(archive: Path) -> _Examples:
    """Reads the outer archive, with an inner archive of images per class, such as n01440764.tar."""
    for class_name, class_file in _members(archive.open("rb")):
        for name, file in _members(class_file):
            image = _as_rgb_jpeg(name, file.read())
            yield (
                name,
                {"file_name": name, "image": image, "label": class_name.removesuffix(".tar")},
            )


def _validation_examples(archive: Path) -> _Examples:
    """Reads the archive of images; TFDS lists the labels in the order of the images' names."""
    with tarfile.open(archive, "r:") as tar:
        names = sorted(tar.getnames())
    labels_file = tfds.core.tfds_path(imagenet_common._VALIDATION_LABELS_FNAME)
    labels = dict(zip(names, labels_file.read_text().split(), strict=False))
    for name, file in _members(archive.open("rb")):
        if name not in labels:
            raise UserError(
                f"{archive.name} contains more than the {len(labels):,} validation images; "
                "download it again"
            )
        yield name, {"file_name": name, "image": file.read(), "label": labels[name]}


def _members(file: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
    """Yields the name and content of each file in a tar archive, and closes the archive."""
    with file, tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if member.isfile():
                content = tar.extractfile(member)
                assert content is not None, f"{member.name} is a file without content"
                yield member.name, content


def _as_rgb_jpeg(name: str, data: bytes) -> bytes:
    """Converts ImageNet's 22 CMYK JPEGs and its one PNG; returns other files unchanged."""
    if name not in stock.CMYK_IMAGES and name not in stock.PNG_IMAGES:
        return data
    buffer = io.BytesIO()
    try:
        Image.open(io.BytesIO(data)).convert("RGB").save(
            buffer, "JPEG", quality=100, subsampling="4:2:0"
        )
    except OSError as error:
        raise UserError(
            f"{TRAIN}: {name} can't be decoded ({error}); download the archive again"
        ) from error
    return buffer.getvalue()
