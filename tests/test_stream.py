"""Streams: pure in (seed, step), equal for any number of processes, each test example once."""

import io
import logging
import os
import resource
import shutil
import sys
import threading
import time
from pathlib import Path

import bucket
import jax
import numpy as np
import pictures
import pytest
from etils.epath import testing
from PIL import Image

from randmix.data import catalog, feeds, prepare, reader, records, stream
from randmix.errors import UserError
from randmix.runtime import sharding

NAME, N, BATCH = "imagefolder/pets", 45, 8
READING = reader.Reading(image_size=16)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """45 training and 5 test images."""
    folder = tmp_path_factory.mktemp("pets")
    pictures.folder(folder / "source", each=25)
    source = folder / "source"
    (source / "cat" / "tall.jpg").write_bytes(pictures.encode(pictures.photograph(0, 60, 300)))
    (source / "dog" / "24.png").unlink()
    prepare.prepare_folder(source, NAME, folder / "data", progress=False)
    return folder / "data"


def photographs(data_dir, split="train", reading=READING, **options):
    data_set = catalog.get(NAME, data_dir, image_size=reading.image_size)
    return reader.Photographs(data_set, split, data_dir, reading, **options)


def train(data_dir, *, seed=0, rows=range(BATCH), start=0, stop=12):
    options = {"rows": rows, "steps": range(start, stop), "put": dict, "workers": 2}
    batches = stream.train_batches(photographs(data_dir), seed=seed, batch_size=BATCH, **options)
    return list(batches)


def equal(one, other):
    return all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("processes", [2, 4])
def test_any_number_of_processes_sees_the_same_global_batches(data_dir, processes):
    whole, size = train(data_dir), BATCH // processes
    parts = [train(data_dir, rows=range(p * size, (p + 1) * size)) for p in range(processes)]
    for step, batch in enumerate(whole):
        joined = {name: np.concatenate([part[step][name] for part in parts]) for name in batch}
        assert equal(joined, batch), step
    scattered = train(data_dir, rows=[1, 6])  # devices that don't lie side by side
    assert all(
        equal(s, {k: v[[1, 6]] for k, v in w.items()})
        for s, w in zip(scattered, whole, strict=True)
    )


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("batch_size", [4, 8])
def test_evaluation_sees_each_example_exactly_once(data_dir, processes, batch_size):
    truth = photographs(data_dir)
    truth = [truth.for_evaluation(k) for k in range(N)]
    size = batch_size // processes
    seen = []
    for p in range(processes):
        rows = range(p * size, (p + 1) * size)
        options = {"rows": rows, "put": dict, "workers": 2}
        batches = list(stream.eval_batches(photographs(data_dir), batch_size=batch_size, **options))
        # equally many on each process, or the others would wait forever
        assert len(batches) == -(-N // batch_size)
        for b, batch in enumerate(batches):
            for i, row in enumerate(rows):
                if batch["mask"][i]:
                    seen.append(b * batch_size + row)
                    assert equal({k: v[i] for k, v in batch.items()}, truth[seen[-1]])
    assert sorted(seen) == list(range(N))


def test_a_stream_can_start_at_any_step(data_dir):
    whole = train(data_dir)
    for start in (1, 5, 7, 11):
        assert all(
            equal(a, b) for a, b in zip(train(data_dir, start=start), whole[start:], strict=True)
        )


def test_epochs_visit_each_example_once_in_different_orders(data_dir):
    positions = {}
    source = photographs(data_dir)
    for seed in (0, 1, 2**32 - 1):
        for epoch in range(3):
            rows = [stream._shuffled(k, N, seed, epoch) for k in range(N)]
            assert sorted(rows) == list(range(N))
            positions[seed, epoch] = tuple(rows)
    assert len(set(positions.values())) == len(positions)
    # 45 // 8 batches per epoch: batch 5 is the first of the second epoch.
    labels = [int(source.for_evaluation(row)["label"]) for row in positions[0, 1][:BATCH]]
    assert train(data_dir, start=5, stop=6)[0]["label"].tolist() == labels
    # Fixed by seed and epoch in any version of Grain: old runs must resume.
    assert positions[0, 0][:6] == FIRST


FIRST = (15, 31, 2, 33, 35, 6)


def test_crops_are_drawn_anew_in_each_epoch_and_for_each_seed(data_dir):
    source = photographs(data_dir)
    crops = {
        source.for_training(3, stream._uniform(seed, position))["image"].tobytes()
        for seed in (0, 1)
        for position in (0, 1, N, 2 * N)
    }
    assert len(crops) == 8
    numbers = stream._uniform(0, 0)
    assert (numbers >= 0).all()
    assert (numbers < 1).all()
    # Fixed by seed and position, as the order is.
    np.testing.assert_allclose(numbers[0], [0.05596143, 0.22929323, 0.4641725, 0.38254088], 1e-7)


def test_without_random_crops_training_sees_what_evaluation_sees(tmp_path):
    """The centre in its shape, by Pillow, not the entire image squeezed into a square."""
    pictures.folder(tmp_path / "source", each=4, width=60, height=20)
    prepare.prepare_folder(tmp_path / "source", NAME, tmp_path, progress=False)
    reading = reader.Reading(image_size=16, crop_scale=1.0, eval_crop=0.8)
    source = photographs(tmp_path, reading=reading)
    for row in range(source.examples):
        image = Image.open(io.BytesIO(source._source[row]["image"]))
        expected = image.resize((60, 20), Image.Resampling.BICUBIC).crop((22, 2, 38, 18))
        got = source.for_training(row, stream._uniform(0, row))
        np.testing.assert_array_equal(got["image"], np.asarray(expected))


def test_evaluation_needs_no_particular_decoder(data_dir, monkeypatch):
    whole = photographs(data_dir, "test")
    expected = [whole.for_evaluation(row) for row in range(5)]
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    reading = reader.Reading(image_size=16, decoder="simplejpeg")
    source = photographs(data_dir, "test", reading)
    assert all(equal(source.for_evaluation(row), expected[row]) for row in range(5))
    with pytest.raises(UserError, match="got 'simplejpeg', but simplejpeg can't be imported"):
        photographs(data_dir, reading=reading).for_training(0, stream._uniform(0, 0))


def test_the_feed_yields_the_batch_of_each_step_on_all_devices(data_dir):
    mesh = sharding.make_mesh(jax.devices()[:4])
    split_batch = sharding.split_batch(mesh)
    assert stream.rows_of_this_process(BATCH, split_batch) == list(range(BATCH))
    feed = stream.TrainStream(
        photographs(data_dir),
        seed=0,
        batch_size=BATCH,
        total_steps=12,
        workers=2,
        split_batch=split_batch,
        skipped=set(),
    )
    whole = train(data_dir)
    for step in (4, 5, 6, 11, 2):  # from a checkpoint on, and back
        batch, order = feed.arguments(step)
        assert order is None
        assert batch["image"].sharding == split_batch
        assert equal(jax.device_get(batch), whole[step])
    feed.close()
    passes = stream.EvalStream(
        photographs(data_dir, "test"),
        batch_size=4,
        workers=2,
        split_batch=split_batch,
        skipped=set(),
    )
    first, second = ([jax.device_get(batch) for batch in passes] for _ in range(2))
    assert [batch["mask"].tolist() for batch in first] == [[True] * 4, [True] + [False] * 3]
    assert all(equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ["digits", NAME])
def test_shapes_are_known_without_the_data(name, data_dir):
    """The shapes for compiling without a data set are those that the feeds yield."""
    mesh = sharding.make_mesh(jax.devices()[:4])
    where = data_dir if name == NAME else None
    data_set = catalog.get(name, where, image_size=READING.image_size)
    batches = {"batch_size": BATCH, "mesh": mesh}

    def equal_shapes(shapes, arguments):
        return jax.tree.all(
            jax.tree.map(
                lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype) and a.sharding == b.sharding,
                shapes,
                arguments,
            )
        )

    feed = feeds.Split(data_set, "train", where, READING).for_training(
        seed=0, total_steps=3, examples=40, **batches
    )
    assert equal_shapes(feeds.train_shapes(data_set, examples=40, **batches), feed.arguments(0))
    feed.close()
    test = feeds.Split(data_set, "test", where, READING).for_evaluation(examples=4, **batches)
    assert equal_shapes(feeds.eval_shapes(data_set, examples=4, **batches), next(iter(test)))


