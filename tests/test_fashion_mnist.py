"""The real Fashion-MNIST, from the files of Debian's package dataset-fashion-mnist."""

import gzip
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from small_archives import in_one_order

from randmix.data import catalog

pytestmark = pytest.mark.slow

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
# SHA-256 of the test labels in the order of TFDS's own class, prepared with TensorFlow.
TEST_LABELS = "85e2be1b62985fe36ef293a029e9559c3f6822643be932622c5042b8a1654a94"


def test_the_real_fashion_mnist(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "randmix", "prepare", "fashion_mnist"),
            *(f"--data_dir={tmp_path}", f"--manual_dir={DEBIAN}"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(
        f"fashion_mnist: 60,000 train and 10,000 test examples in {tmp_path}/fashion_mnist/3.0.1 ("
    )

    def content(name, header):
        return np.frombuffer(gzip.decompress((DEBIAN / name).read_bytes())[header:], np.uint8)

    test = catalog.load("fashion_mnist", "test", tmp_path)
    images = content("t10k-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28, 1)
    labels = content("t10k-labels-idx1-ubyte.gz", 8)
    assert in_one_order(test) == in_one_order({"image": images, "label": labels})
    order = hashlib.sha256(test["label"].astype("<i4").tobytes()).hexdigest()
    assert order == TEST_LABELS
    train = tfds.data_source("fashion_mnist", data_dir=tmp_path, split="train", download=False)
    assert len(train) == 60_000
    images = {
        image.tobytes() for image in content("train-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
    }
    assert all(train[i]["image"].tobytes() in images for i in range(0, 60_000, 997))
