"""Faults of disks for tests/faults.py: full, read-only, or without power."""

import collections
import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import command
import numpy as np
from etils import epath
from fault_cases import LIMIT, Case, NotTried, Refused, at_a_moment, require, stopped_run, wait_for

from randmix.analysis.verify import findings
from randmix.workdir.checkpoints import Checkpoints

EXT4_SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN of linux/fs/ext4/ext4.h
WITHOUT_FLUSH = 2  # EXT4_GOING_FLAGS_NOLOGFLUSH: as when the power goes


def full_disk(case: Case, disk: Path) -> tuple[int, str]:
    """Fills the disk in the middle of a run, then frees it."""
    workdir = disk / "run"
    with case.start(workdir) as program:
        wait_for(program, "step 12/")
        with (disk / "filler").open("wb", buffering=0) as filler:
            try:
                while filler.write(bytes(4096)):
                    pass
            except OSError:
                pass
        program.process.join(LIMIT)
        status, err = program.process.exitcode, program.err()
    require(
        status not in (None, 0) and "No space left" in err,
        f"{workdir}: status {status}: {err[-2000:]}",
    )
    with Checkpoints(workdir) as checkpoints:
        left = {step: checkpoints.damage(step) for step in checkpoints.all_steps()}
    require(
        any(damage is None for damage in left.values()), f"{workdir}: no intact checkpoint: {left}"
    )
    (disk / "filler").unlink()
    case.finish(workdir)
    case.compare(workdir)
    return 1, f"status {status}, {len(left)} checkpoints left"


def read_only(case: Case, disk: Path) -> tuple[int, str]:
    """A read-only file system, for a new run and for one to resume."""
    stopped_run(case, 8, disk / "begun")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    try:
        for workdir in (disk / "begun", disk / "new"):
            done = command.run("randmix.main", *case.flags(workdir))
            expected = (
                f"randmix: {workdir}: can't be written (Read-only file system); "
                "give a --workdir that you may write to"
            )
            require(
                done.status == 2 and done.err.splitlines()[-1:] == [expected], f"{workdir}: {done}"
            )
    finally:
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    case.finish(disk / "begun")
    case.compare(disk / "begun")
    return 2, "refused in one line"


def power_cuts(case: Case, count: int, rng: np.random.Generator) -> tuple[int, str]:
    """Cuts the power of an ext4 disk at random moments of runs, and one second after their end.

    What was not flushed is lost then. Each run goes on, until ``count`` were hit.
    """
    fell, ended = collections.Counter(), 0
    with contextlib.closing(Ext4(case.workdir())) as disk:
        workdir = disk.place / "run"
        while sum(fell.values()) < count or not ended:
            began = time.time()
            with case.start(workdir) as program:
                at = at_a_moment(case, program, workdir, None, rng, began)
                if program.process.exitcode is None and sum(fell.values()) < count:
                    disk.cut()
                    program.process.kill()
                    fell[at] += 1
                program.process.join(LIMIT)
                status, err = program.process.exitcode, program.err()
            if status == 0:
                time.sleep(1)
                disk.cut()
                ended += 1
            elif status == 2:
                raise Refused(f"{workdir}: {err[-2000:]}")
            else:
                require(status == -9, f"{workdir}: status {status}: {err[-2000:]}")
            disk.power_on()
            if status == 0:
                require(
                    [p for _, p in findings(epath.Path(workdir)) if p] == [],
                    f"{workdir}: lost after exit 0",
                )
                case.compare(workdir)
    phases = ", ".join(f"{at} {times}" for at, times in fell.most_common())
    return sum(fell.values()) + ended, f"while: {phases}; after the end {ended}"


class Ext4:
    """A disk of 64 MB in a file, with the file system ext4, whose power can be cut."""

    def __init__(self, place: Path):
        self.place, self.image = place, place.with_suffix(".img")
        place.mkdir()
        with self.image.open("wb") as file:
            file.truncate(64 << 20)
        if not shutil.which("mkfs.ext4"):
            raise NotTried("mkfs.ext4 is missing")
        made = subprocess.run(["mkfs.ext4", "-q", "-F", self.image], capture_output=True)
        if made.returncode or not self.power_on():
            raise NotTried("only root can mount a disk")

    def power_on(self) -> bool:
        """Mounts it again, as after a restart; returns whether that worked."""
        subprocess.run(["umount", self.place], capture_output=True)
        mounted = subprocess.run(
            ["mount", "-o", "loop", self.image, self.place], capture_output=True
        )
        return mounted.returncode == 0

    def cut(self) -> None:
        """Cuts the power: nothing that isn't on the disk gets there."""
        folder = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(folder, EXT4_SHUTDOWN, struct.pack("I", WITHOUT_FLUSH))
        finally:
            os.close(folder)

    def close(self) -> None:
        subprocess.run(["umount", "-l", self.place], capture_output=True)
        self.image.unlink()


def on_a_disk(case: Case, fault: Callable[[Case, Path], tuple[int, str]]) -> tuple[int, str]:
    """Runs a fault on a separate disk: 8 MB of memory, which only root may mount."""
    disk = case.workdir()
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], capture_output=True
    )
    if mounted.returncode:
        raise NotTried("only root can mount a disk")
    try:
        return fault(case, disk)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
