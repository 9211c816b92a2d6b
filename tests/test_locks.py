"""Locks: one holder at a time, released after any end, no files left."""

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys

import pytest
import small
from etils import epath

from randmix.errors import UserError
from randmix.runtime import locks
from randmix.training.loop import train
from randmix.workdir import artifacts


def test_one_holder_at_a_time_and_no_file_afterwards(tmp_path):
    file = tmp_path / "lock"
    with locks.try_lock(file) as mine:
        assert mine
        assert locks.holder(file).split()[-2:] == ["process", str(os.getpid())]
        for _ in range(2):  # whoever doesn't get the lock leaves it unchanged
            with locks.try_lock(file) as again:
                assert not again
        assert file.exists()
    assert not file.exists()
    assert locks.holder(file) == "just ended"
    with locks.try_lock(file) as mine:
        assert mine


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path):
    file = tmp_path / "lock"
    code = f"""
import os, signal
from randmix.runtime import locks
with locks.try_lock({str(file)!r}):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert file.exists()
    with locks.try_lock(file) as mine, locks.try_lock(file) as again:
        assert mine
        assert not again
    assert not file.exists()


def test_a_lock_on_a_file_that_its_holder_has_just_removed_is_taken_again(tmp_path, monkeypatch):
    file, inner, first = tmp_path / "lock", fcntl.flock, []

    def flock(descriptor, operation):
        if not first:  # the previous holder leaves between this one's open and flock
            first.append(file.unlink())
        inner(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locks.try_lock(file) as mine:
        assert mine
        assert file.exists()
        with locks.try_lock(file) as again:
            assert not again


@pytest.mark.parametrize("removed", ["folder", "file", "just in time"])
def test_a_holder_whose_file_was_removed_leaves_its_successors_lock(removed, tmp_path, monkeypatch):
    file = tmp_path / "run" / "lock"

    def replace():
        if removed == "file":
            file.unlink()
        else:
            shutil.rmtree(file.parent)
            file.parent.mkdir()
        assert successor.enter_context(locks.try_lock(file))

    with contextlib.ExitStack() as successor:
        file.parent.mkdir()
        with locks.try_lock(file) as mine:
            assert mine
            if removed == "just in time":  # between the holder's last look and its removal

                def seen(*both):
                    monkeypatch.undo()
                    replace()
                    return True

                monkeypatch.setattr(os.path, "samestat", seen)
            else:
                replace()
        assert locks.holder(file).endswith(f"process {os.getpid()}")
        with locks.try_lock(file) as again:
            assert not again
    assert not file.exists()


def test_a_holder_may_move_its_folder_and_leave_it(tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    with locks.try_lock(before / "lock") as mine:
        assert mine
        before.rename(after)
        with locks.try_lock(after / "lock") as again:
            assert not again
    assert not (after / "lock").exists()
    with locks.try_lock(after / "lock") as mine:
        assert mine
        shutil.rmtree(after)


def test_a_file_system_without_locks_gets_a_warning(tmp_path, monkeypatch, caplog):
    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with locks.try_lock(tmp_path / "lock") as mine:
        assert mine
    assert caplog.messages == [
        f"{tmp_path}/lock: this file system has no locks (No locks available); "
        "never start two runs in one folder there"
    ]


def test_a_second_run_in_a_workdir_is_refused_before_it_touches_anything(tmp_path):
    config = small.config()
    with artifacts.open_workdir(epath.Path(tmp_path), config, "table"):
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        for other in (config, small.config(seed=1)):
            with pytest.raises(UserError) as error:
                train(other, tmp_path)
            assert str(error.value) == (
                f"{tmp_path}: another process is training in this workdir "
                f"({locks.holder(tmp_path / artifacts.LOCK)}); "
                "wait for it, or give another --workdir"
            )
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