def endless(data_dir, reading=READING):
    """A million steps of the photographs, on one device."""
    return stream.TrainStream(
        photographs(data_dir, reading=reading),
        seed=0,
        batch_size=BATCH,
        total_steps=10**6,
        workers=2,
        split_batch=sharding.split_batch(sharding.make_mesh(jax.devices()[:1])),
        skipped=set(),
    )


def test_closing_ends_the_threads(data_dir):
    before = threading.active_count()
    feed = endless(data_dir)
    feed.arguments(0)
    assert threading.active_count() > before
    feed.close()
    feed.close()
    until = time.monotonic() + 60
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert (
        threading.active_count() <= before
    )  # a thread of an earlier test may have ended meanwhile


def test_the_first_batch_comes_soon(data_dir):
    """In CPU time, which other work on the machine doesn't affect."""
    began = time.process_time()
    feed = endless(data_dir)
    feed.arguments(500_000)
    assert time.process_time() - began < 5
    feed.close()


@pytest.mark.slow
def test_memory_stays_flat_over_epochs(data_dir):
    feed = endless(data_dir)

    def resident_after(steps):
        for step in steps:
            feed.arguments(step)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 2**20

    warm = resident_after(range(50))
    assert resident_after(range(50, 300)) - warm < 20  # MB over 50 epochs
    feed.close()


def damage(monkeypatch, *rows):
    """Cuts the images of some rows' records in half."""
    open_source = catalog.open_source

    class Damaged:
        def __init__(self, source):
            self.source = source

        def __len__(self):
            return len(self.source)

        def __getitem__(self, row):
            record = self.source[row]
            return record | {"image": record["image"][:200]} if row in rows else record

    monkeypatch.setattr(catalog, "open_source", lambda *a: Damaged(open_source(*a)))


