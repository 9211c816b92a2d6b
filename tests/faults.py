"""Fault campaign: killed, stopped, damaged and starved runs against undisturbed ones.

    python tests/faults.py --kills=30 --seed=0
    python tests/faults.py --kills=2 --seed=0 --cases=convmixer-chans --faults=kill,two

Starts randmix.main on a small config with augmentation that logs, evaluates and saves every few
steps; kills it at random moments and restarts it until it finishes; and compares the last state
(parameters, statistics, optimizer state) bit for bit, and metrics.jsonl line by line except for
images_per_second, with those of an undisturbed run. Half of the moments fall before the train step
is compiled, half after, spread over the observed durations. Then bits are flipped and files
truncated, a disk fills up, a folder can't be written, and two runs claim one folder.

Prints a table. Exit status: 0 if nothing was lost; 1 if something was, and the workdirs are kept.
"""

import argparse
import collections
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import command
import jax
import numpy as np

from randmix import artifacts, runs, sharding
from randmix.checkpoint import Checkpoints

CONFIG = """
from randmix.config import default

def get_config(variant):
    model, mode = variant.split("-")
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
    return config
"""
CASES = ("convmixer-chans", "convmixer-full", "resnet-chans", "resnet-full")
ORBAX_TIMES = {"_CHECKPOINT_METADATA", "commit_success.txt"}
STOPPED = 75  # see randmix/cli.py
LIMIT = 300  # seconds; no run may take longer


class Lost(AssertionError):
    """A run lost something that it should have kept or reported."""


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
        require(done.status == 0, f"{workdir}: status {done.status}: {done.err[-2000:]}")
        return done

    def compare(self, workdir: Path) -> None:
        """Raises Lost unless a finished run ended like the undisturbed one."""
        rows, leaves = end_of(workdir)
        expected_rows, expected_leaves = self.expected
        require(
            rows == expected_rows, f"{workdir}: other lines in metrics.jsonl than {self.reference}"
        )
        require(leaves.keys() == expected_leaves.keys(), f"{workdir}: another state")
        for path, leaf in leaves.items():
            require(
                leaf == expected_leaves[path], f"{workdir}: another {path} than {self.reference}"
            )
        shutil.rmtree(workdir)


def require(condition: bool, message: str) -> None:
    if not condition:
        raise Lost(message)


def end_of(workdir: Path) -> tuple[list[dict[str, Any]], dict[str, tuple[str, bytes]]]:
    """The log without its timings, and the bytes of every array of the last state."""
    rows = [json.loads(line) for line in (workdir / artifacts.METRICS).read_text().splitlines()]
    rows = [
        {name: value for name, value in row.items() if name != "images_per_second"} for row in rows
    ]
    parts = runs.assemble(artifacts.read_config(workdir))
    with Checkpoints(workdir, about=parts.identity) as checkpoints:
        require(
            checkpoints.latest_step() == parts.total_steps,
            f"{workdir}: no checkpoint of the last step",
        )
        state = checkpoints.restore_latest(
            parts.abstract_state(sharding.make_mesh(jax.devices()[:1]))
        )
    leaves = jax.tree_util.tree_flatten_with_path(jax.device_get(state))[0]
    named = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    return rows, {
        name: (f"{leaf.dtype}{leaf.shape}", leaf.tobytes()) for name, leaf in named.items()
    }


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
        return (
            "restoring or compiling"
            if any(workdir.glob("checkpoints/*"))
            else "initialising or compiling"
        )
    rows = (workdir / artifacts.METRICS).read_text().splitlines()
    last = json.loads(rows[-1]) if rows and rows[-1].endswith("}") else {}
    return "evaluating" if last.get("step", 1) % 4 == 0 and "test_loss" not in last else "training"


def disturb(case: Case, count: int, rng: np.random.Generator, *, kill: bool) -> str:
    """Ends runs at random moments until ``count`` were hit; each is resumed to its end."""
    hit, finished, workdir = 0, 0, case.workdir()
    fell = collections.Counter()
    while hit < count:
        began = time.time()
        with case.start(workdir) as program:
            if rng.random() < 0.5:
                time.sleep(rng.uniform(0, case.starting))
            else:
                wait_for(program, "compiled the train step")
                time.sleep(rng.uniform(0, case.training))
            at = phase(program, workdir, began)
            (program.process.kill if kill else program.process.terminate)()
            program.process.join(LIMIT)
            status, err = program.process.exitcode, program.err()
        if status == 0:
            case.compare(workdir)
            workdir, finished = case.workdir(), finished + 1
            continue
        # Before `train` starts and after it returns, nothing needs saving; SIGTERM isn't handled.
        allowed = {-9} if kill else {STOPPED, *([-15] if at in ("starting", "ending") else [])}
        require(status in allowed, f"{workdir}: status {status} while {at}: {err[-2000:]}")
        hit += 1
        fell[at] += 1
    case.finish(workdir)
    case.compare(workdir)
    phases = ", ".join(f"{at} {times}" for at, times in fell.most_common())
    return f"{hit} hits over {finished + 1} runs, while: {phases}"


