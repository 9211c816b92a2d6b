"""Image folders as data sets: complete and exact storage, and refused folders."""

import errno
import io
import json
import multiprocessing
import os
import re
import socket
import stat

import command
import numpy as np
import pictures
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from randmix.data import catalog, imagefolder, prepare
from randmix.errors import UserError

NAME = "imagefolder/pets"


def prepared(source, data_dir, **options):
    return prepare.prepare_folder(source, NAME, data_dir, progress=False, **options)


def stored(data_dir, split):
    """{file name: (bytes, label)}, read by TFDS alone."""
    builder = tfds.builder_from_directory(data_dir / NAME / "1.0.0")
    source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    names = builder.info.features["label"].names
    examples = (source[k] for k in range(len(source)))
    return {x["file_name"].decode(): (x["image"], names[x["label"]]) for x in examples}


def refused(source, tmp_path):
    """The one-line error for a refused folder; checks that nothing was written."""
    with pytest.raises(UserError) as error:
        prepared(source, tmp_path / "data")
    assert "\n" not in str(error.value)
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    return str(error.value)


@pytest.mark.parametrize("test_folder", ["test", "val", "validation"])
def test_folders_that_are_split_become_splits_byte_for_byte(tmp_path, test_folder):
    source = tmp_path / "source"
    pictures.folder(source / "train")
    pictures.folder(source / test_folder, classes=("dog",), each=3)
    (source / "train" / "cat" / ".DS_Store").write_bytes(b"left by a file manager")
    prepared(source, tmp_path)
    split = "test" if test_folder == "test" else "validation"
    for name, folder in (("train", "train"), (split, test_folder)):
        files = {f"{p.parent.name}/{p.name}": p for p in (source / folder).glob("*/[0-9]*")}
        expected = {key: (file.read_bytes(), file.parent.name) for key, file in files.items()}
        assert stored(tmp_path, name) == expected
    data_set = catalog.get(NAME, tmp_path)
    assert (data_set.train_examples, data_set.test_examples, data_set.num_classes) == (20, 3, 2)
    assert len(catalog.open_source(data_set, "test", tmp_path)) == 3
    # decoded by TFDS
    source = tfds.data_source(NAME, data_dir=tmp_path, split="train", download=False)
    assert source[0]["image"].shape == (30, 40, 3)


def test_folders_that_are_not_split_are_split_by_hash(tmp_path):
    source = pictures.folder(tmp_path / "source", each=26)
    files = imagefolder.find(source)
    assert imagefolder.count(files) == {"train": 46, "test": 6}
    # From `printf cat/00.png | sha256sum` and so on; it must never change.
    assert [file.name for file in files["test"]["cat"]] == SMALLEST
    for label in ("cat", "dog"):
        both = files["train"][label] + files["test"][label]
        assert sorted(both) == sorted((source / label).iterdir())
    pictures.folder(tmp_path / "elsewhere", each=26)
    again = imagefolder.find(tmp_path / "elsewhere")
    assert [f.name for f in again["test"]["dog"]] == [f.name for f in files["test"]["dog"]]


SMALLEST = ["09.png", "13.jpg", "21.png"]


@pytest.mark.parametrize(
    ("file_name", "content"),
    [
        ("grey.png", lambda: pictures.encode(pictures.noise(0, channels=1), "PNG")),
        ("grey.jpg", lambda: pictures.encode(pictures.noise(0, channels=1))),
        ("cmyk.jpg", lambda: pictures.encode(pictures.noise(0), mode="CMYK")),
        ("palette.png", lambda: pictures.encode(pictures.noise(0), "PNG", mode="P")),
        ("bits.png", lambda: pictures.encode(pictures.noise(0, channels=1), "PNG", mode="1")),
        ("opaque.png", lambda: pictures.encode(pictures.noise(0), "PNG", mode="RGBA")),
        (
            "opaque_grey.png",
            lambda: pictures.encode(pictures.noise(0, channels=1), "PNG", mode="LA"),
        ),
    ],
)
def test_what_has_one_meaning_in_rgb_is_converted_without_loss(tmp_path, file_name, content):
    file = tmp_path / file_name
    file.write_bytes(content())
    image = Image.open(io.BytesIO(imagefolder.rgb_bytes(file)))
    assert (image.format, image.mode) == ("PNG", "RGB")
    np.testing.assert_array_equal(np.asarray(image), np.asarray(Image.open(file).convert("RGB")))


