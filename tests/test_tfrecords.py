"""TFRecord sets, written here byte by byte, become the same records in ArrayRecord files."""

import errno
import json
import os
import struct

import command
import numpy as np
import pictures
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image
from tensorboardX import crc32c as tensorboard

from randmix.data import catalog, prepare, records, tfrecords
from randmix.errors import UserError

SPLITS = {"train": 20, "test": 9, "unlabelled": 5}


class Objects(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A set like STL-10, with a config: images of one size, and a split without labels."""

    name = "objects"
    VERSION = tfds.core.Version("2.0.1")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="small", version="2.0.1")]  # noqa: RUF012  # TFDS's

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 12, 3)),
                    "label": tfds.features.ClassLabel(names=["a", "b", "c"]),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split):
        for k in range(SPLITS[split]):
            label = -1 if split == "unlabelled" else k % 3
            yield k, {"image": Image.fromarray(pictures.noise(k, 12, 8)), "label": label}


def masked(data):
    """TensorFlow's masked CRC, from its definition and TensorBoardX's loop over bytes."""
    crc = tensorboard.crc32c(data)
    return ((crc >> 15) | (crc << 17) & 0xFFFFFFFF) + 0xA282EAD8 & 0xFFFFFFFF


def framed(data):
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked(length)) + data + struct.pack("<I", masked(data))


@pytest.fixture
def as_tfrecords(tmp_path):
    """A set as TFDS's default format has it; returns (its directory, {file: its records})."""
    builder = Objects(data_dir=tmp_path, config="small", file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=3))
    directory = tmp_path / "objects" / "small" / "2.0.1"
    truth = {}
    for file in directory.glob("*.array_record-*"):
        truth[file.name] = ArrayRecordReader(str(file)).read_all()
        target = file.with_name(file.name.replace("array_record", "tfrecord"))
        target.write_bytes(b"".join(map(framed, truth[file.name])))
        file.unlink()
    info = directory / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    assert len(truth) == 9
    return directory, truth


def converted(tmp_path):
    return prepare.convert("tfds/objects/small", tmp_path, progress=False)


def test_records_are_copied_in_order_and_read_by_tfds(as_tfrecords, tmp_path):
    directory, truth = as_tfrecords
    before = {file: file.read_bytes() for file in directory.glob("*.tfrecord-*")}
    labels = directory / "label.labels.txt"
    assert labels.read_text().split() == ["a", "b", "c"]
    assert converted(tmp_path) == directory
    assert {file: file.read_bytes() for file in before} == before
    got = {
        file.name: ArrayRecordReader(str(file)).read_all()
        for file in directory.glob("*.array_record-*")
    }
    assert got == truth
    assert {path.name for path in directory.parent.iterdir()} == {"2.0.1"}
    info = json.loads((directory / "dataset_info.json").read_text())
    assert (info["fileFormat"], info["alternativeFileFormats"]) == ("tfrecord", ["array_record"])
    # TFDS itself, from the description that was rewritten
    sources = tfds.builder_from_directory(directory).as_data_source()
    assert {split: len(source) for split, source in sources.items()} == SPLITS
    assert {example["label"] for example in sources["unlabelled"]} == {-1}
    images = {image.tobytes() for image in (example["image"] for example in sources["test"])}
    assert images == {pictures.noise(k, 12, 8).tobytes() for k in range(SPLITS["test"])}
    data_set = catalog.get("tfds/objects/small:2.0.1", tmp_path)
    assert (data_set.train_examples, data_set.test_examples, data_set.num_classes) == (20, 9, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:300] + b"!" + data[301:], "{}, record 0 is damaged: its checksum"),
        (lambda data: b"!" + data[1:], "{}, record 0: its length is damaged, or the file is"),
        (lambda data: data[:-2], "{}, record 2 is truncated; copy or prepare the data set again"),
        (lambda data: data[:-40], "{}, record 2 is truncated"),
        (lambda data: data + b"123456", "{}, record 3 is truncated"),
        (lambda data: b"", "{} contains 0 records, dataset_info.json says 3; copy or"),
        (lambda data: data + framed(b"one more"), "{} contains 4 records, dataset_info.json says"),
        (None, "{} is missing; copy or prepare the data set again"),
    ],
)
def test_damage_is_one_line_and_changes_nothing(as_tfrecords, tmp_path, change, message):
    directory, _ = as_tfrecords
    file = directory / "objects-test.tfrecord-00002-of-00003"
    if change:
        file.write_bytes(change(file.read_bytes()))
    else:
        file.unlink()
    before = {path: path.read_bytes() for path in directory.iterdir()}
    with pytest.raises(UserError) as error:
        converted(tmp_path)
    assert str(error.value).startswith(message.format(file))
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in directory.iterdir()} == before
    assert os.listdir(directory.parent) == ["2.0.1"]


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
def test_a_damaged_description_is_one_line(as_tfrecords, tmp_path, name):
    directory, _ = as_tfrecords
    (directory / name).write_text('{"splits": [')
    with pytest.raises(UserError) as error:
        converted(tmp_path)
    assert "\n" not in str(error.value)
    assert str(directory if name == "features.json" else tmp_path) in str(error.value)


