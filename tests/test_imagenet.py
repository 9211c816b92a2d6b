"""Preparation of ImageNet and its parts from small archives and trees in the original layouts."""

import dataclasses
import io
import json
import shutil

import command
import numpy as np
import pictures
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder as stock

from randmix.data import catalog, imagenet, prepare
from randmix.errors import UserError

CMYK, PNG = "n01739381_1309.JPEG", "n02105855_2933.JPEG"
TRAIN_IMAGES = 10
VALIDATION = [f"ILSVRC2012_val_{k:08d}.JPEG" for k in range(1, 6)]

# TFDS's list, read by its own rule: a line per validation image, in the order of their names.
SYNSETS = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()


def training_images():
    """{class: {file name: bytes}}, with a CMYK JPEG and a PNG under their real names."""
    images = {
        "n01440764": {f"n01440764_{k}.JPEG": pictures.encode(pictures.noise(k)) for k in range(3)}
    }
    images["n01739381"] = {
        CMYK: pictures.encode(pictures.photograph(0, 60, 50), mode="CMYK", quality=95)
    }
    images["n02105855"] = {PNG: pictures.encode(pictures.photograph(1, 60, 50), "PNG")}
    for k, synset in enumerate(SYNSETS[:5]):  # the classes of the validation images
        images.setdefault(synset, {})[f"{synset}_7.JPEG"] = pictures.encode(pictures.noise(50 + k))
    return images


def validation_images():
    return {name: pictures.encode(pictures.noise(100 + k)) for k, name in enumerate(VALIDATION)}


def archives():
    train = {f"{name}.tar": pictures.tar(files) for name, files in training_images().items()}
    # labels follow the names
    shuffled = {name: validation_images()[name] for name in VALIDATION[::-1]}
    return {imagenet.TRAIN: pictures.tar(train), imagenet.VALIDATION: pictures.tar(shuffled)}


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


def tree(folder, *, flat):
    """The stand-ins as extracted files; those of validation in one folder or in class folders."""
    for synset, files in training_images().items():
        (folder / "train" / synset).mkdir(parents=True)
        for name, data in files.items():
            (folder / "train" / synset / name).write_bytes(data)
    for synset, (name, data) in zip(SYNSETS, validation_images().items(), strict=False):
        target = folder / "val" if flat else folder / "val" / synset
        target.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(data)
    # What is found beside the images.
    (folder / "README.txt").write_text("How this was made.")
    (folder / "val" / "LOC_val_solution.csv").write_text("ImageId,PredictionString")
    (folder / "train" / "synsets.txt").write_text("n01440764")
    (folder / "train" / "n01440764" / ".DS_Store").write_bytes(b"left by a file manager")
    return folder


def stored(directory):
    """{split: its records in order}, read by TFDS alone; the classes by name."""
    builder = tfds.builder_from_directory(directory)
    names = builder.info.features["label"].names
    sources = builder.as_data_source(decoders={"image": tfds.decode.SkipDecoding()})
    return {
        split: [
            dict(x, label=names[x["label"]]) for x in map(source.__getitem__, range(len(source)))
        ]
        for split, source in sources.items()
    }


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
        f"found {len(whole) - 1000:,}"
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


def subset(source, tmp_path, *arguments):
    return command.run(
        "randmix prepare",
        "imagenet2012",
        f"--source={source}",
        f"--data_dir={tmp_path / 'data'}",
        *arguments,
    )


def test_an_incomplete_tree_is_refused_unless_a_part_is_wanted(tmp_path):
    source = tree(tmp_path / "few classes!", flat=True)
    done = subset(source, tmp_path)
    assert (done.status, done.out) == (2, "")
    assert done.err == (
        f"randmix: --source: {source} holds 7 classes, 10 train and 5 validation images, ImageNet "
        "has 1,000 classes, 1,281,167 train and 50,000 validation images; complete it, or add "
        "--allow_subset to prepare what is there as imagenet2012/NAME\n"
    )
    assert not list((tmp_path / "data").rglob("5.1.0"))
    done = subset(source, tmp_path, "--allow_subset")
    assert (done.status, done.err) == (0, "")
    directory = tmp_path / "data" / "imagenet2012" / "few-classes" / "5.1.0"
    assert done.out.startswith(
        f"imagenet2012/few-classes: 10 train and 5 test examples in {directory} ("
    )


