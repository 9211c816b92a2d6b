"""Preparation of ImageNet from small archives in the original layouts."""

import dataclasses
import io

import numpy as np
import pictures
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from small_imagenet import (
    CMYK,
    PNG,
    TRAIN_IMAGES,
    VALIDATION,
    archives,
    stored,
    training_images,
    tree,
    validation_images,
)
from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder as stock

from randmix.data import catalog, imagenet, prepare
from randmix.errors import UserError


@pytest.fixture
def manual(tmp_path, monkeypatch):
    """A directory of small archives that builder and catalog accept as the real ones."""
    directory = tmp_path / "manual"
    directory.mkdir()
    write(directory, archives(), monkeypatch)
    shrink(monkeypatch)
    return directory


def shrink(monkeypatch):
    """Makes the catalog expect the small stand-ins."""
    small = dataclasses.replace(
        catalog.get("imagenet2012"), train_examples=TRAIN_IMAGES, test_examples=5, num_classes=7
    )
    monkeypatch.setitem(catalog.DATA_SETS, "imagenet2012", small)


def write(directory, files, monkeypatch):
    infos = {}
    for name, data in files.items():
        (directory / name).write_bytes(data)
        infos[name] = tfds.download.checksums.UrlInfo(size=len(data), checksum="", filename=name)
    monkeypatch.setattr(imagenet.Imagenet2012, "url_infos", infos)


def prepared(manual, tmp_path):
    return prepare.prepare("imagenet2012", tmp_path / "data", manual_dir=manual, progress=False)


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def test_the_builder_is_the_stock_one_to_tfds(tmp_path):
    ours, theirs = imagenet.Imagenet2012, tfds.builder_cls("imagenet2012")
    assert theirs is stock.Builder  # the registry still has the stock class
    assert (ours.name, ours.VERSION) == (theirs.name, theirs.VERSION)
    sizes = {info.filename: info.size for info in ours.url_infos.values()}
    assert sizes == {imagenet.TRAIN: 147_897_477_120, imagenet.VALIDATION: 6_744_924_160}
    one, other = ours(data_dir=tmp_path).info, theirs(data_dir=tmp_path).info
    assert repr(one.features) == repr(other.features)
    assert one.features["label"].names == other.features["label"].names
    assert (one.citation, one.homepage, one.supervised_keys) == (
        other.citation,
        other.homepage,
        other.supervised_keys,
    )


def test_archives_become_what_they_hold(manual, tmp_path):
    directory = prepared(manual, tmp_path)
    assert directory == tmp_path / "data" / "imagenet2012" / "5.1.0"
    decoders = {"image": tfds.decode.SkipDecoding()}
    source = tfds.data_source(  # by the stock class
        "imagenet2012", data_dir=tmp_path / "data", download=False, decoders=decoders
    )
    assert set(source) == {"train", "validation"}
    names = source["train"].dataset_info.features["label"].names
    got = {
        (names[x["label"]], x["file_name"].decode()): x["image"]
        for x in map(source["train"].__getitem__, range(TRAIN_IMAGES))
    }
    truth = {
        (label, name): data
        for label, files in training_images().items()
        for name, data in files.items()
    }
    assert got.keys() == truth.keys()
    for (label, name), data in got.items():
        image = Image.open(io.BytesIO(data))
        assert (image.format, image.mode) == ("JPEG", "RGB")
        if name in (CMYK, PNG):
            # Quality 100 with colour at half resolution, like the stock builder.
            assert np.abs(pixels(data) - pixels(truth[label, name])).mean() < 4
        else:
            assert data == truth[label, name]


def test_validation_labels_go_by_the_names_of_the_files(manual, tmp_path):
    prepared(manual, tmp_path)
    source = catalog.open_source(catalog.get("imagenet2012"), "test", tmp_path / "data")
    labels_file = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")
    names = tfds.core.tfds_path("datasets/imagenet2012/labels.txt").read_text().split()
    truth = dict(zip(VALIDATION, labels_file.read_text().split(), strict=False))
    for example in map(source.__getitem__, range(5)):
        name = example["file_name"].decode()
        assert names[example["label"]] == truth[name]
        assert example["image"] == validation_images()[name]


