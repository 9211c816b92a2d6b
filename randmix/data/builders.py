"""TFDS builders that need no TensorFlow.

The stock builders open their archives with ``tf.io.gfile`` and encode NumPy images with
``tf.image.encode_png``. The classes here keep the stock name, version, features, splits, keys and
checksums, but open the archives with the standard library and yield PIL images, which TFDS encodes
without TensorFlow. They therefore write the same records as the stock builders, once decoded, and
``tfds.data_source`` reads them without any code of this project.

`Digits` is this project's own builder, for the images included in scikit-learn.
"""

import gzip
import hashlib
import tarfile
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.image_classification import cifar, mnist

from randmix.data.imagenet import Imagenet2012

# Rows per class of scikit-learn's digits in the test split: 10 x 36 = 360 of 1,797.
DIGITS_TEST_EXAMPLES_PER_CLASS = 36


def digits_to_pixels(values: np.ndarray) -> np.ndarray:
    """Maps ink counts of scikit-learn's digits to pixels: v -> 255 v / 16, rounded half up.

    Args:
        values: integers in 0..16, any shape.

    Returns:
        uint8 of the same shape; 0 maps to 0 and 16 to 255, the full range as in other data sets.

    >>> digits_to_pixels(np.array([0, 8, 16]))
    array([  0, 128, 255], dtype=uint8)
    """
    return ((np.asarray(values).astype(np.int32) * 255 + 8) // 16).astype(np.uint8)


def pixels_to_digits(pixels: np.ndarray) -> np.ndarray:
    """Exact inverse of `digits_to_pixels`: uint8 pixels to int32 ink counts in 0..16.

    >>> pixels_to_digits(np.array([0, 128, 255], np.uint8))
    array([ 0,  8, 16], dtype=int32)
    """
    return (np.asarray(pixels).astype(np.int32) * 16 + 127) // 255


def digits_test_rows(labels: np.ndarray) -> np.ndarray:
    """Rows of scikit-learn's digits that form the test split.

    In each class these are the 36 rows whose row number, written in decimal, has the smallest
    SHA-256. A random generator would tie the split to a library's version; this rule can be
    reproduced in any language.

    Args:
        labels: [N] integer classes in scikit-learn's order.

    Returns:
        [10 * 36] int64 row numbers, ascending.
    """
    rank = np.argsort([hashlib.sha256(str(row).encode()).hexdigest() for row in range(len(labels))])
    by_class = [rank[labels[rank] == k][:DIGITS_TEST_EXAMPLES_PER_CLASS] for k in np.unique(labels)]
    return np.sort(np.concatenate(by_class))


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
        from sklearn.datasets import load_digits
        from sklearn.utils import Bunch

        digits = cast(Bunch, load_digits())  # a tuple only with return_X_y
        images, labels = digits_to_pixels(digits.images), digits.target
        test = digits_test_rows(labels)
        train = np.setdiff1d(np.arange(len(labels)), test)
        return {
            "train": self._generate_examples(images, labels, train),
            "test": self._generate_examples(images, labels, test),
        }

    def _generate_examples(self, images, labels, rows):
        for row in rows.tolist():
            yield (
                row,
                {"image": Image.fromarray(images[row]), "label": int(labels[row]), "index": row},
            )


class _FromIdx:
    """Replaces the stock reader of the MNIST family's four IDX archives."""

    url_infos: dict[str, Any] | None

    def _split_generators(self, dl_manager):
        assert self.url_infos is not None
        archives = dl_manager.download([*self.url_infos])
        paths = {
            url.rsplit("/", 1)[1]: path for url, path in zip(self.url_infos, archives, strict=True)
        }
        return {
            split: self._generate_examples(
                paths[f"{prefix}-images-idx3-ubyte.gz"], paths[f"{prefix}-labels-idx1-ubyte.gz"]
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


class _FromTar:
    """Replaces the stock reader of the CIFAR family's binary archive."""

    info: tfds.core.DatasetInfo
    url_infos: dict[str, Any] | None
    _cifar_info: cifar.CifarInfo

    def _split_generators(self, dl_manager):
        layout = self._cifar_info
        assert self.url_infos is not None
        assert isinstance(self.info.features, tfds.features.FeaturesDict)
        (url,) = self.url_infos
        archive = dl_manager.download(url)
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
