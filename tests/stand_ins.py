"""Runs a program with small archives in place of the data sets' own.

    python -m stand_ins FOLDER PROGRAM [arguments]

FOLDER holds the archives of each data set in a folder named after it; PROGRAM is a module or the
path of a script.
"""

import dataclasses
import operator
import runpy
import sys
import types
from pathlib import Path

import tensorflow_datasets as tfds
from small_archives import SMALL, UNREACHABLE, Small

from randmix.data import catalog, imagenet

IMAGENET_TRAIN, IMAGENET_TEST = 8, 4


def install(folder: Path) -> None:
    """Makes this process's builders and catalog expect those archives."""
    patch = types.SimpleNamespace(setattr=setattr, setitem=operator.setitem)
    for name in SMALL:
        files = {file.name: file.read_bytes() for file in (folder / name).iterdir()}
        Small(name, files, {}).install(patch, UNREACHABLE)
    imagenet.Imagenet2012.url_infos = {
        file.name: tfds.download.checksums.UrlInfo(file.stat().st_size, "", file.name)
        for file in (folder / "imagenet2012").iterdir()
    }
    catalog.DATA_SETS["imagenet2012"] = dataclasses.replace(
        catalog.get("imagenet2012"), train_examples=IMAGENET_TRAIN, test_examples=IMAGENET_TEST
    )


if __name__ == "__main__":
    _, archives, program, *arguments = sys.argv
    install(Path(archives))
    sys.argv = [program, *arguments]
    if program.endswith(".py"):
        sys.path.insert(0, str(Path(program).parent))
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
