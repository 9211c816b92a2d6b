"""The catalog: its facts about the data sets, and reading them, with the digits as example."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import types

import chex
import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from randmix.data import builders, catalog, decoded, digits, prepare, records
from randmix.errors import UserError

# SHA-256 of the training images and labels in the order of `load`.
DIGITS_TRAIN = "febb5c638f49a6c35b759fa7e16ac10bbe5b74be7500c9b9dc21caedb67501b3"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A data directory with digits."""
    path = tmp_path_factory.mktemp("tfds")
    assert not catalog.is_prepared("digits", path)
    prepare.prepare("digits", path, progress=False)
    assert catalog.is_prepared("digits", path)
    return path


@pytest.fixture
def from_files(monkeypatch):
    """Makes `load` read the digits from prepared files, as any other set."""
    other = dataclasses.replace(catalog.get("digits"), embedded=False)
    monkeypatch.setitem(catalog.DATA_SETS, "digits", other)


@pytest.fixture
def damaged_dir(data_dir, tmp_path, from_files):
    """A copy of the data directory to damage, and the digits' directory in it."""
    shutil.copytree(data_dir, tmp_path, dirs_exist_ok=True)
    return tmp_path, tmp_path / "digits" / "1.0.0"


def digest(*arrays):
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()


@pytest.mark.parametrize("data_set", catalog.DATA_SETS.values(), ids=lambda data_set: data_set.name)
def test_the_catalog_agrees_with_the_builders(data_set, tmp_path):
    info = builders.BUILDERS[data_set.name](data_dir=tmp_path).info
    assert str(info.version) == data_set.version
    assert info.features["image"].shape == (
        (None, None, 3) if data_set.streamed else data_set.image_shape
    )
    assert info.features["label"].num_classes == data_set.num_classes
    assert builders.BUILDERS.keys() == catalog.DATA_SETS.keys()


@pytest.mark.parametrize(
    ("name", "stock"),
    [
        ("mnist", "MNIST"),
        ("fashion_mnist", "FashionMNIST"),
        ("cifar10", "Cifar10"),
        ("cifar100", "Cifar100"),
    ],
)
def test_the_builders_are_the_stock_ones_to_tfds(name, stock):
    ours, theirs = builders.BUILDERS[name], getattr(tfds.image_classification, stock)
    assert (ours.name, ours.VERSION, ours.url_infos) == (
        theirs.name,
        theirs.VERSION,
        theirs.url_infos,
    )
    assert len(ours.url_infos) in (1, 4)
    assert tfds.builder_cls(name) is theirs  # the registry still has the stock class


def test_an_unknown_name_gets_the_nearest_and_the_list():
    with pytest.raises(
        UserError,
        match=r"'fashon_mnist'; there are: digits, mnist.*; did you mean 'fashion_mnist'\?$",
    ):
        catalog.get("fashon_mnist")
    with pytest.raises(UserError, match=r"'svhn'; there are.*imagefolder/NAME"):
        catalog.get("svhn")