def test_what_a_killed_conversion_leaves_is_replaced(as_tfrecords, tmp_path):
    directory, truth = as_tfrecords
    leftover = directory.with_name("incomplete.randmix") / "objects-train.array_record"
    leftover.parent.mkdir()
    leftover.write_bytes(b"half")
    name = "objects-train.array_record-00000-of-00003"
    (directory / name).write_bytes(b"")  # renamed, but not listed in dataset_info.json
    assert not records.is_complete(directory)
    converted(tmp_path)
    assert ArrayRecordReader(str(directory / name)).read_all() == truth[name]
    assert not leftover.parent.exists()


def test_a_folder_that_cannot_be_written_is_one_line(as_tfrecords, tmp_path, monkeypatch):
    def denied(path, content):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(prepare.durable, "write", denied)
    with pytest.raises(
        UserError, match=r"^cannot prepare tfds/objects/small in .*; choose another"
    ):
        converted(tmp_path)


def test_the_command_line(as_tfrecords, tmp_path):
    directory, _ = as_tfrecords
    for took in (" s)\n", "(already prepared)\n"):
        done = command.run("randmix prepare", "tfds/objects/small", f"--data_dir={tmp_path}")
        assert (done.status, done.err) == (0, "")
        where = f"tfds/objects/small: 20 train and 9 test examples in {directory} ("
        assert done.out.startswith(where)
        assert done.out.endswith(took)
    done = command.run("randmix prepare", "tfds/objects", "--num_shards=2")
    assert (done.status, done.err) == (
        2,
        "randmix: --num_shards is not a flag of tfds/objects; its flags are: none of its own\n",
    )


def test_whoever_needs_the_set_is_told_the_command(as_tfrecords, tmp_path):
    directory, _ = as_tfrecords
    with pytest.raises(UserError) as error:
        catalog.get("tfds/objects/small", tmp_path)
    assert str(error.value) == (
        f"{directory} holds tfrecord files, not array_record; run "
        f"`python -m randmix prepare tfds/objects/small:2.0.1 --data_dir={tmp_path}`"
    )
    info = directory / "dataset_info.json"
    info.write_text(info.read_text().replace('"tfrecord"', '"parquet"'))
    with pytest.raises(UserError) as error:
        converted(tmp_path)
    assert str(error.value) == (
        f"{directory} holds parquet files, not array_record; choose another data_dir and prepare "
        "it there"
    )


@pytest.mark.parametrize("seed", range(20))
def test_checksums_of_any_length(seed):
    rng = np.random.default_rng(seed)
    data = rng.bytes(int(rng.integers(0, 5 if seed < 5 else 3000)))
    assert tfrecords.crc32c(data) == tensorboard.crc32c(data)


def test_checksums_of_the_standard():
    """RFC 3720, appendix B.4."""
    for data, crc in (
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ):
        assert tfrecords.crc32c(data) == crc
