"""What a power cut leaves: the order of flushes and renames, recorded. tests/faults.py cuts it."""

import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
import small
from etils import epath

from randmix.errors import UserError
from randmix.runtime import durable
from randmix.runtime.preemption import Preempted
from randmix.training import loop as train
from randmix.workdir.checkpoints import Checkpoints
from randmix.workdir.metrics import MetricsLog

pytestmark = pytest.mark.slow

# Orbax writes these after the manifest. They hold times of the save and are never read.
BOOKKEEPING = {"_CHECKPOINT_METADATA", "commit_success.txt"}


class Recorder:
    """Records flushes and renames; ``unflushed`` lists files renamed before they were on the disk.

    Attributes:
        events: ("flush", path, content of a log), ("rename", source, target), in order.
        unflushed: (file, target of the rename).
    """

    def __init__(self, patch):
        self.events, self.unflushed, self._flushed = [], [], {}
        fsync = os.fsync

        def flush(descriptor):
            fsync(descriptor)
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            self._flushed[path.stat().st_ino] = state(path)
            self.events.append(
                ("flush", path, path.read_text() if path.suffix == ".jsonl" else None)
            )

        patch.setattr(os, "fsync", flush)
        for name in ("rename", "replace"):
            patch.setattr(os, name, self._renaming(getattr(os, name)))

    def _renaming(self, rename):
        def renamed(source, target, **options):
            source, target = Path(source), Path(target)
            files = [source] if source.is_file() else source.rglob("*")
            # Orbax and TFDS rename within folders that are flushed as a whole at the end.
            inside = any("tmp" in part or "incomplete" in part for part in target.parts[-3:])
            if not inside and not target.name.endswith(".deleted"):
                self.unflushed += [
                    (file, target)
                    for file in files
                    if file.name not in BOOKKEEPING
                    and self._flushed.get(file.stat().st_ino) != state(file)
                ]
            rename(source, target, **options)
            self.events.append(("rename", source, target))

        return renamed

    def position(self, kind, path, after=-1):
        """The index of the first such event after another; fails if there is none."""
        for i, (what, source, target) in enumerate(self.events):
            if i > after and what == kind and path == (target if what == "rename" else source):
                return i
        raise AssertionError(f"no {kind} of {path} after event {after} of {self.events}")


def state(path):
    found = path.stat()
    return found.st_mtime_ns, found.st_size


@pytest.fixture
def recorder(monkeypatch):
    return Recorder(monkeypatch)


def test_a_run_puts_everything_on_the_disk_before_it_counts(tmp_path, recorder):
    workdir = tmp_path / "new" / "run"
    config = small.config(tensorboard=False)
    train.train(config, workdir, devices=jax.devices()[:1])
    assert recorder.unflushed == []
    # Every rename is flushed, too, and the new folders that hold the workdir.
    for i, (what, _, target) in enumerate(recorder.events):
        if what == "rename" and not target.name.endswith(".deleted"):
            recorder.position("flush", target.parent, after=i)
    for folder in (tmp_path, tmp_path / "new", workdir):
        recorder.position("flush", folder)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    saved = [2, 4, 6]
    at = {step: recorder.position("rename", workdir / "checkpoints" / str(step)) for step in saved}
    flushed = {step: recorder.position("flush", workdir / "checkpoints", at[step]) for step in at}
    assert recorder.position("rename", workdir / "config.json") < at[2]
    for step in saved:
        on_disk = [
            e[2] for e in recorder.events[: at[step]] if e[0] == "flush" and e[2] is not None
        ]
        lines = [json.loads(line) for line in on_disk[-1].splitlines()]
        assert [r for r in lines if r["step"] <= step] == [r for r in rows if r["step"] <= step]
    # An older one goes only after the newest is there for good.
    assert recorder.position("rename", workdir / "checkpoints" / "2.deleted") > flushed[6]
    assert recorder.position("rename", workdir / "result.json") > flushed[6]
    recorder.position("flush", workdir, recorder.position("rename", workdir / "result.json"))


def test_the_best_one_is_there_before_the_checkpoint_that_expects_it(tmp_path, recorder):
    best, latest = (Checkpoints(tmp_path, folder=name) for name in ("best", "checkpoints"))
    with best, latest:
        best.save(3, {"x": np.zeros(3)}, score=0.5)
        best.wait()
        latest.save(3, {"x": np.zeros(3)})
    there = recorder.position("rename", tmp_path / "best" / "3")
    flushed = recorder.position("flush", tmp_path / "best", there)
    assert flushed < recorder.position("rename", tmp_path / "checkpoints" / "3")
    assert recorder.unflushed == []