def test_the_order_is_by_the_stock_builders_keys(manual, tmp_path):
    """TFDS sorts by a hash of the key, salted by the split; the key is the file's name."""
    prepared(manual, tmp_path)
    source = catalog.open_source(catalog.get("imagenet2012"), "train", tmp_path / "data")
    order = b" ".join(source[k]["file_name"] for k in range(TRAIN_IMAGES))
    hasher = tfds.core.hashing.Hasher("train")
    keys = sorted(
        (name for files in training_images().values() for name in files), key=hasher.hash_key
    )
    assert order == " ".join(keys).encode()


@pytest.mark.parametrize("missing", [[imagenet.TRAIN], [imagenet.TRAIN, imagenet.VALIDATION]])
def test_missing_archives_are_named(manual, tmp_path, missing):
    for name in missing:
        (manual / name).unlink()
    with pytest.raises(UserError) as error:
        prepared(manual, tmp_path)
    assert str(error.value) == f"imagenet2012: {manual} lacks {', '.join(missing)}"


def test_without_a_directory_it_says_where_to_get_the_archives(tmp_path):
    with pytest.raises(
        UserError,
        match=r"ILSVRC2012_img_val\.tar.*registered users.*--manual_dir=DIR, or .*--source=DIR$",
    ):
        prepare.prepare("imagenet2012", tmp_path)


def test_a_truncated_archive_is_seen_by_its_size(manual, tmp_path):
    archive = manual / imagenet.VALIDATION
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-1000])
    with pytest.raises(UserError) as error:
        prepared(manual, tmp_path)
    assert str(error.value) == (
        f"{archive} is truncated or a different file: expected {len(whole):,} bytes, "
        f"found {len(whole) - 1000:,}; download it again"
    )


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (imagenet.TRAIN, lambda data: data[: len(data) // 2], "is truncated or not a tar archive"),
        (
            imagenet.VALIDATION,
            lambda data: data[: len(data) // 4],
            "is truncated or not a tar archive",
        ),
        (
            imagenet.VALIDATION,
            lambda data: b"<html>not found</html>" * 100,
            "is truncated or not a tar archive",
        ),
        (
            imagenet.TRAIN,
            lambda data: pictures.tar({"n01440764.tar": b"x" * 600}),
            "not a tar archive",
        ),
        (imagenet.TRAIN, lambda data: data[: data.index(b"n01739381.tar")], "4 train|3 train"),
        (
            imagenet.VALIDATION,
            lambda data: pictures.tar({"ILSVRC2012_test_00000001.JPEG": b"x"}),
            "contains ILSVRC2012_test_00000001.JPEG, which is not one of the 50,000 validation",
        ),
    ],
)
def test_an_archive_of_the_right_size_but_damaged(
    manual, tmp_path, monkeypatch, name, change, message
):
    files = archives()
    write(manual, files | {name: change(files[name])}, monkeypatch)
    with pytest.raises(UserError, match=message) as error:
        prepared(manual, tmp_path)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "data" / "imagenet2012").iterdir())


@pytest.mark.parametrize("flat", [True, False])
def test_extracted_images_become_what_the_archives_become(manual, tmp_path, flat):
    expected = stored(prepared(manual, tmp_path))
    source = tree(tmp_path / "ILSVRC" / "Data" / "CLS-LOC", flat=flat)
    directory = prepare.prepare(
        "imagenet2012", tmp_path / "other", source=source, num_shards=2, progress=False
    )
    assert directory == tmp_path / "other" / "imagenet2012" / "5.1.0"
    assert {split: len(records) for split, records in expected.items()} == {
        "train": TRAIN_IMAGES,
        "validation": 5,
    }
    assert stored(directory) == expected  # in this order
    first, second = (
        tfds.builder_from_directory(folder / "imagenet2012" / "5.1.0").info
        for folder in (tmp_path / "data", tmp_path / "other")
    )
    assert repr(first.features) == repr(second.features)
    assert first.features["label"].num_classes == 1000
