"""Data sets from other sources: TFDS's own, small image folders, and runs on each kind.

They share one prepared folder, which takes seconds to make, hence the length.
"""

import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import own_data
import pictures
import pytest
import small
import tensorflow_datasets as tfds
import tfds_sets
from PIL import Image

import randmix
from randmix import data, masks
from randmix.data import catalog, feeds, own, prepare, reader, records, survey
from randmix.errors import UserError
from randmix.runtime import sharding
from randmix.runtime.preemption import Preempted
from randmix.training import evaluation, runs
from randmix.training import loop as train


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A data directory with every kind of set but a function's."""
    path = tmp_path_factory.mktemp("sources")
    for name in tfds_sets.SETS:
        tfds_sets.prepare(name, path, config="fog_1" if name == "cifar10_corrupted" else None)
    pictures.folder(path / "source", width=24, height=24)
    (path / "source" / "README.md").write_text("not an image")
    prepare.prepare_folder(path / "source", "imagefolder/pets", path, progress=False)
    data.from_arrays("mine", **own_data.arrays(), classes=["cat", "dog", "owl"], data_dir=path)
    return path


def by_tfds(name, split, data_dir):
    """Images and labels of a split, read and decoded by TFDS alone."""
    source = tfds.builder_from_directory(data_dir / name / "3.0.0").as_data_source(split)
    return [(example["image"], example["label"]) for example in source]


# Sets that TFDS prepared.


@pytest.mark.parametrize(
    ("name", "stored", "train", "test"),
    [
        ("tfds/svhn_cropped", "svhn_cropped", "train", "test"),
        ("tfds/svhn_cropped:3.0.0", "svhn_cropped", "train", "test"),
        ("tfds/stl10", "stl10", "train", "test"),
        ("tfds/emnist", "emnist", "train", "test"),
        ("tfds/cifar10_corrupted/fog_1", "cifar10_corrupted/fog_1", None, "test"),
        ("tfds/eurosat", "eurosat", "train[:39]", "train[39:]"),
    ],
)
def test_small_images_are_read_into_memory_as_tfds_reads_them(name, stored, train, test, data_dir):
    data_set = catalog.get(name, data_dir)
    whole = tfds_sets.SETS[stored.partition("/")[0]]
    assert (data_set.image_shape, data_set.num_classes) == whole[:2]
    assert not data_set.streamed
    assert catalog.class_names(name, data_dir) == tfds_sets.class_names(stored.partition("/")[0])
    for split, theirs in (("train", train), ("test", test)):
        if theirs is None:
            with pytest.raises(UserError, match=f"{name} has no examples to train on"):
                catalog.load(name, split, data_dir)
            continue
        got = catalog.load(name, split, data_dir)
        expected = by_tfds(stored, theirs, data_dir)
        assert len(expected) == data_set.examples(split) == len(got["image"])
        for image, label, (their_image, their_label) in zip(
            got["image"], got["label"], expected, strict=True
        ):
            np.testing.assert_array_equal(image, their_image)
            assert label == their_label


def test_images_of_many_sizes_are_streamed(data_dir):
    data_set = catalog.get("tfds/oxford_flowers102", data_dir, image_size=16)
    assert (data_set.streamed, data_set.image_shape) == (True, (16, 16, 3))
    assert (data_set.train_examples, data_set.test_examples) == (20, 12)
    photographs = reader.Photographs(data_set, "test", data_dir, reader.Reading(image_size=16))
    expected = by_tfds("oxford_flowers102", "test", data_dir)
    for row, (_, label) in enumerate(expected):
        example = photographs.for_evaluation(row)
        assert (example["image"].shape, example["label"]) == ((16, 16, 3), label)