def test_the_recorder_finds_what_is_not_flushed(tmp_path, recorder):
    file = tmp_path / "a"
    file.write_text("a")
    file.rename(tmp_path / "b")
    assert recorder.unflushed == [(file, tmp_path / "b")]
    durable.write(tmp_path / "c", "c")
    assert len(recorder.unflushed) == 1
    with (tmp_path / "c").open("a") as more:
        more.write("more")
    (tmp_path / "c").rename(tmp_path / "d")
    assert len(recorder.unflushed) == 2
    with pytest.raises(AssertionError, match=r"no flush of .*/d after"):
        recorder.position("flush", tmp_path / "d")


def test_a_log_is_on_the_disk_after_its_flush(tmp_path, recorder):
    file = tmp_path / "metrics.jsonl"
    with MetricsLog(file, 0) as log:
        log.write(step=1, loss=0.5)
        before = len(recorder.events)
        log.flush()
        assert recorder.events[before:] == [("flush", file, '{"step": 1, "loss": 0.5}\n')]


def test_an_object_store_is_left_alone(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: pytest.fail("flushed"))
    durable.flush("gs://bucket/a")
    durable.flush_tree("gs://bucket/a")


def test_a_stopped_runs_checkpoint_is_flushed_too(tmp_path, recorder):
    def stopped():
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(3, {"x": np.zeros(3)})
            raise Preempted("stopped")

    with pytest.raises(Preempted):
        stopped()
    renamed = recorder.position("rename", tmp_path / "checkpoints" / "3")
    recorder.position("flush", tmp_path / "checkpoints", after=renamed)


def test_writers_of_one_file_do_not_take_each_others_temporary_one(tmp_path, monkeypatch):
    move = durable.move

    def beaten(source, target):
        with monkeypatch.context() as alone:
            alone.setattr(durable, "move", move)
            durable.write(tmp_path / "a", "theirs")
        move(source, target)

    monkeypatch.setattr(durable, "move", beaten)
    durable.write(tmp_path / "a", "ours")
    assert (tmp_path / "a").read_text() == "ours"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_a_file_system_that_cannot_flush_folders_does(tmp_path, monkeypatch):
    def refuse(descriptor, number):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", lambda descriptor: refuse(descriptor, 22))
    durable.write(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text"
    monkeypatch.setattr(os, "fsync", lambda descriptor: refuse(descriptor, 5))
    with pytest.raises(OSError, match="Input/output error"):
        durable.write(tmp_path / "a", "other")
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("killed_in", ["save", "delete"])
def test_remains_of_a_killed_process_are_removed(tmp_path, killed_in):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, {"x": np.zeros(3)})
    name = {"save": "6.orbax-checkpoint-tmp", "delete": "1.deleted"}[killed_in]
    (tmp_path / "checkpoints" / name / "default").mkdir(parents=True)
    (tmp_path / "checkpoints" / "notes 6.tmp").mkdir()
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = {"x": jax.ShapeDtypeStruct((3,), np.float32, sharding=device)}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.all_steps() == [3]
        assert checkpoints.restore_latest(target) is not None
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["3", "notes 6.tmp"]


def test_in_a_bucket_a_checkpoint_counts_once_it_is_committed(tmp_path, monkeypatch):
    # Orbax writes to gs:// under the final name and marks the end by a file. That way is taken here
    # on a local folder; the client of the object store itself has no stand-in.
    from orbax.checkpoint._src.path import gcs_utils

    monkeypatch.setattr(gcs_utils, "is_gcs_path", lambda path: True)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, {"x": np.zeros(3)})
    monkeypatch.setattr(durable, "is_local", lambda path: False)
    folder = epath.Path(tmp_path / "checkpoints")
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints._root = folder
        assert checkpoints.damage(3) is None
        assert checkpoints.all_steps() == [3]
        (folder / "3" / "commit_success.txt").unlink()
        assert checkpoints.all_steps() == []


def test_names_that_only_look_like_steps_are_left_alone(tmp_path):
    for name in ("03", "\N{ARABIC-INDIC DIGIT THREE}", "3 ", "-1", "x"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.all_steps() == []
        with pytest.raises(UserError, match="no checkpoint there"):
            checkpoints.restore_variables()