def test_the_default_data_dir_is_tfdss(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert records.default_data_dir() == tmp_path
    assert str(records.default_data_dir()) == tfds.core.constants.get_default_data_dir()
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(records.default_data_dir()) == tfds.core.constants.get_default_data_dir()


@pytest.mark.parametrize("split", catalog.SPLITS)
def test_digits_are_scikit_learns(data_dir, split):
    arrays = catalog.load("digits", split, data_dir)
    source = tfds.data_source("digits", data_dir=data_dir, split=split, download=False)
    rows = [example["index"] for example in source.__getitems__(range(len(source)))]
    truth = load_digits()
    assert arrays["image"].dtype == np.uint8
    assert arrays["label"].dtype == np.int32
    assert arrays["image"].flags.c_contiguous
    assert arrays["image"].shape == (catalog.get("digits").examples(split), 8, 8, 1)
    np.testing.assert_array_equal(np.rint(arrays["image"][..., 0] * (16 / 255)), truth.images[rows])
    np.testing.assert_array_equal(arrays["label"], truth.target[rows])


@pytest.mark.parametrize("split", catalog.SPLITS)
def test_digits_need_no_files_and_are_those_of_the_files(data_dir, split, request):
    embedded = catalog.load("digits", split, "/nowhere")
    request.getfixturevalue("from_files")
    stored = catalog.load("digits", split, data_dir)
    for name, array in embedded.items():
        assert array.dtype == stored[name].dtype
        assert array.flags.c_contiguous
        np.testing.assert_array_equal(array, stored[name])


def test_digits_are_split_once_and_by_class():
    labels = load_digits().target
    test = digits.split_rows(labels)["test"]
    assert np.bincount(labels[test]).tolist() == [36] * 10
    assert np.unique(test).size == 360
    # Every number published on the digits depends on this split: it must never change.
    assert test[:8].tolist() == [8, 9, 39, 46, 47, 49, 50, 51]
    assert (
        digest(test.astype("<i8"))
        == "445abd84043940a5f4eecd660a6055eef1555a366cb66543abb228ffc3092082"
    )


def test_the_order_is_the_same_on_every_machine(data_dir):
    train = catalog.load("digits", "train", data_dir)
    assert digest(train["image"], train["label"].astype("<i4")) == DIGITS_TRAIN


def test_the_order_does_not_depend_on_the_number_of_shards(data_dir, tmp_path, from_files):
    directory = prepare.prepare("digits", tmp_path, num_shards=3, progress=False)
    assert len(list(directory.glob("digits-train.array_record-*-of-00003"))) == 3
    for split in catalog.SPLITS:
        one, three = (
            catalog.load("digits", split, data_dir),
            catalog.load("digits", split, tmp_path),
        )
        np.testing.assert_array_equal(one["image"], three["image"])
        np.testing.assert_array_equal(one["label"], three["label"])


def test_an_unprepared_set_names_the_command(monkeypatch, tmp_path):
    with pytest.raises(
        UserError, match=r"`python -m randmix prepare mnist --data_dir='\S+/with space'`$"
    ):
        catalog.load("mnist", "train", tmp_path / "with space")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"run `python -m randmix prepare mnist`$"):
        catalog.load("mnist", "train")


def test_an_unknown_split_is_refused(data_dir):
    with pytest.raises(UserError, match="digits has no split 'validation'; it has: train, test"):
        catalog.load("digits", "validation", data_dir)


def test_a_data_dir_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match=r"cannot prepare digits in .*Not a directory.*; choose another data_dir$"
    ):
        prepare.prepare("digits", tmp_path / "file")


def test_tfrecords_get_the_conversion_command(damaged_dir):
    data_dir, folder = damaged_dir
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    assert not catalog.is_prepared("digits", data_dir)
    command = f"`python -m randmix prepare tfds/digits:1.0.0 --data_dir={data_dir}`"
    with pytest.raises(UserError, match="holds tfrecord files") as error:
        catalog.load("digits", "train", data_dir)
    assert command in str(error.value)
    (folder / "dataset_info.json").write_text(
        json.dumps(info | {"fileFormat": "tfrecord", "alternativeFileFormats": ["array_record"]})
    )
    assert catalog.load("digits", "test", data_dir)["label"].shape == (360,)  # converted in place


def test_the_digits_classes_are_those_of_the_prepared_files(data_dir, tmp_path):
    builder = tfds.builder_from_directory(catalog.get("digits").directory(data_dir))
    assert catalog.class_names("digits", tmp_path / "empty") == builder.info.features["label"].names
    unprepared = catalog.describe(catalog.get("mnist"), tmp_path / "empty")
    assert unprepared == {
        "name": "mnist",
        "version": "3.0.1",
        "image_shape": [28, 28, 1],
        "num_classes": 10,
        "train_examples": 60_000,
        "test_examples": 10_000,
        "classes": None,
    }


