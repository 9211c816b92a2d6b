"""Fault campaign: killed, stopped, damaged, starved and powerless runs against undisturbed ones.

    python tests/faults.py --kills=30 --seed=0
    python tests/faults.py --kills=4 --seed=0 --cases=convmixer-chans --faults=kill,power

Starts randmix.main on a small config with augmentation that logs, evaluates and saves every few
steps; disturbs it and starts it again until it finishes; and compares the last state (parameters,
statistics, optimizer state, the best state) bit for bit, and metrics.jsonl line by line except for
images_per_second, with those of an undisturbed run.

    kill, stop   SIGKILL, SIGTERM or SIGHUP: once in each phase of a run, then at random moments
    power        the power of the workdir's disk is cut at random moments, and after the end
    flip, cut    a bit is flipped in, or the end cut off, each file of the newest checkpoint
    files        every other file of a workdir is emptied, zeroed, cut, replaced and removed in turn
    finished     the same for a finished run
    full         the disk is full for a while
    readonly     the disk is read-only
    two          a second run starts in the same workdir
    processes    two processes: one of them is killed at random moments
    saves2       two processes save 200 times, undisturbed
    saves4       four processes save 200 times, undisturbed
    stale        two processes save 200 times in folders whose listing is slow and stale

Prints a table: tries; how many runs lost something; how many were refused though they could go on.
Exit status: 0 nothing was lost; 1 something was, and the workdirs are kept; 3 nothing was lost, but
something wasn't tried (only root can mount disks).
"""

import argparse
import collections
import contextlib
import fcntl
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import command
import jax
import numpy as np
from etils import epath

import randmix
from randmix.analysis.verify import findings
from randmix.runtime import sharding
from randmix.training import runs
from randmix.workdir import artifacts
from randmix.workdir.checkpoints import BEST, FOLDER, Checkpoints

CONFIG = """
from randmix.config import default

def get_config(variant):
    model, mode, *rest = variant.split("-")
    config = default(model)
    config.mode = mode
    config.model.width = 4
    config.model.depth = 1
    config.model.kernel_size = 3
    config.batch_size = 32
    config.steps = 48
    config.log_every = 2
    config.eval_every = 4
    config.checkpoint_every = 3
    config.data.crop_padding = 1
    config.data.mixup = 0.2
    config.data.random_erasing = 0.25
    if "validation" in rest:
        config.data.validation = 0.2
    if "saves" in rest:
        config.steps = 200
        config.checkpoint_every = 1
        config.eval_every = 100
        config.log_every = 50
    return config
"""
CASES = ("convmixer-chans", "convmixer-full", "resnet-chans", "convmixer-chans-validation")
PHASES = ("starting", "compiling", "training", "evaluating", "saving", "restoring")
ORBAX_TIMES = {"_CHECKPOINT_METADATA", "commit_success.txt"}
STOPPED = 75  # see randmix/runtime/cli.py
LIMIT = 300  # seconds; no run may take longer
EXT4_SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN of linux/fs/ext4/ext4.h
WITHOUT_FLUSH = 2  # EXT4_GOING_FLAGS_NOLOGFLUSH: as when the power goes
REPOSITORY = command.REPOSITORY


class Lost(AssertionError):
    """A run lost something that it should have kept or reported."""


class Refused(Lost):
    """A run was refused though it could have gone on."""


class NotTried(Exception):
    """A fault can't be tried here."""


class Case:
    """One config, its workdirs, and its undisturbed run."""

    def __init__(self, name: str, folder: Path):
        self.name, self.folder = name, folder / name
        self.folder.mkdir()
        self.config_file = folder / "config.py"
        self.made = 0
        self.reference = self.workdir()
        self.finish(self.reference)  # also fills the cache that all others read
        timed = self.workdir()
        began = time.monotonic()
        with self.start(timed) as program:
            self.starting = wait_for(program, "compiled the train step") - began
            program.process.join(LIMIT)
            self.training = time.monotonic() - began - self.starting
        self.expected = end_of(self.reference)
        self.compare(timed)  # two undisturbed runs must agree

    def workdir(self) -> Path:
        """The path of a new workdir."""
        self.made += 1
        return self.folder / f"{self.made:03d}"

    def start(self, workdir: Path):
        return command.started("randmix.main", *self.flags(workdir))

    def flags(self, workdir: Path) -> tuple[str, str]:
        return f"--config={self.config_file}:{self.name}", f"--workdir={workdir}"

    def finish(self, workdir: Path) -> command.Done:
        """Runs to the end."""
        done = command.run("randmix.main", *self.flags(workdir), limit=LIMIT)
        if done.status == 2:
            raise Refused(f"{workdir}: {done.err[-2000:]}")
        require(done.status == 0, f"{workdir}: status {done.status}: {done.err[-2000:]}")
        return done

    def compare(self, workdir: Path, *, best: bool = True) -> None:
        """Raises Lost unless a finished run ended like the undisturbed one; removes it."""
        rows, leaves = end_of(workdir)
        expected_rows, expected_leaves = self.expected
        require(
            rows == expected_rows, f"{workdir}: other lines in metrics.jsonl than {self.reference}"
        )
        require(leaves.keys() == expected_leaves.keys(), f"{workdir}: another state")
        for path, leaf in leaves.items():
            require(
                leaf == expected_leaves[path] or (path.startswith(BEST) and not best),
                f"{workdir}: another {path} than {self.reference}",
            )
        shutil.rmtree(workdir)


