"""Preparation of ImageNet's extracted files, all of them or a part."""

import json
import shutil

import command
import pytest
from small_imagenet import SYNSETS, VALIDATION, stored, training_images, tree, validation_images

from randmix.data import catalog, prepare
from randmix.errors import UserError


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
