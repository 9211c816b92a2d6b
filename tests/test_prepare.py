"""Preparation of data sets from small archives, and of the real Fashion-MNIST where installed."""

import contextlib
import errno
import functools
import hashlib
import http.server
import logging
import signal
import subprocess
import sys
import threading
import time
from unittest import mock

import command
import pytest
import tensorflow_datasets as tfds
from absl import flags
from small_archives import SMALL, TEST, TRAIN, UNREACHABLE, in_one_order, small_mnist

from randmix.commands import prepare as prepare_command
from randmix.data import archives, builders, catalog, prepare
from randmix.errors import UserError
from randmix.runtime import locks


def run(*arguments):
    """Runs the command line."""
    return command.run("randmix prepare", *arguments)


@pytest.fixture
def mnist(monkeypatch):
    small = small_mnist()
    small.install(monkeypatch, UNREACHABLE)
    return small


@pytest.fixture
def server(tmp_path):
    """Serves a directory on a free port; returns (url, directory)."""
    directory = tmp_path / "served"
    directory.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=directory)
    ) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}", directory
        httpd.shutdown()


@pytest.mark.parametrize("name", SMALL)
def test_archives_become_the_arrays_they_hold(name, monkeypatch, tmp_path):
    small = SMALL[name]()
    small.install(monkeypatch, UNREACHABLE)
    directory = prepare.prepare(
        name, tmp_path, manual_dir=small.write(tmp_path / "manual"), progress=False
    )
    assert directory == tmp_path / name / catalog.get(name).version
    for split, truth in small.truth.items():
        assert in_one_order(catalog.load(name, split, tmp_path)) == in_one_order(truth)
    # read by the stock class
    source = tfds.data_source(name, data_dir=tmp_path, split="train", download=False)
    assert len(source) == TRAIN
    features = source.dataset_info.features
    if name == "fashion_mnist":
        assert features["label"].names[9] == "Ankle boot"
    if name.startswith("cifar"):
        assert features["label"].names[3] == "class 3"
        assert sorted(example["id"] for example in source) == [
            b"train_%05d" % k for k in range(TRAIN)
        ]
    if name == "cifar100":
        assert features["coarse_label"].names[19] == "group 19"
        assert {example["coarse_label"] for example in source} == {7}


def test_the_users_archives_are_only_read(mnist, tmp_path):
    manual = mnist.write(tmp_path / "manual")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in manual.iterdir()}
    prepare.prepare("mnist", tmp_path / "data", manual_dir=manual, progress=False)
    assert {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in manual.iterdir()
    } == before
    assert [path.name for path in (tmp_path / "data" / "mnist").iterdir()] == ["3.0.1"]


def test_missing_archives_are_named(mnist, tmp_path):
    manual = mnist.write(tmp_path / "manual")
    (manual / "train-labels-idx1-ubyte.gz").unlink()
    (manual / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        UserError, match=r"manual lacks train-labels-idx1-ubyte\.gz, t10k-labels-idx1-ubyte\.gz$"
    ):
        prepare.prepare("mnist", tmp_path, manual_dir=manual)


@pytest.mark.parametrize(
    "change", [lambda data: data[:-3], lambda data: data[:-1] + b"!", lambda data: b""]
)
def test_a_wrong_archive_is_named_with_both_checksums(mnist, tmp_path, change):
    manual = mnist.write(tmp_path / "manual")
    archive = manual / "t10k-images-idx3-ubyte.gz"
    expected, wrong = archive.read_bytes(), change(archive.read_bytes())
    archive.write_bytes(wrong)
    with pytest.raises(UserError) as error:
        prepare.prepare("mnist", tmp_path, manual_dir=manual)
    assert str(error.value) == (
        f"{archive} is damaged or a different file: "
        f"expected SHA-256 {hashlib.sha256(expected).hexdigest()} "
        f"({len(expected)} bytes), found {hashlib.sha256(wrong).hexdigest()} ({len(wrong)} bytes); "
        "download it again"
    )
    assert not catalog.is_prepared("mnist", tmp_path)