def require(condition: bool, message: str) -> None:
    if not condition:
        raise Lost(message)


def end_of(workdir: Path) -> tuple[list[dict[str, Any]], dict[str, tuple[str, bytes]]]:
    """The log without its timings, and the bytes of every array of the last and the best state."""
    rows = [json.loads(line) for line in (workdir / artifacts.METRICS).read_text().splitlines()]
    rows = [
        {name: value for name, value in row.items() if name != "images_per_second"} for row in rows
    ]
    config = runs.read_config(workdir)
    parts = runs.assemble(config)
    with Checkpoints(workdir, about=parts.record.identity) as checkpoints:
        require(
            checkpoints.all_steps()[:1] == [parts.loop.total_steps],
            f"{workdir}: no checkpoint of the last step",
        )
        states = {
            FOLDER: checkpoints.restore_latest(
                parts.abstract_state(sharding.make_mesh(jax.devices()[:1]))
            )
        }
    if config.data.validation:
        best = randmix.load(workdir, best=True)
        states[BEST] = {"step": np.asarray(best.step), "variables": best.variables}
    leaves = jax.tree_util.tree_flatten_with_path(jax.device_get(states))[0]
    named = {"/".join(map(_name, path)): np.asarray(leaf) for path, leaf in leaves}
    return rows, {
        name: (f"{leaf.dtype}{leaf.shape}", leaf.tobytes()) for name, leaf in named.items()
    }


def _name(key: Any) -> str:
    return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))


def wait_for(program: command.Started, text: str) -> float:
    """Waits until a program has printed the text or ended; returns the time."""
    began = time.monotonic()
    while text not in program.out() and program.process.exitcode is None:
        require(time.monotonic() - began < LIMIT, f"{text!r} wasn't printed within {LIMIT} s")
        time.sleep(0.01)
    return time.monotonic()


def phase(program: command.Started, workdir: Path, began: float) -> str:
    """What a program started at ``began`` (`time.time`) is doing, by its output and its folder."""
    said = program.out()
    if (workdir / artifacts.RESULT).exists():
        return "ending"
    # Older ones are remains of a save that an earlier kill interrupted.
    for path in workdir.glob("checkpoints/*tmp*"):
        with contextlib.suppress(FileNotFoundError):  # it was just renamed
            if path.stat().st_mtime > began:
                return "saving"
    if "workdir:" not in said:
        return "starting"
    if "compiled the train step" not in said:
        return "restoring" if any(workdir.glob("checkpoints/*")) else "compiling"
    try:
        rows = (workdir / artifacts.METRICS).read_text().splitlines()
    except FileNotFoundError:
        rows = []
    last = json.loads(rows[-1]) if rows and rows[-1].endswith("}") else {}
    return "evaluating" if last.get("step", 1) % 4 == 0 and "test_loss" not in last else "training"


def at_a_moment(
    case: Case, program: command.Started, workdir: Path, wanted: str | None, rng: Any, began: float
) -> str:
    """Waits for a phase, or for a moment, half of them before training; returns the phase."""
    if wanted is not None:
        while program.process.exitcode is None and phase(program, workdir, began) != wanted:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
    elif rng.random() < 0.5:
        time.sleep(rng.uniform(0, case.starting))
    else:
        wait_for(program, "compiled the train step")
        time.sleep(rng.uniform(0, case.training))
    return phase(program, workdir, began)