@pytest.mark.parametrize(
    ("file_name", "content", "message"),
    [
        (
            "a.png",
            lambda: pictures.encode(np.arange(600, dtype=np.uint16).reshape(20, 30) * 99, "PNG"),
            "16 bits",
        ),
        ("a.png", pictures.colour_png_of_16_bits, "16 bits"),
        ("a.png", lambda: pictures.transparent("RGBA"), "partly transparent"),
        ("a.png", lambda: pictures.transparent("P"), "partly transparent"),
        ("a.png", lambda: pictures.transparent("RGB"), "partly transparent"),
        ("a.jpg", lambda: b"<html>not found</html>", "not a complete image (not a JPEG or PNG)"),
        ("a.jpg", lambda: b"", "not a complete image (not a JPEG or PNG)"),
        (
            "a.jpg",
            lambda: pictures.encode(pictures.noise(0), "GIF"),
            "not a complete image (not a JPEG or PNG)",
        ),
        (
            "a.jpg",
            lambda: pictures.encode(pictures.noise(0))[:-700],
            "not a complete image (image file is truncated",
        ),
        (
            "a.png",
            lambda: pictures.encode(pictures.noise(0), "PNG")[:-700],
            "not a complete image (",
        ),
        (
            "a.webp",
            lambda: b"whatever",
            "not an image by its name; allowed in a class folder are .jpg, .jpeg, .png",
        ),
    ],
)
def test_a_file_that_cannot_be_taken_is_named(tmp_path, file_name, content, message):
    source = pictures.folder(tmp_path / "source")
    file = source / "cat" / file_name
    file.write_bytes(content())
    line = refused(source, tmp_path)
    assert message in line
    assert str(file) in line


def _socket(file):
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.path.relpath(file))  # a socket's path is at most 107 bytes


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        _socket,
        lambda file: (os.mkfifo(file.with_name(".pipe")), file.symlink_to(".pipe")),
        lambda file: file.symlink_to("/dev/zero"),
        lambda file: file.symlink_to(file),
        lambda file: file.symlink_to("nowhere.png"),
    ],
)
def test_what_is_no_file_is_named_and_not_opened(tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)
    source = pictures.folder(tmp_path / "source")
    file = source / "cat" / "x.png"
    make(file)
    done = command.run(
        "randmix prepare",
        "imagefolder",
        f"--source={source}",
        f"--data_dir={tmp_path / 'data'}",
        limit=30,
    )
    assert (done.status, done.out) == (2, "")
    assert done.err == (
        f"randmix: --source: {file} is a pipe, a socket, a device or a broken link, allowed are "
        "files; remove or replace it\n"
    )
    assert not (tmp_path / "data").exists()


def test_links_to_files_and_folders_are_followed(tmp_path):
    source = pictures.folder(tmp_path / "source")
    (source / "dog").rename(tmp_path / "elsewhere")
    (source / "dog").symlink_to(tmp_path / "elsewhere")
    (source / "cat" / "00.png").rename(tmp_path / "image")
    (source / "cat" / "00.png").symlink_to(tmp_path / "image")
    assert imagefolder.count(imagefolder.find(source)) == {"train": 18, "test": 2}
    assert imagefolder.rgb_bytes(source / "cat" / "00.png") == (tmp_path / "image").read_bytes()
    (source / "loop").symlink_to("loop")
    assert f"{source / 'loop'} is next to folders" in refused(source, tmp_path)