def test_archives_are_downloaded_once(monkeypatch, server, tmp_path):
    url, served = server
    small = small_mnist()
    small.install(monkeypatch, url)
    small.write(served)
    prepare.prepare("mnist", tmp_path, progress=False)
    assert catalog.load("mnist", "test", tmp_path)["label"].shape == (TEST,)
    downloads = tmp_path / "downloads" / "mnist"
    assert {path.name: path.read_bytes() for path in downloads.iterdir()} == small.files
    small.install(monkeypatch, UNREACHABLE)  # the downloads are used again
    (tmp_path / "mnist" / "3.0.1").rename(tmp_path / "elsewhere")
    prepare.prepare("mnist", tmp_path, progress=False)
    assert catalog.is_prepared("mnist", tmp_path)


def test_a_wrong_download_is_discarded(monkeypatch, server, tmp_path):
    url, served = server
    small = small_mnist()
    small.install(monkeypatch, url)
    small.write(served)
    (served / "t10k-images-idx3-ubyte.gz").write_bytes(b"an error page")
    with pytest.raises(
        UserError, match=r"t10k-images-idx3-ubyte.gz is damaged or a different file"
    ):
        prepare.prepare("mnist", tmp_path, progress=False)
    small.write(served)
    prepare.prepare("mnist", tmp_path, progress=False)
    assert catalog.is_prepared("mnist", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["refused", "absent", "silent"])
def test_a_dead_network_fails_fast(monkeypatch, server, tmp_path, trouble):
    monkeypatch.setattr(archives, "TIMEOUT", 0.3)
    url, _ = server
    with socket_that_never_answers() as silent:
        small_mnist().install(
            monkeypatch, {"refused": UNREACHABLE, "absent": url, "silent": silent}[trouble]
        )
        start = time.monotonic()
        with pytest.raises(
            UserError, match=r"mnist: cannot download http://127.* --manual_dir=DIR$"
        ):
            prepare.prepare("mnist", tmp_path, progress=False)
        assert time.monotonic() - start < 10
    assert not list((tmp_path / "downloads" / "mnist").iterdir())


@contextlib.contextmanager
def socket_that_never_answers():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_without_archives_fashion_mnist_says_where_to_get_them(monkeypatch, tmp_path):
    small = small_mnist("fashion_mnist")
    small.install(monkeypatch, UNREACHABLE)
    hint = (
        "`apt-get install dataset-fashion-mnist` provides them: "
        "--manual_dir=/usr/share/datasets/fashion-mnist$"
    )
    with pytest.raises(UserError, match=f"{', '.join(small.files)}.*{hint}"):
        prepare.prepare("fashion_mnist", tmp_path, progress=False)
    with pytest.raises(UserError, match=hint):
        prepare.prepare("fashion_mnist", tmp_path, manual_dir=tmp_path, progress=False)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("write() failed: No space left on device; writing x; at byte 5"),
    ],
)
def test_a_full_disk_is_one_line_and_leaves_nothing(mnist, monkeypatch, tmp_path, error):
    def fail(self, images_path, labels_path):
        yield 0, {"image": builders.Image.new("L", (28, 28)), "label": 1}
        raise error

    monkeypatch.setattr(builders.MNIST, "_generate_examples", fail)
    with pytest.raises(
        UserError,
        match=r"cannot prepare mnist in .*No space left on device; choose another data_dir$",
    ):
        prepare.prepare(
            "mnist", tmp_path, manual_dir=mnist.write(tmp_path / "manual"), progress=False
        )
    assert not list((tmp_path / "mnist").iterdir())


@pytest.mark.parametrize("bug", [RuntimeError("a bug"), IndexError("a bug")])
def test_another_error_while_preparing_is_a_bug(mnist, monkeypatch, tmp_path, bug):
    monkeypatch.setattr(builders, "read_idx", mock.Mock(side_effect=bug))
    with pytest.raises(type(bug), match="a bug"):
        prepare.prepare(
            "mnist", tmp_path, manual_dir=mnist.write(tmp_path / "manual"), progress=False
        )