def disturb(case: Case, count: int, rng: np.random.Generator, *, kill: bool) -> tuple[int, str]:
    """Ends runs in each phase once, then at random moments, ``count`` times in all.

    Each is resumed to its end.
    """
    wanted: list[str | None] = [*PHASES[:count], *[None] * (count - len(PHASES))]
    hit, finished, workdir = 0, 0, case.workdir()
    fell = collections.Counter()
    tries = 0
    while hit < count:
        tries += 1
        require(tries < 20 * count + 20, f"{wanted[hit]}: this phase was never hit")
        began = time.time()
        number = signal.SIGKILL if kill else rng.choice([signal.SIGTERM, signal.SIGHUP])
        with case.start(workdir) as program:
            at = at_a_moment(case, program, workdir, wanted[hit], rng, began)
            if program.process.exitcode is None:
                os.kill(program.process.pid, number)
            program.process.join(LIMIT)
            status, err = program.process.exitcode, program.err()
        if status == 0:
            case.compare(workdir)
            workdir, finished = case.workdir(), finished + 1
            continue
        # Before `train` starts and after it returns, nothing needs saving; signals aren't handled.
        allowed = {-9} if kill else {STOPPED, *([-number] if at in ("starting", "ending") else [])}
        require(status in allowed, f"{workdir}: status {status} while {at}: {err[-2000:]}")
        fell[at] += 1
        if wanted[hit] in (None, at):
            hit += 1
    case.finish(workdir)
    case.compare(workdir)
    phases = ", ".join(f"{at} {times}" for at, times in fell.most_common())
    return sum(fell.values()), f"over {finished + 1} runs, while: {phases}"


def stopped_run(case: Case, step: int, workdir: Path) -> Path:
    """A workdir stopped by SIGTERM after ``step`` steps, with two checkpoints."""
    with case.start(workdir) as program:
        wait_for(program, f"step {step}/")
        program.process.terminate()
        program.process.join(LIMIT)
        require(program.process.exitcode == STOPPED, f"{workdir}: {program.err()[-2000:]}")
    return workdir


def damage(case: Case, rng: np.random.Generator, *, cut: bool) -> tuple[int, str]:
    """Flips a bit of, or truncates, each file of the newest checkpoint, one at a time; resumes."""
    whole = stopped_run(case, 20, case.workdir())
    folders = [newest(whole / name) for name in (FOLDER, BEST) if (whole / name).exists()]
    files = [
        path.relative_to(whole)
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.stat().st_size
    ]
    for name in files:
        workdir = shutil.copytree(whole, case.workdir())
        content = bytearray((workdir / name).read_bytes())
        if cut:
            content = content[: rng.integers(len(content))]
        else:
            content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        (workdir / name).write_bytes(content)
        found = [problem for _, problem in findings(epath.Path(workdir)) if problem]
        inner = "/".join(name.parts[2:])
        # Orbax's own two hold times of the save and nothing of the state.
        require(
            any(inner in problem for problem in found) or name.name in ORBAX_TIMES,
            f"{workdir}: {name} was damaged, but verify finds {found}",
        )
        done = case.finish(workdir)
        require(
            f"damaged ({inner} " in done.err
            or f"damaged (the SHA-256 of {inner} " in done.err
            or name.parts[0] == BEST
            or name.name in ORBAX_TIMES,
            f"{workdir}: {name} was damaged, but not reported: {done.err}",
        )
        case.compare(workdir, best=name.parts[0] != BEST)
    return len(files), "files"