def test_the_newest_version_is_read_unless_one_is_named(tmp_path):
    for version in ("3.0.0", "10.0.1", "9.1.0"):
        tfds_sets.prepare("emnist", tmp_path, version=version)
    assert catalog.get("tfds/emnist", tmp_path).version == "10.0.1"
    older = catalog.get("tfds/emnist:9.1.0", tmp_path)
    assert older.directory(tmp_path) == tmp_path / "emnist" / "9.1.0"
    assert catalog.describe(older, tmp_path)["version"] == "9.1.0"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tfds/gone", "tfds/gone is not prepared in {data_dir}; run `tfds build gone "),
        ("tfds/emnist:4.0.0", "tfds/emnist:4.0.0 is not prepared in "),
        ("tfds/emnist/3.0.0", "got 'tfds/emnist/3.0.0', allowed are tfds/NAME, tfds/NAME/CONFIG, "),
        ("tfds/emnist:4", "got 'tfds/emnist:4', allowed are tfds/NAME, tfds/NAME/CONFIG, and "),
        (
            "tfds/cifar10_corrupted",
            "tfds/cifar10_corrupted in {data_dir} has the configs fog_1; name one, for example "
            "tfds/cifar10_corrupted/fog_1",
        ),
        (
            "arrays/gone",
            r"arrays/gone.npz doesn't exist; make it by randmix.data.from_arrays\('gone'",
        ),
        ("no_such_module:make", "got 'no_such_module:make', but there is no module 'no_such_mod"),
        ("json:lode", "got 'json:lode', but json has no 'lode'; did you mean 'load'"),
        ("json:__all__", "got 'json:__all__', which isn't a function"),
        ("arrays/", "data set arrays/NAME: got '', allowed are letters, digits, _ and -, starting"),
        ("arrays/../a", r"data set arrays/NAME: got '\.\./a', allowed are letters, digits, _ and"),
        ("imagefolder/a b", "data set imagefolder/NAME: got 'a b', allowed are letters, digits"),
        ("emnist", "no data set is named 'emnist'; there are: digits, mnist, .*tfds/NAME, arrays/"),
    ],
)
def test_a_name_that_leads_nowhere_is_one_line(name, message, data_dir):
    with pytest.raises(UserError, match=message.format(data_dir=data_dir)) as error:
        catalog.get(name, data_dir)
    assert "\n" not in str(error.value)


def test_a_set_of_another_kind_is_refused_by_its_features(tmp_path):
    two = tfds_sets.prepare("emnist", tmp_path, other=tfds.features.ClassLabel(num_classes=40))
    labels = catalog.load("tfds/emnist", "train", tmp_path)["label"]
    assert sorted(labels) == list(range(30))  # the supervised feature, not the other
    features = json.loads((two / "features.json").read_text())
    fields = features["featuresDict"]["features"]
    image = fields.pop("image")
    (two / "features.json").write_text(json.dumps(features))
    with pytest.raises(UserError, match=r"got the features label, other, 0 of them an image; "):
        catalog.get("tfds/emnist", tmp_path)
    fields["image"] = image | {"image": image["image"] | {"dtype": "uint16"}}
    (two / "features.json").write_text(json.dumps(features))
    with pytest.raises(UserError, match=r"the feature 'image' has the type uint16, allowed is "):
        catalog.get("tfds/emnist", tmp_path)
    (two / "features.json").unlink()
    with pytest.raises(UserError, match=r"3\.0\.0 is damaged \(features.json can't be read\); "):
        catalog.get("tfds/emnist", tmp_path)


# Where a set is held.


@pytest.mark.parametrize(
    ("asked", "image_size", "shape", "streamed"),
    [
        ("auto", None, (24, 24, 3), False),
        ("auto", 24, (24, 24, 3), False),
        ("auto", 16, (16, 16, 3), True),
        ("on", None, (24, 24, 3), False),
        ("off", None, (224, 224, 3), True),
        ("off", 24, (24, 24, 3), True),
    ],
)
def test_small_images_of_one_shape_are_held_in_memory(asked, image_size, shape, streamed, data_dir):
    data_set = catalog.get("imagefolder/pets", data_dir, image_size=image_size, in_memory=asked)
    assert (data_set.image_shape, data_set.streamed) == (shape, streamed)


def test_large_or_many_images_are_held_only_when_asked(data_dir, monkeypatch):
    monkeypatch.setattr(catalog, "SMALL_SIDE", 20)
    assert catalog.get("imagefolder/pets", data_dir).streamed
    monkeypatch.undo()
    monkeypatch.setattr(catalog, "SMALL_BYTES", 20 * 24 * 24 * 3 - 1)
    assert catalog.get("imagefolder/pets", data_dir).streamed
    assert not catalog.get("imagefolder/pets", data_dir, in_memory="on").streamed


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("imagefolder/pets", {"image_size": 16}, "got 'on' and config.data.image_size 16, but the"),
        ("tfds/oxford_flowers102", {}, "got 'on', but the images of tfds/oxford_flowers102 have "),
        ("imagenet2012", {}, "got 'on', allowed with imagenet2012 are auto and off"),
        ("digits", {"in_memory": "off"}, "got 'off', allowed with digits are auto and on"),
        ("arrays/mine", {"in_memory": "off"}, "got 'off', allowed with arrays/mine are auto and "),
        ("digits", {"in_memory": "yes"}, "got 'yes', allowed auto, on, off"),
    ],
)
def test_what_cannot_be_held_or_streamed_is_refused(name, options, message, data_dir):
    with pytest.raises(UserError, match=f"^config.data.in_memory: {message}"):
        catalog.get(name, data_dir, **{"in_memory": "on", **options})


def test_a_folder_in_memory_is_what_pillow_decodes(data_dir):
    names = catalog.class_names("imagefolder/pets", data_dir)
    source = tfds.builder_from_directory(data_dir / "imagefolder/pets/1.0.0").as_data_source(
        "train", decoders={"image": tfds.decode.SkipDecoding()}
    )
    got = catalog.load("imagefolder/pets", "train", data_dir)
    for image, label, record in zip(got["image"], got["label"], source, strict=True):
        file = data_dir / "source" / record["file_name"].decode()
        np.testing.assert_array_equal(image, np.asarray(Image.open(file).convert("RGB")))
        assert names[label] == file.parent.name


def test_small_photographs_that_are_enlarged_are_a_warning(data_dir, caplog):
    config = small.config(
        data__name="imagefolder/pets",
        data__data_dir=str(data_dir),
        data__in_memory="off",
        data__image_size=49,
        data__crop_padding=0,
        model__patch_size=7,
        batch_size=8,
    )
    assert runs.assemble(config).data.dataset.streamed
    assert caplog.messages == [
        "half of the images of imagefolder/pets have a side of 24 pixels or less, and are enlarged "
        "to 49 x 49; set a smaller config.data.image_size"
    ]
    caplog.clear()
    config.data.image_size = 42
    runs.assemble(config)
    assert caplog.messages == []


# What is known about the images.


def test_the_statistics_are_those_of_the_training_pixels(data_dir):
    for name in ("imagefolder/pets", "arrays/mine"):
        pixels = catalog.load(name, "train", data_dir)["image"].astype(np.float64) / 255
        mean, std = catalog.get(name, data_dir).statistics
        np.testing.assert_allclose(mean, pixels.mean((0, 1, 2)), atol=5.1e-5)
        np.testing.assert_allclose(std, pixels.std((0, 1, 2)), atol=5.1e-5)


def test_grey_images_have_them_in_every_channel_of_a_stream(tmp_path):
    survey.write(folder := tfds_sets.prepare("emnist", tmp_path), survey.survey(folder))
    held = catalog.get("tfds/emnist", tmp_path)
    streamed = catalog.get("tfds/emnist", tmp_path, image_size=32)
    assert (held.image_shape, streamed.image_shape) == ((28, 28, 1), (32, 32, 3))
    assert streamed.statistics == tuple(3 * one for one in held.statistics)


def test_a_run_normalises_by_them_unless_its_config_says_otherwise(data_dir, caplog):
    def model(name, **overrides):
        config = small.config(data__name=name, data__data_dir=str(data_dir), **overrides)
        return runs.assemble(config).step.model

    own_statistics = catalog.get("arrays/mine", data_dir).statistics
    mine = model("arrays/mine", batch_size=8)
    assert (mine.mean, mine.std) == own_statistics
    given = model("arrays/mine", batch_size=8, model__mean=(), model__std=())
    assert (given.mean, given.std) == ((), ())
    assert caplog.messages == []
    unknown = model("tfds/svhn_cropped")
    assert (unknown.mean, unknown.std) == ((), ())
    assert caplog.messages == [
        "the channel statistics of tfds/svhn_cropped are unknown, so images aren't normalised; "
        "`python -m randmix prepare tfds/svhn_cropped` records them, or set config.model.mean and "
        "std"
    ]


def test_the_mean_alone_may_be_given(data_dir):
    config = small.config(data__name="arrays/mine", data__data_dir=str(data_dir), batch_size=8)
    config.model.mean = (0.1, 0.2, 0.3)
    model = runs.assemble(config).record.config["model"]
    assert model["mean"] == (0.1, 0.2, 0.3)
    assert model["std"] == catalog.get("arrays/mine", data_dir).statistics[1]


def test_a_split_without_labels_is_not_tested_on(tmp_path):
    folder = tfds_sets.prepare("places", tmp_path)
    with pytest.raises(UserError, match="record 0: got the label -1, allowed are 0 to 9; if it is"):
        catalog.load("tfds/places", "test", tmp_path)
    found = survey.survey(records.resolve_data_dir(folder), show_progress=False)
    assert (found.unlabelled, found.damaged) == (("test",), ())
    prepare.convert("tfds/places", tmp_path, progress=False)
    assert catalog.get("tfds/places", tmp_path).evaluation_split == "validation"
    assert sorted(catalog.load("tfds/places", "test", tmp_path)["label"]) == list(range(8))


def test_a_small_set_with_a_damaged_image_is_streamed(tmp_path):
    tfds_sets.prepare("svhn_cropped", tmp_path, damaged={4})
    with pytest.raises(
        UserError, match=r"record \d+ is damaged .*; remove .* config.data.in_memory to o"
    ):
        catalog.load("tfds/svhn_cropped", "train", tmp_path)
    prepare.convert("tfds/svhn_cropped", tmp_path, progress=False)
    assert catalog.get("tfds/svhn_cropped", tmp_path).streamed
    assert not catalog.get("tfds/svhn_cropped", tmp_path, in_memory="on").streamed


def test_images_with_transparency_are_refused(tmp_path):
    tfds_sets.prepare("stickers", tmp_path)
    with pytest.raises(UserError, match="the images have 4 channels, allowed are 1 and 3; convert"):
        catalog.get("tfds/stickers", tmp_path)


def test_a_channel_without_variation_is_not_divided_by_zero():
    pair = np.zeros((400, 5, 5, 1), np.uint8), np.arange(400)
    pair[0][0, 0, 0] = 1  # a deviation of 0.00004, which would be rounded to 0
    _, about = own._checked("x", {"train": pair, "test": pair}, None)
    assert about.statistics == ((0.0,), (1.0,))


def test_a_survey_looks_at_every_image(data_dir):
    flowers = records.resolve_data_dir(data_dir) / "oxford_flowers102" / "3.0.0"
    found = survey.survey(flowers, show_progress=False)
    sides = [
        min(tfds_sets.pixels("oxford_flowers102", split, row).shape[:2])
        for split, count in tfds_sets.SETS["oxford_flowers102"][3].items()
        for row in range(count)
    ]
    assert (found.examples, found.image_shape, found.damaged) == (42, None, ())
    assert found.shorter_side == sorted(sides)[20]
    pixels = np.concatenate(
        [tfds_sets.pixels("oxford_flowers102", "train", row).reshape(-1, 3) for row in range(20)]
    )
    np.testing.assert_allclose(found.statistics[0], (pixels / 255).mean(0), atol=5.1e-5)
    np.testing.assert_allclose(found.statistics[1], (pixels / 255).std(0), atol=5.1e-5)


def test_a_survey_names_what_is_damaged(tmp_path):
    source = pictures.folder(tmp_path / "source", each=30)
    folder = prepare.prepare_folder(source, "imagefolder/pets", tmp_path, progress=False)
    (file,) = folder.glob("imagefolder-train.array_record-*")
    # The pixels of one JPEG; ArrayRecord's checksums then refuse the chunk that it is in.
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    found = survey.survey(records.resolve_data_dir(folder), show_progress=False)
    assert found.damaged
    assert {damage.split for damage in found.damaged} == {"train"}


# Purity, for each source.


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A folder with a module of functions, which is the working folder."""
    own_data.write_module(tmp_path, monkeypatch)
    return tmp_path


SOURCES = {
    "imagefolder/pets": {},
    "imagefolder/pets, streamed": {"data__in_memory": "off", "data__image_size": 16},
    "tfds/svhn_cropped": {},
    "tfds/oxford_flowers102": {"data__image_size": 16},
    "arrays/mine": {},
    "my_data:make": {},
}


def config(source, data_dir, **overrides):
    return small.config(
        data__name=source.partition(",")[0],
        data__data_dir=str(data_dir),
        batch_size=8,
        model__width=8,
        model__depth=1,
        steps=4,
        **(SOURCES[source] | overrides),
    )


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_any_number_of_devices_sees_the_same_batches(source, data_dir, module):
    parts = runs.assemble(config(source, data_dir))
    split = feeds.Split(parts.data.dataset, "train", str(data_dir), parts.data.reading)

    def batches(devices):
        feed = split.for_training(
            seed=3,
            batch_size=8,
            total_steps=4,
            examples=split.examples(),
            mesh=sharding.make_mesh(jax.devices()[:devices]),
        )
        rows, images = [], []
        for step in (0, 1, 3):
            arguments, order = feed.arguments(step)
            rows.append(feed.rows(step))
            chosen = slice(None) if order is None else rows[-1]
            images.append(np.asarray(arguments["image"])[chosen])
        feed.close()
        return rows, images

    one = batches(1)
    assert not np.array_equal(one[0][0], one[0][1])
    for devices in (2, 4):
        for ours, theirs in zip(
            jax.tree.leaves(one), jax.tree.leaves(batches(devices)), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_a_run_resumes_bit_for_bit_and_is_evaluated(source, data_dir, module, monkeypatch):
    def run(workdir):
        return train.train(config(source, data_dir), module / workdir, devices=jax.devices()[:1])

    result = run("whole")
    with monkeypatch.context() as patch:
        small.stop_after(patch, 3)
        with pytest.raises(Preempted):
            run("stopped")
    assert run("stopped")["metrics"] == result["metrics"]
    whole, stopped = (randmix.load(module / name) for name in ("whole", "stopped"))
    assert not masks.diff(whole.variables, stopped.variables).moved
    again = evaluation.evaluate_run(whole, evaluation.open_split(whole, "test"), batch_size=8)
    assert again["loss"] == pytest.approx(result["metrics"]["test_loss"], rel=1e-5)


@pytest.mark.slow
def test_a_run_does_not_go_on_with_another_functions_arrays(module, caplog):
    def run():
        sys.modules.pop("my_data", None)
        own._called.cache_clear()
        own_config = config("my_data:make", module, model__mean=(), model__std=())
        train.train(own_config, module / "run", devices=jax.devices()[:1])

    run()
    (module / "run" / "result.json").unlink()
    (module / "my_data.py").write_text(own_data.MODULE.replace("default_rng(0)", "default_rng(1)"))
    with pytest.raises(UserError, match=r"was trained on a data set with another version; give it"):
        run()
    caplog.clear()
    evaluation.open_split(randmix.load(module / "run"), "test")
    (warning,) = caplog.messages
    pattern = r"my_data:make now has the version \w{16}, the run was trained on \w{16}"
    assert re.fullmatch(pattern, warning)


@pytest.mark.slow
def test_the_command_finds_a_function_in_the_working_folder(module):
    arguments = ("--config=configs/digits.py:tiny", "--config.data.name=my_data:make", "--summary")
    program = f"{os.path.dirname(sys.executable)}/randmix"
    done = subprocess.run(
        [program, "train", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "spatial/stem/kernel" in done.stdout