@pytest.mark.parametrize("flat", [True, False])
def test_a_part_has_its_own_classes_and_says_what_it_lacks(tmp_path, flat):
    """Imagenette's layout, and ImageNet's own with some of its class folders."""
    source = tree(tmp_path / "imagenette2-320", flat=flat)
    gone = ("n01440764", "n03125729")  # without and with a validation image
    for synset in gone:
        shutil.rmtree(source / "train" / synset)
    (source / "train" / "n02119789").mkdir()  # nothing was extracted here
    directory = prepare.prepare_folder(
        source, "imagenet2012/imagenette2-320", tmp_path / "data", progress=False
    )
    classes = sorted(training_images().keys() - set(gone))
    data_set = catalog.get("imagenet2012/imagenette2-320", tmp_path / "data")
    assert (data_set.train_examples, data_set.test_examples, data_set.num_classes) == (6, 4, 5)
    assert catalog.class_names(data_set.name, tmp_path / "data") == classes
    records = stored(directory)
    truth = {name for synset in classes for name in training_images()[synset]}
    assert {x["file_name"].decode() for x in records["train"]} == truth
    got = {x["file_name"].decode(): (x["label"], x["image"]) for x in records["validation"]}
    images = validation_images()
    assert got == {
        name: (synset, images[name])
        for synset, name in zip(SYNSETS, VALIDATION, strict=False)
        if synset in classes
    }
    about = json.loads((directory / "metadata.json").read_text())
    assert about["images"]["train"] == {x: len(training_images()[x]) for x in classes}
    assert about["images"]["validation"] == {x: int(x in SYNSETS[:5]) for x in classes}
    assert (about["lacking"]["train"], about["lacking"]["validation"]) == (1_281_161, 49_996)
    assert set(about["lacking"]["classes"]) == set(SYNSETS) - set(classes)
    source = catalog.open_source(data_set, "test", tmp_path / "data")  # doesn't call it damaged
    assert {source[k]["label"] for k in range(4)} <= set(range(5))


def test_a_part_of_other_files_under_the_same_name_is_refused(tmp_path):
    one, other = tree(tmp_path / "one", flat=True), tree(tmp_path / "other", flat=True)
    arguments = (tmp_path, "--allow_subset", "--name=mine")
    assert subset(one, *arguments).status == 0
    assert subset(one, *arguments).out.endswith("(already prepared)\n")
    (other / "val" / VALIDATION[0]).unlink()
    assert subset(other, *arguments).err == (
        f"randmix: {tmp_path}/data/imagenet2012/mine/5.1.0 was prepared from other files than "
        f"{other}; choose another --name, or remove it\n"
    )


def test_damaged_images_of_a_part_are_told(tmp_path):
    source = tree(tmp_path / "part", flat=True)
    (source / "val" / VALIDATION[0]).write_bytes(b"")
    done = subset(source, tmp_path, "--allow_subset")
    assert done.status == 0
    assert "imagenet2012/part: 1 of 15 records are damaged, the first of them record" in done.err
    assert "`python -m randmix verify imagenet2012/part` lists them" in done.err


def _tree_without(*parts):
    return lambda source: shutil.rmtree(source.joinpath(*parts))


def _as(*parts, content=b"x"):
    def add(source):
        source.joinpath(*parts).parent.mkdir(parents=True, exist_ok=True)
        source.joinpath(*parts).write_bytes(content)

    return add


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _tree_without("val"),
            "{0} lacks train or val; give the folder with train/nXXXXXXXX/*.JPEG and val, such as "
            "ILSVRC/Data/CLS-LOC",
        ),
        (
            _as("train", "cats", "1.JPEG"),
            "{0}/train/cats is not named by the synset id of one of ImageNet's 1,000 classes, such "
            "as n01440764; prepare other classes with "
            "`python -m randmix prepare imagefolder --source=DIR`",
        ),
        (
            _as("val", "one_more.JPEG"),
            "{0}/val/one_more.JPEG is not named as one of ImageNet's 50,000 validation images, "
            "ILSVRC2012_val_00000001.JPEG and so on, which tells its class; remove it, or move it "
            "to the folder of its class, val/nXXXXXXXX",
        ),
        (
            _as("train", "n02105855", "n01440764_0.JPEG"),
            "2 train images are named n01440764_0.JPEG; rename them",
        ),
        (
            lambda source: [shutil.rmtree(folder) for folder in list(source.glob("train/n*"))[1:]],
            "{0}/train has images in 1 class folders, allowed are 2 or more",
        ),
        (
            lambda source: [file.unlink() for file in source.glob("val/*.JPEG")],
            "{0}/val has no image of the classes in train",
        ),
    ],
)
def test_another_layout_is_refused_in_one_line(tmp_path, change, message):
    source = tree(tmp_path / "tree", flat=True)
    change(source)
    with pytest.raises(UserError) as error:
        prepare.prepare_folder(source, "imagenet2012/x", tmp_path / "data", progress=False)
    assert str(error.value) == f"--source: {message.format(source)}"
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--allow_subset"], "--source is missing; give the folder with the images"),
        (["--source=x", "--name=y"], "--name is for a part of ImageNet; add --allow_subset, or"),
        (["--source=x", "--manual_dir=y"], "got --source and --manual_dir, allowed is one of"),
        (["--source=/", "--allow_subset"], "--name: got '', allowed are letters, digits, _ and -"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(tmp_path, arguments, line):
    done = command.run("randmix prepare", "imagenet2012", *arguments, f"--data_dir={tmp_path}")
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"randmix: {line}")
    assert done.err.count("\n") == 1


def test_a_part_that_is_not_prepared_names_the_command(tmp_path):
    for flags in ((), (f"--source={tmp_path}", "--allow_subset")):
        done = command.run("randmix prepare", "imagenet2012/x", f"--data_dir={tmp_path}", *flags)
        assert done.err == (
            f"randmix: imagenet2012/x is not prepared in {tmp_path}; run `python -m randmix "
            "prepare imagenet2012 --source=DIR --allow_subset --name=x "
            f"--data_dir={tmp_path}`\n"
        )