@pytest.mark.parametrize("how", ["missing", "cut", "flipped"])
def test_damaged_records_are_noticed(damaged_dir, how):
    data_dir, folder = damaged_dir
    (records,) = folder.glob("digits-train.array_record-*")
    data = bytearray(records.read_bytes())
    data[len(data) // 3] ^= 4
    {
        "missing": records.unlink,
        "cut": lambda: records.write_bytes(data[: len(data) // 2]),
        "flipped": lambda: records.write_bytes(data),
    }[how]()
    with pytest.raises(UserError, match=r"1\.0\.0 is damaged .*; remove it and prepare it again"):
        catalog.load("digits", "train", data_dir)


def test_a_wrong_number_of_examples_is_noticed(data_dir, monkeypatch, from_files):
    larger = dataclasses.replace(catalog.get("digits"), train_examples=1438)
    monkeypatch.setitem(catalog.DATA_SETS, "digits", larger)
    with pytest.raises(UserError, match="found 1437 examples in train, expected 1438"):
        catalog.load("digits", "train", data_dir)


@pytest.mark.parametrize("how", ["cut", "flipped", "other", "newer records"])
def test_images_are_decoded_once_unless_their_file_is_damaged(damaged_dir, monkeypatch, how):
    data_dir, folder = damaged_dir
    file = folder / "decoded-test.npz"
    file.unlink(missing_ok=True)  # as another test may have left it
    first = catalog.load("digits", "test", data_dir)
    with monkeypatch.context() as only:
        only.setattr(catalog.records, "read_arrays", None)  # isn't called
        again = catalog.load("digits", "test", data_dir)
    chex.assert_trees_all_equal(again, first)
    assert again["image"].flags.writeable
    assert again["image"].flags.c_contiguous

    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 4
    (stored,) = folder.glob("digits-test.array_record-*")
    {
        "cut": lambda: file.write_bytes(data[: len(data) // 2]),
        "flipped": lambda: file.write_bytes(data),
        "other": lambda: np.savez(file, image=first["image"]),
        "newer records": lambda: os.utime(stored, ns=(0, 0)),
    }[how]()
    before = file.read_bytes()
    chex.assert_trees_all_equal(catalog.load("digits", "test", data_dir), first)
    assert file.read_bytes() != before  # written anew
    assert not [*folder.glob("*.tmp")]


def test_a_nearly_full_disk_is_left_alone(damaged_dir, monkeypatch):
    data_dir, folder = damaged_dir
    file = folder / "decoded-test.npz"
    arrays = 360 * (8 * 8 + 4)  # bytes; the file also holds a few hundred about the records
    for free, kept in ((9 * arrays, False), (11 * arrays, True)):
        file.unlink(missing_ok=True)
        usage = types.SimpleNamespace(free=free)
        monkeypatch.setattr(decoded.shutil, "disk_usage", lambda path, usage=usage: usage)
        assert len(catalog.load("digits", "test", data_dir)["label"]) == 360
        assert file.exists() == kept


def test_a_folder_that_cannot_be_written_is_read(damaged_dir):
    data_dir, folder = damaged_dir
    file = folder / "decoded-test.npz"
    file.unlink(missing_ok=True)
    file.mkdir()  # so that no file can take its name
    assert len(catalog.load("digits", "test", data_dir)["label"]) == 360
    assert not [*folder.glob("*.tmp")]


def test_importing_and_loading_digits_is_light_and_quiet():
    program = """
import sys
from randmix.data import catalog
catalog.load("digits", "train")
heavy = {"tensorflow_datasets", "jax", "grain", "sklearn", "randmix.data.prepare"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_loading_files_is_quiet_and_without_tensorflow(data_dir):
    for file in data_dir.glob("digits/*/decoded-*.npz"):
        file.unlink()
    program = f"""
import dataclasses, sys
from randmix.data import catalog
catalog.DATA_SETS["digits"] = dataclasses.replace(catalog.get("digits"), embedded=False)
catalog.load("digits", "train", {str(data_dir)!r})
assert "tensorflow_datasets" in sys.modules
assert not {{"tensorflow", "jax", "grain"}} & sys.modules.keys()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