def test_a_damaged_image_is_fatal_and_named(data_dir, monkeypatch):
    name = catalog.open_source(catalog.get(NAME, data_dir), "train", data_dir)[7][
        "file_name"
    ].decode()
    damage(monkeypatch, 7)
    message = (
        rf"^{NAME}, train: {name} \(record 7\) is not a complete image \(.*\); "
        "set config.data.corrupt to skip"
    )
    with pytest.raises(UserError, match=message):
        stream.load(photographs(data_dir), workers=2)  # through the threads
    feed = stream.TrainStream(
        photographs(data_dir),
        seed=0,
        batch_size=BATCH,
        total_steps=6,
        workers=2,
        split_batch=sharding.split_batch(sharding.make_mesh(jax.devices()[:1])),
        skipped=set(),
    )
    with pytest.raises(UserError, match=message):
        jax.block_until_ready([feed.arguments(step) for step in range(6)])
    feed.close()


def test_a_skipped_image_is_named_once_counted_and_replaced(data_dir, monkeypatch, caplog):
    whole = photographs(data_dir)
    damage(monkeypatch, 7, 8, 44)
    skipping = reader.Reading(image_size=16, corrupt="skip")
    source = photographs(data_dir, reading=skipping)
    draws = stream._uniform(0, 0)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            for row, next_one, skipped in ((7, 9, 2), (44, 0, 1), (3, 3, 0)):
                got, expected = source.for_training(row, draws), whole.for_training(next_one, draws)
                assert equal(got, {**expected, "row": row, "skipped": skipped})
            assert not source.for_evaluation(8)["mask"]
    assert [message.split("(record ")[1][:2].strip(")") for message in caplog.messages] == [
        "7",
        "8",
        "44",
    ]
    assert caplog.messages[2].endswith("skipped, 3 so far")
    assert sorted(source.corrupt) == [7, 8, 44]
    arrays = stream.load(source)
    assert arrays["image"].shape == (N - 3, 16, 16, 3)
    label_of = records.label_of
    with monkeypatch.context() as unlabelled:
        unlabelled.setattr(
            records,
            "label_of",
            lambda record, where, held: label_of(
                record | ({"label": -1} if where.endswith(" 3") else {}), where, held
            ),
        )
        assert not photographs(data_dir, reading=skipping).for_evaluation(3)["mask"]
        with pytest.raises(UserError, match="got the label -1"):
            photographs(data_dir).for_evaluation(3)
    damage(monkeypatch, *range(N))
    with pytest.raises(UserError, match="damaged images in a row from record 5 on"):
        photographs(data_dir, reading=skipping).for_training(5, draws)


def test_damaged_records_are_noticed(data_dir, tmp_path):
    shutil.copytree(data_dir, tmp_path, dirs_exist_ok=True)
    (file,) = (tmp_path / NAME / "1.0.0").glob("*train.array_record*")
    data = bytearray(file.read_bytes())
    data[len(data) // 8] ^= 4  # the second half is padding
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"1\.0\.0 is damaged .*; remove it and prepare it again"):
        stream.load(photographs(tmp_path))
    skipping = photographs(tmp_path, reading=reader.Reading(image_size=16, corrupt="skip"))
    read = stream.load(skipping)
    assert len(read["label"]) == N - len(skipping.corrupt) < N
    assert {skipping.file_name(row) for row in skipping.corrupt} == {None}
    file.unlink()
    with pytest.raises(UserError, match=r"1\.0\.0 is damaged"):
        stream.load(photographs(tmp_path))


def test_one_thread_for_each_core(data_dir, monkeypatch):
    seen = []
    options = stream.grain.ReadOptions
    monkeypatch.setattr(stream.grain, "ReadOptions", lambda **kw: seen.append(kw) or options(**kw))
    stream.load(photographs(data_dir, examples=3))
    assert seen[0]["num_threads"] == len(os.sched_getaffinity(0))


def test_a_bucket_is_read_as_a_folder_is(data_dir):
    here = photographs(data_dir)
    with bucket.stand_in(data_dir) as asked:
        there = photographs("gs://bucket")
        assert there.examples == N
        for row in (0, N - 1):
            assert equal(there.for_evaluation(row), here.for_evaluation(row))
        assert catalog.is_prepared(NAME, "gs://bucket")
        with pytest.raises(UserError, match="imagefolder/owls is not prepared in gs://bucket; run"):
            catalog.get("imagefolder/owls", "gs://bucket")
    assert any(name.endswith(".array_record-00000-of-00001") for name in asked)


def test_a_bucket_without_its_library_is_one_line():
    def fail(*_):
        raise ImportError("Please install gcsfs to access Google Storage")

    with (
        testing.mock_epath(open=fail),
        pytest.raises(UserError, match=r"gs://bucket/.* is unreachable: Please install gcsfs"),
    ):
        catalog.is_prepared("imagenet2012", "gs://bucket")