def test_what_may_not_be_read_is_named(tmp_path, monkeypatch):
    source = pictures.folder(tmp_path / "source")
    with monkeypatch.context() as patched:
        patched.setattr(imagefolder.Path, "read_bytes", _denied)
        line = refused(source, tmp_path)
    assert re.fullmatch(
        r".*\.(png|jpg) can't be read \(Permission denied\); remove or replace it", line
    )
    monkeypatch.setattr(imagefolder.Path, "iterdir", _denied)
    with pytest.raises(UserError) as error:
        imagefolder.find(source)
    assert str(error.value) == f"--source: {source} can't be read (Permission denied)"


def test_a_name_that_is_not_utf_8_is_refused(tmp_path):
    source = pictures.folder(tmp_path / "source")
    os.rename(source / "cat" / "00.png", os.fsencode(source / "cat") + b"/\xe9.png")
    name = str(source / "cat" / "\udce9.png")
    line = refused(source, tmp_path)
    assert line == f"--source: {name!r} has a name that isn't UTF-8; rename it"


def test_folders_in_another_layout_are_refused(tmp_path):
    source = pictures.folder(tmp_path / "source")
    (source / "empty").mkdir()
    assert (
        refused(source, tmp_path)
        == f"--source: class folder {source / 'empty'} is empty; fill or remove it"
    )
    (source / "empty" / "one.jpg").write_bytes(pictures.encode(pictures.noise(0)))
    assert "class 'empty' has one image, but splitting needs two" in refused(source, tmp_path)
    (source / "empty" / "deeper").mkdir()
    assert f"{source / 'empty' / 'deeper'} is not an image by its name" in refused(source, tmp_path)
    (source / "train").mkdir()
    assert f"{source / 'cat'} is next to {source / 'train'}" in refused(source, tmp_path)
    only = tmp_path / "only"
    pictures.folder(only / "train")
    assert f"{only} has a train folder but neither test nor val" in refused(only, tmp_path)
    pictures.folder(only / "val", classes=("cat", "owl"))
    assert "validation has the class 'owl', which train lacks" in refused(only, tmp_path)
    (only / "list.csv").write_text("a,b")
    (only / "cat.jpg").write_bytes(b"")
    assert f"{only / 'cat.jpg'} is next to folders" in refused(only, tmp_path)
    assert f"{only / 'list.csv'} is not a folder" in refused(only / "list.csv", tmp_path)
    pictures.folder(tmp_path / "one", classes=("cat",))
    assert "contains 1 class folders, allowed are 2 or more" in refused(tmp_path / "one", tmp_path)


def test_a_name_that_is_taken_by_other_files(tmp_path):
    source = pictures.folder(tmp_path / "source")
    directory = prepared(source, tmp_path / "data")
    before = directory.stat().st_mtime_ns
    assert prepared(source, tmp_path / "data") == directory
    assert directory.stat().st_mtime_ns == before
    survey = (directory / "randmix.json").read_text()
    (directory / "randmix.json").unlink()  # as if it were of an older version
    assert prepared(source, tmp_path / "data") == directory
    assert (directory / "randmix.json").read_text() == survey
    (directory / "randmix.json").write_text("")  # a power loss
    with pytest.raises(UserError, match=r"randmix\.json is damaged; remove it and prepare"):
        catalog.get("imagefolder/pets", tmp_path / "data")
    (directory / "randmix.json").write_text(survey)
    whole = (directory / "metadata.json").read_text()
    (directory / "metadata.json").write_text("")
    with pytest.raises(
        UserError, match=r"is damaged \(metadata\.json: .*\); remove it and prepare"
    ):
        prepared(source, tmp_path / "data")
    (directory / "metadata.json").write_text(whole)
    (source / "cat" / "new.jpg").write_bytes(pictures.encode(pictures.noise(5)))
    with pytest.raises(
        UserError, match=r"was prepared from other files than .*; choose another --name"
    ):
        prepared(source, tmp_path / "data")


