"""``verify DATA_SET``: damage that is made here, byte by byte, is found and named."""

import io
import json
import shutil

import command
import pictures
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from randmix.data import catalog, prepare

NAME = "imagefolder/pets"


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """A data directory with 18 + 2 images in three shards, or two, per split."""
    data_dir = tmp_path_factory.mktemp("tfds")
    source = pictures.folder(data_dir / "source")
    prepare.prepare_folder(source, NAME, data_dir, num_shards=2, progress=False)
    return data_dir


@pytest.fixture
def pets(intact, tmp_path):
    """A copy of the data set's folder in tmp_path, to damage."""
    target = tmp_path / NAME / "1.0.0"
    shutil.copytree(intact / NAME / "1.0.0", target)
    return target


def verify(data_dir, name=NAME):
    return command.run("randmix verify", name, f"--data_dir={data_dir}")


def records(directory, split):
    """The undecoded records of a split in order, read by TFDS alone."""
    builder = tfds.builder_from_directory(directory)
    source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    return [source[k] for k in range(len(source))]


def test_an_intact_set_is_one_line(intact):
    done = verify(intact)
    assert done == (0, f"{NAME}: all 20 records in {intact}/{NAME}/1.0.0 are intact\n", "")
    assert verify(intact, "digits") == (0, "digits: all 1,797 records are intact\n", "")


def test_flipped_bytes_are_named_by_row(pets, tmp_path):
    """ArrayRecord's checksums refuse such records; the others are read."""
    truth = records(pets, "train")
    rows = [3, 15]  # in different shards
    for row in rows:
        image = truth[row]["image"]
        middle = image[len(image) // 2 :][:16]
        (shard,) = (file for file in pets.glob("*train*") if middle in file.read_bytes())
        shard.write_bytes(shard.read_bytes().replace(middle, bytes(16)))
    done = verify(tmp_path)
    assert done.status == 2
    lines = done.out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"train, record {row}" for row in rows]
    assert done.err == (
        f"randmix: {pets} is damaged (unreadable records: 2 of 20); "
        "remove it and prepare it again\n"
    )


class Broken(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Intact records of images that are not."""

    name = "broken"
    VERSION = tfds.core.Version("1.0.0")
    # Cut after the header, empty, and no image.
    IMAGES = (b"", b"<html>not found</html>", pictures.encode(pictures.noise(0))[:700])

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(30, 40, 3)),
            "label": tfds.features.ClassLabel(num_classes=2),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(()), "extra": self._generate_examples(self.IMAGES)}

    def _generate_examples(self, images):
        good = [pictures.encode(pictures.noise(seed)) for seed in range(2)]
        for k, image in enumerate((*good, *images)):
            yield k, {"image": io.BytesIO(image), "label": 0, "file_name": f"{k}.jpg"}


def test_images_that_are_incomplete_are_named_by_file_in_every_split(tmp_path):
    Broken(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    directory = tmp_path / "broken" / "1.0.0"
    expected = set()
    for row, record in enumerate(records(directory, "extra")):
        try:
            Image.open(io.BytesIO(record["image"])).load()
        except OSError:
            expected.add(f"extra, record {row} ({record['file_name'].decode()})")
    assert len(expected) == 3
    info = json.loads((directory / "dataset_info.json").read_text())
    assert [split["name"] for split in info["splits"]] == ["train", "extra"]
    done = verify(tmp_path, "tfds/broken")
    assert done.status == 2
    lines = done.out.splitlines()
    assert {line.partition(":")[0] for line in lines} == expected
    reasons = {line.partition(": ")[2] for line in lines}
    assert "not an image" in reasons
    assert not any("object at 0x" in reason for reason in reasons)
    assert done.err.endswith("(unreadable records: 3 of 7); remove it and prepare it again\n")


SHARD = "imagefolder-train.array_record-00001-of-00002"


@pytest.mark.parametrize("how", ["missing", "garbage", "half", "empty", "another"])
@pytest.mark.parametrize("name", ["features.json", "dataset_info.json", SHARD])
def test_a_file_that_cannot_be_read_is_one_line(pets, tmp_path, name, how):
    file = pets / name
    data = file.read_bytes()
    if how == "missing":
        file.unlink()
    else:
        change = {"garbage": b"\x00\xff" * 500, "half": data[: len(data) // 2], "empty": b""}
        file.write_bytes(change.get(how, b"{}"))
    done = verify(tmp_path)
    assert (done.status, done.out) == (2, "")
    assert done.err.count("\n") == 1, done.err
    what = {
        "features.json": f"randmix: {pets} is damaged (features.json can't be read)",
        "dataset_info.json": f"randmix: {NAME} is not prepared in {tmp_path}; run `",
        SHARD: f"randmix: {pets} is damaged ({SHARD}: ",
    }
    assert done.err.startswith(what[name])


def test_a_file_of_another_set_is_named(pets, tmp_path):
    (pets / SHARD).write_bytes((pets / SHARD.replace("train", "test")).read_bytes())
    (pets / SHARD.replace("00001-of", "00000-of")).unlink()
    assert verify(tmp_path).err.startswith(
        f"randmix: {pets} is damaged (imagefolder-train.array_record-00000-of-00002: open() failed"
    )
    assert verify(tmp_path).err.endswith(", and 1 more files); remove it and prepare it again\n")


def test_what_is_no_run_and_no_data_set_is_both_in_one_line(tmp_path):
    done = verify(tmp_path, "cifar01")
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(
        "randmix: there is no folder 'cifar01' with a run, and no data set is named 'cifar01'; "
    )
    assert done.err.endswith("did you mean 'cifar10'?\n")
    assert verify(tmp_path, "mnist").err == (
        f"randmix: mnist is not prepared in {tmp_path}; "
        f"run `{catalog.prepare_command('mnist', tmp_path)}`\n"
    )


def test_an_existing_folder_is_a_workdir(tmp_path):
    (tmp_path / "digits").mkdir()
    done = command.run("randmix verify", "digits", cwd=tmp_path)
    assert done.status == 2
    assert done.err.startswith("randmix: digits: no checkpoint there; ")
