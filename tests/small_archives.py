"""Small archives in the original formats, in place of the data sets' own."""

import dataclasses
import gzip
import hashlib
import io
import struct
import tarfile

import numpy as np
import tensorflow_datasets as tfds

from randmix.data import builders, catalog

TRAIN, TEST = 12, 5
UNREACHABLE = "http://127.0.0.1:9"  # the discard port: refused at once


def url_info(data, name):
    return tfds.download.checksums.UrlInfo(
        size=len(data), checksum=hashlib.sha256(data).hexdigest(), filename=name
    )


def idx(array):
    """The IDX format as its web page describes it."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@dataclasses.dataclass
class Small:
    """A data set with small archives in place of its own."""

    name: str
    files: dict[str, bytes]
    truth: dict[str, dict[str, np.ndarray]]

    def write(self, directory):
        directory.mkdir(parents=True, exist_ok=True)
        for name, data in self.files.items():
            (directory / name).write_bytes(data)
        return directory

    def install(self, monkeypatch, base_url):
        """Makes the builder and the catalog expect these archives under ``base_url``."""
        infos = {f"{base_url}/{name}": url_info(data, name) for name, data in self.files.items()}
        monkeypatch.setattr(builders.BUILDERS[self.name], "url_infos", infos)
        small = dataclasses.replace(
            catalog.get(self.name), train_examples=TRAIN, test_examples=TEST
        )
        monkeypatch.setitem(catalog.DATA_SETS, self.name, small)


def small_mnist(name="mnist"):
    rng = np.random.default_rng(0)
    files, truth = {}, {}
    for split, prefix, n in (("train", "train", TRAIN), ("test", "t10k", TEST)):
        images, labels = (
            rng.integers(0, 256, (n, 28, 28), np.uint8),
            rng.integers(0, 10, n, np.uint8),
        )
        files[f"{prefix}-images-idx3-ubyte.gz"] = gzip.compress(idx(images))
        files[f"{prefix}-labels-idx1-ubyte.gz"] = gzip.compress(idx(labels))
        truth[split] = {"image": images[..., None], "label": labels}
    return Small(name, files, truth)


def small_cifar(name):
    """CIFAR's binary format: label bytes (CIFAR-100: coarse, fine), then colour planes (RGB)."""
    rng = np.random.default_rng(1)
    train, test = (
        rng.integers(0, 256, (TRAIN, 32, 32, 3), np.uint8),
        rng.integers(0, 256, (TEST, 32, 32, 3), np.uint8),
    )
    labels = {
        "train": rng.integers(0, 10, TRAIN, np.uint8),
        "test": rng.integers(0, 10, TEST, np.uint8),
    }

    def records(images, labels):
        extra = b"\x07" if name == "cifar100" else b""
        return b"".join(
            extra
            + bytes([label])
            + image[..., 0].tobytes()
            + image[..., 1].tobytes()
            + image[..., 2].tobytes()
            for image, label in zip(images, labels, strict=True)
        )

    if name == "cifar10":
        folder, archive = "cifar-10-batches-bin", "cifar-10-binary.tar.gz"
        members = {
            f"data_batch_{k + 1}.bin": records(part, part_labels)
            for k, (part, part_labels) in enumerate(
                zip(np.array_split(train, 5), np.array_split(labels["train"], 5), strict=True)
            )
        }
        members |= {"test_batch.bin": records(test, labels["test"])}
        members |= {
            "batches.meta.txt": "\n".join(f"class {k}" for k in range(10)).encode() + b"\n\n"
        }
    else:
        folder, archive = "cifar-100-binary", "cifar-100-binary.tar.gz"
        members = {
            "train.bin": records(train, labels["train"]),
            "test.bin": records(test, labels["test"]),
        }
        members |= {
            "coarse_label_names.txt": "\n".join(f"group {k}" for k in range(20)).encode() + b"\n"
        }
        members |= {
            "fine_label_names.txt": "\n".join(f"class {k}" for k in range(100)).encode() + b"\n"
        }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for member, data in members.items():
            header = tarfile.TarInfo(f"{folder}/{member}")
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    truth = {
        "train": {"image": train, "label": labels["train"]},
        "test": {"image": test, "label": labels["test"]},
    }
    return Small(name, {archive: buffer.getvalue()}, truth)


SMALL = {
    "mnist": small_mnist,
    "fashion_mnist": lambda: small_mnist("fashion_mnist"),
    "cifar10": lambda: small_cifar("cifar10"),
    "cifar100": lambda: small_cifar("cifar100"),
}


def in_one_order(arrays):
    """Examples as sorted bytes: TFDS shuffles, so only the set of them can be compared."""
    pairs = zip(arrays["image"], arrays["label"], strict=True)
    return sorted(image.tobytes() + bytes([label]) for image, label in pairs)