def stopped_run(case: Case, step: int, workdir: Path) -> Path:
    """A workdir stopped by SIGTERM after ``step`` steps, with two checkpoints."""
    with case.start(workdir) as program:
        wait_for(program, f"step {step}/")
        program.process.terminate()
        program.process.join(LIMIT)
        require(program.process.exitcode == STOPPED, f"{workdir}: {program.err()[-2000:]}")
    return workdir


def damage(case: Case, rng: np.random.Generator, *, cut: bool) -> str:
    """Flips a bit of, or truncates, each file of the newest checkpoint, one at a time; resumes."""
    whole = stopped_run(case, 20, case.workdir())
    folder = newest(whole)
    names = sorted(
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.stat().st_size * path.is_file()
    )
    for name in names:
        workdir = shutil.copytree(whole, case.workdir())
        file = workdir / "checkpoints" / folder.name / name
        content = bytearray(file.read_bytes())
        if cut:
            content = content[: rng.integers(len(content))]
        else:
            content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        file.write_bytes(content)
        done = case.finish(workdir)
        # Orbax's own two hold times of the save and nothing of the state.
        said = f"damaged ({name} " in done.err or f"damaged (the SHA-256 of {name} " in done.err
        require(
            said or name.name in ORBAX_TIMES,
            f"{workdir}: {name} was damaged, but not reported: {done.err}",
        )
        case.compare(workdir)
    return f"{len(names)} files"


def newest(workdir: Path) -> Path:
    return max(
        (p for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()),
        key=lambda p: int(p.name),
    )


def full_disk(case: Case, disk: Path) -> str:
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
    return f"status {status}, {len(left)} checkpoints left"


def read_only(case: Case, disk: Path) -> str:
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
    return "refused in one line"


def two_at_once(case: Case) -> str:
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
    return "the second refused"


FAULTS = {
    "kill": lambda case, rng, hits: disturb(case, hits, rng, kill=True),
    "stop": lambda case, rng, hits: disturb(case, -(-hits // 2), rng, kill=False),
    "two": lambda case, rng, hits: two_at_once(case),
    "flip": lambda case, rng, hits: damage(case, rng, cut=False),
    "cut": lambda case, rng, hits: damage(case, rng, cut=True),
    "full": lambda case, rng, hits: on_a_disk(case, full_disk),
    "readonly": lambda case, rng, hits: on_a_disk(case, read_only),
}
"""Faults by name; each returns a description of what it tried, or raises Lost."""


def on_a_disk(case: Case, fault: Callable[[Case, Path], str]) -> str:
    """Runs a fault on a separate disk: 8 MB of memory, which only root may mount."""
    disk = case.workdir()
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], capture_output=True
    )
    if mounted.returncode:
        return "NOT TRIED: only root can mount a disk"
    try:
        return fault(case, disk)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def campaign(
    folder: Path, *, kills: int, seed: int, cases: Sequence[str], faults: Sequence[str]
) -> int:
    """Prints a table, one line per case and fault, and returns how many lines lost something.

    Args:
        folder: an empty folder for all workdirs.
        kills: SIGKILLs over all cases; half as many SIGTERMs.
        seed: for moments, bits and cuts.
        cases: from `CASES`.
        faults: from `FAULTS`.
    """
    (folder / "config.py").write_text(CONFIG)
    lost = 0
    share, rest = divmod(kills, len(cases))
    for number, name in enumerate(cases):
        case = Case(name, folder)
        for fault in faults:
            # One seed per line, so that a line can be repeated alone.
            rng = np.random.default_rng((seed, CASES.index(name), list(FAULTS).index(fault)))
            began = time.monotonic()
            try:
                line = f"lost: nothing  {FAULTS[fault](case, rng, share + (number < rest))}"
            except Lost as error:
                line = f"LOST: {error}"
                lost += 1
            print(f"{fault:<9} {name:<16} {line}  ({time.monotonic() - began:.0f} s)", flush=True)
    print(f"{lost} lines lost something" if lost else "nothing was lost")
    return lost


def main() -> int:
    """Reads the flags and runs the campaign."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--kills", type=int, default=30, help="SIGKILLs over all cases; half as many SIGTERMs"
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
    lost = campaign(
        folder,
        kills=arguments.kills,
        seed=arguments.seed,
        cases=arguments.cases.split(","),
        faults=arguments.faults.split(","),
    )
    if not lost:
        shutil.rmtree(folder)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