def newest(folder: Path) -> Path:
    return max((p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "cut": lambda content: content[: len(content) // 2],
    "garbage": lambda content: random.Random(0).randbytes(len(content)),
    "nested": lambda content: b"[" * 100_000,
    "another": lambda content: b'{"seed": "0", "step": []}\n',
    "gone": lambda content: None,
}
"""Damages by name: the new content of a file, or None to remove it."""


def other_files(case: Case, finished: bool, damages: Sequence[str]) -> tuple[int, str]:
    """Damages each file beside the checkpoints, of a stopped or a finished run; trains it again."""
    whole = case.workdir()
    if finished:
        case.finish(whole)
    else:
        stopped_run(case, 20, whole)
    files = sorted(path for path in whole.iterdir() if path.is_file())
    for file in files:
        for name in damages:
            workdir = shutil.copytree(whole, case.workdir())
            content = DAMAGES[name](file.read_bytes())
            (workdir / file.name).unlink()
            if content is not None:
                (workdir / file.name).write_bytes(content)
            read_by_all(workdir)
            case.finish(workdir)
            if finished and file.name == artifacts.METRICS:
                shutil.rmtree(workdir)  # a finished run's lost log stays lost
            else:
                without_lost_lines(case, workdir, file.name)
    state = "finished" if finished else "stopped"
    return len(files) * len(damages), f"files of a {state} run, each damaged in {len(damages)} ways"


def without_lost_lines(case: Case, workdir: Path, name: str) -> None:
    """Compares a finished run whose log, if that was damaged, may lack its earliest lines."""
    if name == artifacts.METRICS:
        rows, expected = end_of(workdir)[0], case.expected[0]
        require(
            all(row in expected for row in rows) and rows[-20:] == expected[-20:],
            f"{workdir}: other last lines in metrics.jsonl than {case.reference}",
        )
        lines = (case.reference / artifacts.METRICS).read_text()
        (workdir / artifacts.METRICS).write_text(lines)
    case.compare(workdir)


def read_by_all(workdir: Path) -> None:
    """Reads a workdir as verify and evaluate do: every refusal must be one line."""
    for read in (lambda: [*findings(epath.Path(workdir))], lambda: randmix.load(workdir)):
        try:
            read()
        except ValueError as error:
            require(
                isinstance(error, randmix.errors.UserError) and "\n" not in str(error),
                f"{workdir}: {type(error).__name__}: {error}",
            )


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


def two_at_once(case: Case) -> tuple[int, str]:
    """A second run in the workdir of one that is training."""
    workdir = case.workdir()
    with case.start(workdir) as first:
        wait_for(first, "workdir:")
        while not (workdir / artifacts.LOCK).exists() and first.process.exitcode is None:
            time.sleep(0.005)
        second = command.run("randmix.main", *case.flags(workdir))
        first.process.join(LIMIT)
        require(first.process.exitcode == 0, f"{workdir}: the first: {first.err()[-2000:]}")
        expected = f"randmix: {workdir}: another process is training in this workdir ("
        require(
            second.status == 2 and second.err.startswith(expected),
            f"{workdir}: the second: {second}",
        )
        require(f"process {first.process.pid})" in second.err, f"{workdir}: the second: {second}")
    case.compare(workdir)
    return 1, "the second was refused"


@contextlib.contextmanager
def launched(
    count: int, case: Case, variant: str, workdir: Path, module: str = "randmix.main"
) -> Iterator[subprocess.Popen]:
    """Several processes of a variant's config, started once by the launcher."""
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}",
        "RESTARTS": "0",
        "GRACE": "20",
    }
    flags = (f"--config={case.config_file}:{variant}", f"--workdir={workdir}")
    process = subprocess.Popen(
        ["launch/local_processes.sh", str(count), module, *flags, "--heartbeat_timeout=15"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=REPOSITORY,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate()


def kill_one_of_two(case: Case, count: int, rng: np.random.Generator) -> tuple[int, str]:
    """Kills one of two processes at random moments; both start again until they finish."""
    reference = case.workdir()
    with launched(2, case, case.name, reference) as both:
        began = time.monotonic()
        said = both.communicate(timeout=LIMIT)[0]
        seconds = time.monotonic() - began
        require(both.returncode == 0, f"{reference}: status {both.returncode}: {said[-2000:]}")
    expected, workdir, hit, finished = end_of(reference), case.workdir(), 0, 0
    while hit < count or not finished:
        with launched(2, case, case.name, workdir) as both:
            if hit < count:
                time.sleep(rng.uniform(0.1, seconds))
                number = int(rng.integers(2))
                found = subprocess.run(
                    ["pgrep", "-f", f"workdir={workdir} .*--process_id={number}"],
                    capture_output=True,
                    text=True,
                )
                for pid in map(int, found.stdout.split()):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            said = both.communicate(timeout=LIMIT)[0]
            status = both.returncode
        require(status in (0, 1), f"{workdir}: status {status}: {said[-2000:]}")
        if status == 0:
            require(end_of(workdir) == expected, f"{workdir}: ended otherwise than {reference}")
            shutil.rmtree(workdir)
            workdir, finished = case.workdir(), finished + 1
        else:
            hit += 1
    return hit, f"over {finished} runs"


def many_saves(case: Case, repeats: int, count: int, module: str) -> tuple[int, str]:
    """Runs that save 200 times on several processes, undisturbed."""
    for _ in range(repeats):
        workdir = case.workdir()
        with launched(count, case, f"{case.name}-saves", workdir, module) as several:
            said = several.communicate(timeout=4 * LIMIT)[0]
        require(
            several.returncode == 0,
            f"{workdir}: {count} processes of {module}: status {several.returncode}: "
            f"{said[-2000:]}",
        )
        problems = [p for _, p in findings(epath.Path(workdir)) if p]
        require(problems == [], f"{workdir}: {problems}")
        shutil.rmtree(workdir)
    return repeats, f"runs of 200 saves on {count} processes"


FAULTS = {
    "kill": lambda case, rng, hits: disturb(case, hits, rng, kill=True),
    "stop": lambda case, rng, hits: disturb(case, hits, rng, kill=False),
    "power": lambda case, rng, hits: power_cuts(case, hits, rng),
    "flip": lambda case, rng, hits: damage(case, rng, cut=False),
    "cut": lambda case, rng, hits: damage(case, rng, cut=True),
    "files": lambda case, rng, hits: other_files(case, False, tuple(DAMAGES)),
    "finished": lambda case, rng, hits: other_files(case, True, tuple(DAMAGES)),
    "full": lambda case, rng, hits: on_a_disk(case, full_disk),
    "readonly": lambda case, rng, hits: on_a_disk(case, read_only),
    "two": lambda case, rng, hits: two_at_once(case),
    "processes": lambda case, rng, hits: kill_one_of_two(case, hits, rng),
    "saves2": lambda case, rng, hits: many_saves(case, hits, 2, "randmix.main"),
    "saves4": lambda case, rng, hits: many_saves(case, hits, 4, "randmix.main"),
    "stale": lambda case, rng, hits: many_saves(case, hits, 2, "stale"),
}
"""Faults by name; each returns the number of tries and a description, or raises Lost."""


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


def campaign(
    folder: Path, *, kills: int, seed: int, cases: Sequence[str], faults: Sequence[str]
) -> collections.Counter:
    """Prints a table, one line per case and fault; returns how often each outcome occurred.

    Args:
        folder: an empty folder for all workdirs.
        kills: how often each case is hit by each fault that hits at a moment.
        seed: for moments, bits and cuts.
        cases: from `CASES`.
        faults: from `FAULTS`.
    """
    (folder / "config.py").write_text(CONFIG)
    outcomes = collections.Counter()
    print(f"{'fault':<9} {'case':<26} {'tries':>5} {'lost':>5} {'refused':>7} {'seconds':>7}")
    for name in cases:
        case = Case(name, folder)
        for fault in faults:
            # One seed per line, so that a line can be repeated alone.
            rng = np.random.default_rng((seed, CASES.index(name), list(FAULTS).index(fault)))
            began = time.monotonic()
            tries, lost, refused = "", 0, 0
            try:
                tries, text = FAULTS[fault](case, rng, kills)
                outcomes["nothing lost"] += 1
            except NotTried as reason:
                text = f"NOT TRIED: {reason}"
                outcomes["not tried"] += 1
            except (Lost, subprocess.TimeoutExpired) as error:
                lost, refused = not isinstance(error, Refused), isinstance(error, Refused)
                text = f"{'REFUSED' if refused else 'LOST'}: {error}"
                outcomes["lost"] += 1
            seconds = time.monotonic() - began
            print(
                f"{fault:<9} {name:<26} {tries:>5} {lost:>5} {refused:>7} {seconds:>7.0f}  {text}",
                flush=True,
            )
    print(", ".join(f"{name}: {count} lines" for name, count in outcomes.items()))
    return outcomes


def main() -> int:
    """Reads the flags and runs the campaign."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--kills", type=int, default=8, help="how often each case is hit by kill, stop, power, ..."
    )
    parser.add_argument("--seed", type=int, default=0, help="for moments, bits and cuts")
    parser.add_argument(
        "--cases", default=",".join(CASES), help="a subset of the default, separated by commas"
    )
    parser.add_argument(
        "--faults", default=",".join(FAULTS), help="a subset of the default, separated by commas"
    )
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="randmix-faults-"))
    # Before the first process, so that all share compiled programs.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("TFDS_DATA_DIR", str(folder / "data"))
    print(f"seed {arguments.seed}, workdirs in {folder}", flush=True)
    outcomes = campaign(
        folder,
        kills=arguments.kills,
        seed=arguments.seed,
        cases=arguments.cases.split(","),
        faults=arguments.faults.split(","),
    )
    if outcomes["lost"]:
        return 1
    shutil.rmtree(folder)
    return 3 if outcomes["not tried"] else 0


if __name__ == "__main__":
    sys.exit(main())
