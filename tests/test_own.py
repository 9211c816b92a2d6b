"""Data sets of the user's own: arrays, .npz files and functions, kept as they were or refused."""

import os
import re

import numpy as np
import own_data
import pytest
import small
from own_data import arrays

from randmix import data
from randmix.data import catalog, own
from randmix.errors import UserError
from randmix.training import loop, runs


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A folder with a module of functions, which is the working folder."""
    own_data.write_module(tmp_path, monkeypatch)
    return tmp_path


def test_arrays_are_kept_as_they_were(tmp_path):
    data.from_arrays("mine", **arrays(), classes=["cat", "dog", "owl"], data_dir=tmp_path)
    for split, (images, labels) in arrays().items():
        got = catalog.load("arrays/mine", split, tmp_path)
        np.testing.assert_array_equal(got["image"], images)
        np.testing.assert_array_equal(got["label"], labels)
        assert (got["image"].dtype, got["label"].dtype) == (np.uint8, np.int32)
    assert catalog.class_names("arrays/mine", tmp_path) == ["cat", "dog", "owl"]
    assert catalog.get("arrays/mine", tmp_path).image_shape == (12, 10, 3)


def test_a_name_is_given_once(tmp_path):
    assert data.from_arrays("mine", **arrays(), data_dir=tmp_path) == "arrays/mine"
    before = (tmp_path / "arrays/mine.npz").stat().st_mtime_ns
    data.from_arrays("mine", **arrays(), data_dir=tmp_path)
    assert (tmp_path / "arrays/mine.npz").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"arrays/mine.npz holds other arrays; choose another name"):
        data.from_arrays("mine", **arrays(seed=1), data_dir=tmp_path)
    both = arrays()
    both["test"] = both["test"][0], both["test"][1][::-1]
    with pytest.raises(UserError, match=r"arrays/mine.npz holds other arrays; choose another name"):
        data.from_arrays("mine", **both, data_dir=tmp_path)
    assert os.listdir(tmp_path / "arrays") == ["mine.npz"]


@pytest.mark.parametrize(
    "members",
    [
        ("train_images", "train_labels", "test_images", "test_labels"),  # MedMNIST's
        ("x_train", "y_train", "x_test", "y_test"),  # Keras's
    ],
)
def test_an_npz_file_of_either_kind_is_read(members, tmp_path):
    both = arrays(shape=(12, 10))  # grey, without an axis of channels
    values = [array for split in ("train", "test") for array in both[split]]
    values[1], values[3] = values[1][:, None], values[3][:, None]  # labels [N, 1]
    np.savez_compressed(tmp_path / "a.npz", **dict(zip(members, values, strict=True)), more=[1])
    name = own.from_npz(tmp_path / "a.npz", "mine", tmp_path)
    got = catalog.load(name, "train", tmp_path)
    assert got["image"].shape == (40, 12, 10, 1)
    np.testing.assert_array_equal(got["image"][..., 0], both["train"][0])
    np.testing.assert_array_equal(got["label"], both["train"][1])


def test_an_npz_file_of_another_kind_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros(3))
    with pytest.raises(UserError, match=r"a.npz: got the arrays images, needed are train_images, "):
        own.from_npz(tmp_path / "a.npz", "mine", tmp_path)
    (tmp_path / "b.npz").write_bytes(b"PK\3\4 no archive")
    for name in ("b.npz", "c.npz"):
        with pytest.raises(
            UserError, match=f"{name} (isn't an intact|can't be read).*; give anoth"
        ):
            own.from_npz(tmp_path / name, "mine", tmp_path)
    (tmp_path / "d.npz").write_text("text")
    np.save(tmp_path / "e.npy", np.zeros(3))
    for name in ("d.npz", "e.npy"):
        with pytest.raises(UserError, match=f"{name} isn't an intact .npz file of numbers; give a"):
            own.from_npz(tmp_path / name, "mine", tmp_path)


def test_no_damaged_bit_of_an_npz_file_is_a_traceback(tmp_path):
    both = arrays(shape=(6, 6))
    members = dict(zip(own._MEMBERS[0], [a for s in both.values() for a in s], strict=True))
    np.savez_compressed(tmp_path / "a.npz", **members)
    data.from_arrays("mine", **both, data_dir=tmp_path)
    rng = np.random.default_rng(0)
    for file, read in (
        (tmp_path / "a.npz", lambda: own.from_npz(tmp_path / "a.npz", "other", tmp_path)),
        (tmp_path / "arrays/mine.npz", lambda: catalog.load("arrays/mine", "train", tmp_path)),
    ):
        whole, messages = file.read_bytes(), []
        for place in rng.integers(0, len(whole), 150):
            content = bytearray(whole)
            content[place] ^= 1 << int(rng.integers(8))
            file.write_bytes(content)
            (tmp_path / "arrays/other.npz").unlink(missing_ok=True)
            try:
                read()
            except UserError as error:
                messages.append(str(error))
        assert len(messages) > 50
        assert not [message for message in messages if "\n" in message]
        file.write_bytes(whole)


def test_an_npz_file_that_was_put_among_ours_is_not_called_damaged(tmp_path):
    (tmp_path / "arrays").mkdir()
    np.savez(tmp_path / "arrays/mine.npz", x_train=np.zeros(3))
    with pytest.raises(
        UserError, match=r"mine.npz wasn't made by randmix; move it elsewhere and r"
    ):
        catalog.get("arrays/mine", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((4, 8, 8, 3))}, r"got images \[4, 8, 8, 3\] float64, allowed are "),
        ({"images": np.zeros((4, 8, 8, 4), np.uint8)}, r"got images \[4, 8, 8, 4\] uint8, allowed"),
        ({"labels": np.arange(3)}, r"got labels \[3\] int64 for 4 images, allowed is one integer"),
        ({"labels": np.arange(4) / 2}, r"got labels \[4\] float64 for 4 images, allowed is one "),
        ({"labels": np.arange(4) - 1}, "got labels from -1 to 2, allowed are one image or more "),
        ({"labels": np.arange(4) + 10**6}, "got labels from 1000000 to 1000003, allowed are one "),
        ({"images": np.zeros((0, 8, 8), np.uint8), "labels": np.arange(0)}, "got no images, allow"),
    ],
)
def test_arrays_of_another_kind_are_refused(change, message, tmp_path):
    good = {"images": np.zeros((4, 8, 8), np.uint8), "labels": np.arange(4)}
    pairs = {"train": tuple((good | change).values()), "test": tuple(good.values())}
    with pytest.raises(UserError, match=f"^arrays/mine, train: {message}"):
        data.from_arrays("mine", **pairs, data_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_splits_that_disagree_are_refused(tmp_path):
    one, other = (arrays(shape=shape)["train"] for shape in ((8, 8, 3), (9, 8, 3)))
    with pytest.raises(UserError, match=r"training images of shape \(8, 8, 3\) and test images of"):
        data.from_arrays("mine", train=one, test=other, data_dir=tmp_path)
    with pytest.raises(UserError, match="got the label 2 and 2 classes, allowed are labels from 0"):
        data.from_arrays("mine", train=one, test=one, classes=["a", "b"], data_dir=tmp_path)
    for classes in ("abc", 3, ["a", "b", "a"]):
        with pytest.raises(
            UserError, match=r"got the classes .*, allowed is a list of distinct na"
        ):
            data.from_arrays("mine", train=one, test=one, classes=classes, data_dir=tmp_path)
    with pytest.raises(UserError, match="train: got a dict, allowed are two arrays"):
        data.from_arrays("mine", train={"image": 1, "label": 2}, test=one, data_dir=tmp_path)
    with pytest.raises(UserError, match="train: got a tuple of 3, allowed are two arrays"):
        data.from_arrays("mine", train=(*one, 3), test=one, data_dir=tmp_path)
    with pytest.raises(UserError, match="train: got arrays of several shapes, allowed is one"):
        data.from_arrays("mine", train=([[1], [1, 2]], [1, 2]), test=one, data_dir=tmp_path)
    with pytest.raises(UserError, match="name: got 'a b', allowed are letters, digits, _ and -"):
        data.from_arrays("a b", train=one, test=one, data_dir=tmp_path)


@pytest.mark.parametrize("place", [0.05, 0.5, 0.97])
def test_a_damaged_file_is_one_line(place, tmp_path):
    data.from_arrays("mine", **arrays(), data_dir=tmp_path)
    file = tmp_path / "arrays" / "mine.npz"
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 255
    file.write_bytes(content)
    with pytest.raises(UserError) as error:
        (_, _) = [catalog.load("arrays/mine", split, tmp_path) for split in catalog.SPLITS]
    assert re.fullmatch(
        r".*mine.npz is damaged \(.*\); remove it and make it again", str(error.value)
    )


def test_a_function_is_called_once(module):
    got = catalog.load("my_data:make", "test")
    images = np.random.default_rng(0).integers(0, 256, (40, 12, 12, 3), np.uint8)
    np.testing.assert_array_equal(got["image"], images[:16])
    assert catalog.class_names("my_data:make") == ["a", "b", "c"]
    assert own._called.cache_info().misses == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "my_data:short",
            'my_data:short returned train, allowed is a dict with "train" and "test"',
        ),
        ("my_data:broken", r"my_data:broken raised KeyError \('no such file'\) in .*, line 13"),
        ("my_data:leaves", r"my_data:leaves raised SystemExit \(3\) in .*my_data.py, line 16"),
        ("my_data:needs", r"my_data:needs raised TypeError \(needs\(\) missing .*'argument'\)$"),
        ("divides:make", r"divides:make raised ZeroDivisionError .* in .*divides.py, line 1$"),
        ("torn:make", r"torn:make raised SyntaxError \(.*\)$"),
    ],
)
def test_a_function_that_fails_is_one_line(name, message, module):
    with pytest.raises(UserError, match=f"^config.data.name: {message}") as error:
        catalog.get(name)
    assert "\n" not in str(error.value)


def test_sorted_arrays_whose_first_part_lacks_classes_are_a_warning(tmp_path, caplog):
    both = {
        split: (images, np.sort(labels)) for split, (images, labels) in arrays().items()
    }  # as in a folder that was read class by class
    data.from_arrays("sorted", **both, data_dir=tmp_path)
    keys = {"data__name": "arrays/sorted", "data__data_dir": str(tmp_path), "batch_size": 8}
    for subset in (1.0, 0.3):
        parts = runs.assemble(small.config(**keys, data__subset=subset))
        loop.announce(parts, parts.data.open())
    assert caplog.messages == [
        "the 12 training examples of arrays/sorted that are trained on, the first ones, lack 2 of "
        "its classes; if its arrays are sorted by class, mix them and make the set again"
    ]
