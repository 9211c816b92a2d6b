"""Arrays and a module of functions, as a user may have them."""

import sys

import numpy as np

from randmix.data import own


def arrays(seed=0, shape=(12, 10, 3)):
    rng = np.random.default_rng(seed)
    return {
        split: (rng.integers(0, 256, (n, *shape), np.uint8), rng.integers(0, 3, n))
        for split, n in (("train", 40), ("test", 16))
    }


MODULE = """
import numpy as np

def make():
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 12, 12, 3), np.uint8), np.arange(40) % 3
    return {"train": (images, labels), "test": (images[:16], labels[:16]), "classes": [*"abc"]}

def short():
    return {"train": 3}

def broken():
    raise KeyError("no such file")

def leaves():
    raise SystemExit(3)

def needs(argument):
    pass
"""


def write_module(folder, monkeypatch):
    """Writes the module and two that can't be imported, and makes the folder the working one."""
    (folder / "my_data.py").write_text(MODULE)
    (folder / "divides.py").write_text("x = 1 / 0")
    (folder / "torn.py").write_text("def make(:")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    sys.modules.pop("my_data", None)
    own._called.cache_clear()
