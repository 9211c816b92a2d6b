"""scikit-learn's 1,797 handwritten digits: their values, their split and their order.

The file is read from the installed package, since importing scikit-learn takes seconds and reading
the file 30 ms.
"""

import functools
import hashlib
import importlib.util
from pathlib import Path

import numpy as np

# Rows per class in the test split: 10 x 36 = 360 of 1,797.
TEST_EXAMPLES_PER_CLASS = 36


def load(split: str) -> dict[str, np.ndarray]:
    """Reads a split in the order in which TFDS stores it.

    Args:
        split: 'train' or 'test'.

    Returns:
        {"image": [N, 8, 8, 1] uint8 in 0..255, "label": [N] int32}.
    """
    values, labels = _read()
    order = functools.partial(_tfds_hash, split)
    rows = np.array(sorted(split_rows(labels)[split].tolist(), key=order))
    return {"image": to_pixels(values[rows])[..., None], "label": labels[rows]}


def examples(split: str) -> list[tuple[int, np.ndarray, int]]:
    """Rows of scikit-learn's arrays, images [8, 8] uint8 and labels of a split, by row."""
    values, labels = _read()
    pixels = to_pixels(values)
    return [(row, pixels[row], int(labels[row])) for row in split_rows(labels)[split].tolist()]


def to_pixels(values: np.ndarray) -> np.ndarray:
    """Maps ink counts to pixels: v -> 255 v / 16, rounded half up.

    Args:
        values: integers in 0..16, any shape.

    Returns:
        uint8 of the same shape; 0 maps to 0 and 16 to 255, the full range as in other data sets.

    >>> to_pixels(np.array([0, 8, 16]))
    array([  0, 128, 255], dtype=uint8)
    """
    return ((np.asarray(values).astype(np.int32) * 255 + 8) // 16).astype(np.uint8)


def split_rows(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of scikit-learn's arrays in each split, ascending.

    In each class the 36 rows whose row number, written in decimal, has the smallest SHA-256 form
    the test split. A random generator would tie the split to a library's version; this rule can be
    reproduced in any language.

    Args:
        labels: [N] integer classes in scikit-learn's order.

    Returns:
        {"train": [N - 360] int64, "test": [360] int64}.
    """
    rank = np.argsort([hashlib.sha256(str(row).encode()).hexdigest() for row in range(len(labels))])
    by_class = [rank[labels[rank] == k][:TEST_EXAMPLES_PER_CLASS] for k in np.unique(labels)]
    test = np.sort(np.concatenate(by_class))
    return {"train": np.setdiff1d(np.arange(len(labels)), test), "test": test}


def _read() -> tuple[np.ndarray, np.ndarray]:
    """Ink counts [1797, 8, 8] and labels [1797], both int32, of `sklearn.datasets.load_digits`."""
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None, "scikit-learn is a dependency"
    assert spec.origin is not None
    file = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(file, delimiter=",", dtype=np.int32)
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1]


def _tfds_hash(split: str, row: int) -> int:
    """TFDS's hash of an example's key, by which it sorts a split."""
    return int(hashlib.md5(f"{split}{row}".encode()).hexdigest(), 16)
