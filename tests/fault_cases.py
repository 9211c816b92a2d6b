"""Runs to disturb for tests/faults.py, the undisturbed ones beside them, and what is compared."""

import contextlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

import command
import jax
import numpy as np
from logs import lines

import randmix
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
PHASES = ("starting", "compiling", "training", "evaluating", "saving", "restoring")
STOPPED = 75  # see randmix/runtime/cli.py
LIMIT = 300  # seconds; no run may take longer


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
    return lines(workdir), {
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


def stopped_run(case: Case, step: int, workdir: Path) -> Path:
    """A workdir stopped by SIGTERM after ``step`` steps, with two checkpoints."""
    with case.start(workdir) as program:
        wait_for(program, f"step {step}/")
        program.process.terminate()
        program.process.join(LIMIT)
        require(program.process.exitcode == STOPPED, f"{workdir}: {program.err()[-2000:]}")
    return workdir
