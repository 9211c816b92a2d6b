"""TFDS's ImageNet (ILSVRC 2012), prepared without TensorFlow.

The stock builder reads its archives with ``tf.io.gfile`` and re-encodes 23 images with TensorFlow's
codecs. The class here keeps its name, version, features, splits, keys and texts, but reads the
archives with the standard library, or the extracted images, and re-encodes with Pillow: the same
encoder with the same settings, whose input differs by about one level.
"""

import dataclasses
import io
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder as stock

from randmix.data import imagefolder, imagenet_tree, photographs
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

    # One of them is set before the data set is prepared.
    archives: Mapping[str, Path]  # file name -> path
    files: imagefolder.Splits | None = None  # from `imagenet_tree.find_all`

    def _split_generators(self, dl_manager):
        if self.files is not None:
            return {split: _examples_of_files(by_class) for split, by_class in self.files.items()}
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


class ImagenetSubset(imagefolder.ImageFolder, skip_registration=True):
    """A part of ImageNet, whose classes are numbered in the order of their synset ids.

    Its TFDS config is the part's name. The metadata contain the numbers of images per class, and
    what ImageNet has and the part lacks.
    """

    name = "imagenet2012"
    VERSION = stock.Builder.VERSION

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description="A part of ImageNet (ILSVRC 2012): some of its classes or images.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(names=list(self._files["train"])),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://image-net.org/",
            metadata=tfds.core.MetadataDict(
                files=imagefolder.fingerprint(self._files),
                images={
                    split: {synset: len(files) for synset, files in by_class.items()}
                    for split, by_class in self._files.items()
                },
                lacking=imagenet_tree.lacking(self._files),
            ),
        )

    def _generate_examples(self, classes):
        return _examples_of_files(classes)


def _training_examples(archive: Path) -> _Examples:
    """Reads the outer archive, with an inner archive of images per class, such as n01440764.tar."""
    for class_name, class_file in _members(archive.open("rb")):
        for name, file in _members(class_file):
            yield _example(name, file.read(), class_name.removesuffix(".tar"))


def _validation_examples(archive: Path) -> _Examples:
    """Reads the archive of images; TFDS lists the labels in the order of the images' names."""
    synsets = imagenet_tree.validation_synsets()
    for name, file in _members(archive.open("rb")):
        if Path(name).stem not in synsets:
            raise UserError(
                f"{archive.name} contains {name}, which is not one of the {len(synsets):,} "
                "validation images; download it again"
            )
        yield _example(name, file.read(), synsets[Path(name).stem])


def _examples_of_files(by_class: Mapping[str, Sequence[Path]]) -> _Examples:
    """Reads extracted images; the keys, and so the order, are those of the archives' images."""
    for synset, files in by_class.items():
        for file in files:
            try:
                data = file.read_bytes()
            except OSError as error:
                raise UserError(
                    f"{file} can't be read ({error.strerror}); remove or replace it"
                ) from error
            yield _example(file.name, data, synset)


def _example(name: str, data: bytes, synset: str) -> tuple[str, dict[str, Any]]:
    return name, {"file_name": name, "image": _as_rgb_jpeg(name, data), "label": synset}


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
    except photographs.BAD_IMAGE as error:
        raise UserError(
            f"{name} can't be decoded ({photographs.reason(error)}); get ImageNet's copy again"
        ) from error
    return buffer.getvalue()