def test_what_a_killed_process_leaves_is_no_data_set(tmp_path):
    program = f"""
import os, signal
from randmix.data import builders, prepare
generate = builders.Digits._generate_examples
def killed(self, split):
    yield from list(generate(self, split))[:100]
    os.kill(os.getpid(), signal.SIGKILL)
builders.Digits._generate_examples = killed
prepare.prepare("digits", {str(tmp_path)!r})
"""
    assert (
        subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    )
    assert (tmp_path / "digits" / "incomplete.randmix").exists()
    assert not catalog.is_prepared("digits", tmp_path)
    prepare.prepare("digits", tmp_path, progress=False)
    assert catalog.load("digits", "test", tmp_path)["label"].shape == (360,)
    assert not (tmp_path / "digits" / "incomplete.randmix").exists()


def test_an_incomplete_copy_is_not_taken_for_prepared(tmp_path):
    (tmp_path / "digits" / "1.0.0").mkdir(parents=True)
    with pytest.raises(
        UserError, match=r"1\.0\.0 is not a complete data set; remove it and try again$"
    ):
        prepare.prepare("digits", tmp_path)


def test_a_second_process_waits_for_the_first(tmp_path, caplog):
    (tmp_path / "digits").mkdir()
    with (
        caplog.at_level(logging.WARNING),
        locks.try_lock(tmp_path / "digits" / ".lock"),
    ):
        second = threading.Thread(
            target=prepare.prepare, args=("digits", tmp_path), kwargs={"progress": False}
        )
        second.start()
        until = time.monotonic() + 60
        while not caplog.messages and time.monotonic() < until:
            time.sleep(0.01)
        assert second.is_alive()
        assert caplog.messages == ["another process is preparing digits; waiting for it"]
        assert not (tmp_path / "digits" / "1.0.0").exists()
    second.join()
    assert catalog.is_prepared("digits", tmp_path)


@pytest.mark.slow
def test_the_command_line_prepares_and_says_so(tmp_path):
    first, second = run("digits", f"--data_dir={tmp_path}"), run("digits", "--data_dir", tmp_path)
    where = f"digits: 1,437 train and 360 test examples in {tmp_path}/digits/1.0.0 ("
    assert (first.status, first.err, second.status, second.err) == (0, "", 0, "")
    assert first.out.startswith(where)
    assert first.out.endswith(" s)\n")
    assert second.out == f"{where}already prepared)\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["digts"],
            "no data set is named 'digts'; there are: digits, mnist, ",
        ),
        ([], "expected DATA_SET, got nothing; see --help"),
        (["digits", "--num_shards=0"], "--num_shards=0: expected a positive integer"),
        (["digits", "--num_shards=361"], "num_shards: got 361, allowed is 1 to 360 for digits"),
        (["digits", "--data_dir=/dev/null"], "cannot prepare digits in /dev/null/digits/1.0.0: "),
        (["mnist", "--manual_dir=/dev/null"], "mnist: /dev/null lacks t10k-images-idx3-ubyte.gz, "),
    ],
)
def test_a_mistake_is_one_line_and_status_2(tmp_path, arguments, line, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    done = run(*arguments)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"randmix: {line}")
    assert done.err.count("\n") == 1


def test_the_help_lists_the_catalog():
    for data_set in catalog.DATA_SETS.values():
        h, w, _ = data_set.image_shape
        (line,) = (
            line
            for line in prepare_command.HELP.splitlines()
            if line.split()[:1] == [data_set.name]
        )
        assert f"{data_set.train_examples:,} + {data_set.test_examples:,} " in line
        assert data_set.streamed or f"{h}x{w}" in line


def test_importing_defines_no_flags():
    """Another program may have a --data_dir of its own and load digits."""
    assert "manual_dir" not in flags.FLAGS