def test_tfrecords_get_the_conversion_command(tmp_path):
    directory = prepared(pictures.folder(tmp_path / "source"), tmp_path)
    info = json.loads((directory / "dataset_info.json").read_text())
    (directory / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(
        UserError, match=r"holds tfrecord files, not array_record; run .* tfds/imagefolder/pets:1"
    ):
        catalog.get(NAME, tmp_path)


def test_an_unprepared_folder_names_the_command(tmp_path):
    command_line = (
        f"`python -m randmix prepare imagefolder --source=DIR --name=pets --data_dir={tmp_path}`"
    )
    with pytest.raises(UserError) as error:
        catalog.get(NAME, tmp_path)
    assert str(error.value) == f"{NAME} is not prepared in {tmp_path}; run {command_line}"


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    source = pictures.folder(tmp_path / "source")

    def fail(self, classes):
        yield (
            "cat/00.png",
            {
                "image": (source / "cat/00.png").read_bytes(),
                "label": "cat",
                "file_name": "cat/00.png",
            },
        )
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(imagefolder.ImageFolder, "_generate_examples", fail)
    assert refused(source, tmp_path).endswith("No space left on device; choose another data_dir")


def test_a_data_dir_that_may_not_be_written(tmp_path, monkeypatch):
    source = pictures.folder(tmp_path / "source")
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(stat.S_IRUSR | stat.S_IXUSR)
    if os.access(tmp_path / "data", os.W_OK):  # root may write anywhere
        monkeypatch.setattr(prepare.Path, "mkdir", _denied)
    line = refused(source, tmp_path)
    assert line.startswith(f"cannot prepare {NAME} in {tmp_path / 'data' / NAME / '1.0.0'}: ")
    assert "Permission denied" in line


def _denied(path, *args, **kwargs):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


@pytest.mark.slow
def test_two_processes_prepare_it_once(tmp_path):
    source = pictures.folder(tmp_path / "source", each=40)
    context = multiprocessing.get_context("fork" if os.name == "nt" else "spawn")
    processes = [
        context.Process(target=prepared, args=(source, tmp_path / "data")) for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(stored(tmp_path / "data", "train")) == 72
    assert [path.name for path in (tmp_path / "data" / NAME).iterdir()] == ["1.0.0"]


def test_the_command_line(tmp_path):
    source = pictures.folder(tmp_path / "source")
    arguments = ("imagefolder", f"--source={source}", f"--data_dir={tmp_path}", "--num_shards=2")
    done = command.run("randmix prepare", *arguments)
    assert (done.status, done.err) == (0, "")
    where = (
        f"imagefolder/source: 18 train and 2 test examples in {tmp_path}/imagefolder/source/1.0.0 ("
    )
    assert done.out.startswith(where)
    assert len(list((tmp_path / "imagefolder/source/1.0.0").glob("*train*-of-00002"))) == 2
    mistakes = {
        ("imagefolder",): "--source is missing; give the folder with the images",
        (
            "imagefolder",
            f"--source={source}",
            "--name=a b",
        ): "--name: got 'a b', allowed are letters, digits, _ and -",
        ("imagefolder", f"--source={source}", "--manual_dir=x"): "--manual_dir is not a flag of "
        "imagefolder; its flags are: --source --name --num_shards",
        ("imagefolder", f"--source={source}", "--allow_subset"): "--allow_subset is not a flag of",
        (
            "imagefolder",
            f"--source={source}",
            "--num_shards=9",
        ): "num_shards: got 9, allowed is 1 to 2 for imagefolder/source",
        (
            "digits",
            f"--source={source}",
        ): "--source is not a flag of digits; its flags are: --manual_dir --num_shards",
        (
            *arguments[:2],
            "--data_dir=gs://bucket/data",
        ): "gs://bucket/data is not a local folder",
    }
    for wrong, line in mistakes.items():
        done = command.run("randmix prepare", *wrong)
        assert (done.status, done.out) == (2, ""), wrong
        assert done.err.startswith(f"randmix: {line}"), done.err
        assert done.err.count("\n") == 1
