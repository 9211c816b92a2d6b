"""TFDS builders that need no TensorFlow.

The stock builders open their archives with ``tf.io.gfile`` and encode NumPy images with
``tf.image.encode_png``. The classes here keep the stock name, version, features, splits, keys and
checksums, but open the archives with the standard library and yield PIL images, which TFDS encodes
without TensorFlow. They therefore write the same records as the stock builders, once decoded, and
``tfds.data_source`` reads them without any code of this project.

`Digits` is this project's own builder, for the images that come with scikit-learn.
"""

import gzip
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.image_classification import cifar, mnist

from randmix.data import digits
from randmix.data.imagenet import Imagenet2012


class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """scikit-learn's 1,797 handwritten digits, 8x8 pixels; needs no network."""

    name = "digits"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "The test set of the UCI 'Optical Recognition of Handwritten Digits' as bundled "
                "with scikit-learn: 1,797 images of 8x8 pixels. Ink counts 0..16 are stored as "
                "round(255 v / 16); `index` is the row in scikit-learn's arrays. In each class the "
                "36 rows whose decimal number has the smallest SHA-256 are the test split."
            ),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                    "index": tfds.features.Scalar(np.int64),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80/",
            citation=(
                "@misc{alpaydin1998optical, author={Alpaydin, E. and Kaynak, C.}, year={1998}, "
                "title={Optical Recognition of Handwritten Digits}, doi={10.24432/C50P49}}"
            ),
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in ("train", "test")}

    def _generate_examples(self, split):
        for row, image, label in digits.examples(split):
            yield row, {"image": Image.fromarray(image), "label": label, "index": row}


class _FromArchives:
    """A builder that reads verified archives instead of downloading them.

    Attributes:
        archives: file name -> path, from ``archives.locate``; set before the data set is prepared.
    """

    archives: Mapping[str, Path]


class _FromIdx(_FromArchives):
    """Replaces the stock reader of the MNIST family's four IDX archives."""

    def _split_generators(self, dl_manager):
        return {
            split: self._generate_examples(
                self.archives[f"{prefix}-images-idx3-ubyte.gz"],
                self.archives[f"{prefix}-labels-idx1-ubyte.gz"],
            )
            for split, prefix in (("train", "train"), ("test", "t10k"))
        }

    def _generate_examples(self, images_path, labels_path):
        pairs = zip(read_idx(images_path), read_idx(labels_path), strict=True)
        for index, (image, label) in enumerate(pairs):
            yield index, {"image": Image.fromarray(image), "label": int(label)}


class MNIST(_FromIdx, mnist.MNIST, skip_registration=True):
    """MNIST, with TFDS's name, version and records."""

    name = "mnist"
    url_infos = mnist.MNIST.url_infos  # TFDS finds them only next to the stock class


class FashionMNIST(_FromIdx, mnist.FashionMNIST, skip_registration=True):
    """Fashion-MNIST, with TFDS's name, version and records."""

    name = "fashion_mnist"
    url_infos = mnist.FashionMNIST.url_infos


class _FromTar(_FromArchives):
    """Replaces the stock reader of the CIFAR family's binary archive."""

    info: tfds.core.DatasetInfo
    _cifar_info: cifar.CifarInfo

    def _split_generators(self, dl_manager):
        layout = self._cifar_info
        assert isinstance(self.info.features, tfds.features.FeaturesDict)
        (archive,) = self.archives.values()
        with tarfile.open(archive) as tar:
            for key, member in zip(layout.label_keys, layout.label_files, strict=True):
                names = _read_member(tar, layout.prefix + member).decode().split("\n")
                feature = self.info.features[key]
                assert isinstance(feature, tfds.features.ClassLabel)
                feature.names = [name for name in names if name]
        return {
            "train": self._generate_examples("train_", archive, layout.train_files),
            "test": self._generate_examples("test_", archive, layout.test_files),
        }

    def _generate_examples(self, split_prefix, archive, members):
        layout = self._cifar_info
        index = 0
        for member in members:
            for labels, image in read_cifar(
                archive, layout.prefix + member, len(layout.label_keys)
            ):
                example = {"id": f"{split_prefix}{index:05d}", "image": Image.fromarray(image)}
                yield index, example | dict(zip(layout.label_keys, labels.tolist(), strict=True))
                index += 1


class Cifar10(_FromTar, cifar.Cifar10, skip_registration=True):
    """CIFAR-10, with TFDS's name, version and records."""

    name = "cifar10"
    url_infos = cifar.Cifar10.url_infos


class Cifar100(_FromTar, cifar.Cifar100, skip_registration=True):
    """CIFAR-100, with TFDS's name, version and records: `label` is the fine label."""

    name = "cifar100"
    url_infos = cifar.Cifar100.url_infos


BUILDERS = {cls.name: cls for cls in (Digits, MNIST, FashionMNIST, Cifar10, Cifar100, Imagenet2012)}


def read_idx(path) -> np.ndarray:
    """Reads a gzipped IDX file of bytes into a uint8 array of the file's shape.

    The format is two zeros, type 8, the rank, big-endian 32-bit sizes, then the data.
    """
    with gzip.open(path) as file:
        data = file.read()
    rank = data[3]
    shape = np.frombuffer(data, ">i4", count=rank, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def read_cifar(archive, member: str, num_labels: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields labels [num_labels] and images [32, 32, 3], both uint8, from CIFAR's binary archive.

    Each record consists of its label bytes and the red, green and blue planes of 32x32 bytes.
    """
    with tarfile.open(archive) as tar:
        data = np.frombuffer(_read_member(tar, member), np.uint8)
    for record in data.reshape(-1, num_labels + 3 * 32 * 32):
        planes = record[num_labels:].reshape(3, 32, 32)
        yield record[:num_labels], np.ascontiguousarray(planes.transpose(1, 2, 0))


def _read_member(tar: tarfile.TarFile, member: str) -> bytes:
    file = tar.extractfile(member)
    assert file is not None, f"{member} is not a file"  # the archive's checksum is right
    return file.read()
