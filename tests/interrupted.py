"""Signal campaign: real programs, signalled at random moments, against undisturbed ones.

    python tests/interrupted.py --tries=60 --seed=0
    python tests/interrupted.py --tries=20 --programs=evaluate,prepare --signals=SIGINT

Each try starts a program, sends it a signal after a uniformly random part of its usual duration,
counted from the first moment at which the program has a handler, and checks how it ended: with a
status that runtime/signals.py allows, and with exactly one line on stderr, or none if it was done.
A training run is started again until it is done, and then compared with an undisturbed one; status
75 after Ctrl-C must come with a new checkpoint, and 130 without one.

Prints a line per program and signal. Exit status: 0 if all tries ended well, else 1, and the
folder is kept.
"""

import argparse
import collections
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from logs import lines

REPOSITORY = Path(__file__).parents[1]
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
LIMIT = 600  # seconds; no program may take longer
# The programs and their arguments; FOLDER is the campaign's, WORKDIR that of one try.
PROGRAMS = {
    "main": "randmix.main --config=configs/digits.py:tiny --workdir=WORKDIR "
    "--config.tensorboard=False --config.steps=400 --config.checkpoint_every=20 "
    "--config.eval_every=40 --config.log_every=5",
    "evaluate": "randmix evaluate --workdir=FOLDER/trained --attacks=fgsm --examples=64 "
    "--out=WORKDIR",
    "spectrum": "randmix spectrum --random=1,4 --seeds=2 --out=WORKDIR",
    "prepare": "randmix prepare digits --data_dir=WORKDIR",
    "reproduce": "randmix reproduce --preset=smoke --experiments=E9,E11 --override=steps=2 "
    "--seeds=1 --workdir=WORKDIR",
}
RESUMES = {"main", "reproduce"}


class Broken(AssertionError):
    """A program ended as it shouldn't."""


def start(words: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.Popen:
    """Starts ``python -m words...`` with default signal handling, whatever this process has."""
    return subprocess.Popen(
        ["env", "--default-signal=INT,TERM,HUP", sys.executable, "-m", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **(environment or {})},
    )


def wait_for_handlers(process: subprocess.Popen) -> None:
    """Waits until a program handles SIGTERM, which Python itself doesn't, or has ended."""
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        caught = next(
            (line for line in status.read_text().splitlines() if line.startswith("SigCgt")), ""
        )
        if caught and int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.001)


def check_end(name: str, status: int, err: str) -> None:
    """Raises Broken unless a program that got the signal ended as runtime/signals.py says."""
    allowed = {0: 0, 75: 1, **({130: 1} if name == "SIGINT" else {})}
    if status not in allowed:
        raise Broken(f"status {status}: {err[-2000:]}")
    lines = said(err)
    if len(lines) != allowed[status] or not all(line.startswith("randmix: ") for line in lines):
        raise Broken(f"status {status} with {err[-2000:]!r}")


def said(err: str) -> list[str]:
    """The lines on stderr but Orbax's, on a slow machine, that it waits for the last save."""
    return [line for line in err.splitlines() if "Waiting for previous save" not in line]


def checkpoints(workdir: Path) -> set[str]:
    """The final checkpoints of a run."""
    return {path.name for path in workdir.glob("checkpoints/*") if path.name.isdigit()}


def end_of(workdir: Path) -> tuple[list[dict], list[bytes]]:
    """What a finished run leaves: its log without speeds, and its variables."""
    import jax

    import randmix

    leaves = jax.tree.leaves(randmix.load(workdir).variables)
    return lines(workdir), [np.asarray(leaf).tobytes() for leaf in leaves]


class Campaign:
    """A folder with a trained run, and programs that are disturbed in it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.made = 0
        self.environment = {
            "TFDS_DATA_DIR": str(folder / "data"),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        self.run("main", folder / "trained")

    def start(self, program: str, workdir: Path) -> subprocess.Popen:
        words = PROGRAMS[program].replace("FOLDER", str(self.folder))
        return start(words.replace("WORKDIR", str(workdir)).split(), self.environment)

    def run(self, program: str, workdir: Path) -> float:
        """Runs a program undisturbed; returns its seconds, from the first handler on."""
        process = self.start(program, workdir)
        wait_for_handlers(process)
        began = time.monotonic()
        _, err = process.communicate(timeout=LIMIT)
        if process.returncode or said(err):
            raise Broken(f"{program}, undisturbed: status {process.returncode}: {err[-2000:]}")
        return time.monotonic() - began

    def workdir(self) -> Path:
        """The path of a new workdir."""
        self.made += 1
        return self.folder / f"{self.made:04d}"

    def disturb(self, program: str, name: str, tries: int, rng: np.random.Generator) -> str:
        """Signals a program ``tries`` times; returns how often it ended with each status."""
        self.run(program, self.workdir())  # fills the caches
        seconds = self.run(program, self.workdir())
        statuses = collections.Counter()
        workdir = self.workdir()
        for _ in range(tries):
            before = checkpoints(workdir)
            moment = rng.uniform(0, seconds)
            process = self.start(program, workdir)
            wait_for_handlers(process)
            time.sleep(moment)
            process.send_signal(getattr(signal, name))
            _, err = process.communicate(timeout=LIMIT)
            status = process.returncode
            try:
                check_end(name, status, err)
                if program == "main" and name == "SIGINT" and status:
                    new = bool(checkpoints(workdir) - before)
                    if new != (status == 75):
                        raise Broken(f"status {status}, new checkpoint: {new}: {err}")
                if program == "prepare" and (left := list(workdir.rglob("incomplete*"))):
                    raise Broken(f"status {status}, left {left}")
                if program == "main" and status == 0 and end_of(workdir) != self.expected():
                    raise Broken(f"{workdir}: ended unlike the undisturbed run")
            except Broken as error:
                raise Broken(f"{program}, {name} after {moment:.3f} s: {error}") from error
            statuses[status] += 1
            if status == 0 or program not in RESUMES:
                workdir = self.workdir()
        if program in RESUMES and workdir.exists():
            self.run(program, workdir)
            if program == "main" and end_of(workdir) != self.expected():
                raise Broken(f"{workdir}: resumed, ended unlike the undisturbed run")
        ended = ", ".join(f"{status} x {count}" for status, count in sorted(statuses.items()))
        return f"{tries} tries over {seconds:.1f} s each; ended with {ended}"

    def expected(self) -> tuple[list[dict], list[bytes]]:
        return end_of(self.folder / "trained")


def campaign(
    folder: Path, *, tries: int, seed: int, programs: Sequence[str], names: Sequence[str]
) -> int:
    """Prints a line per program and signal; returns the number of those that ended badly."""
    case = Campaign(folder)
    broken = 0
    for program in programs:
        for name in names:
            rng = np.random.default_rng((seed, list(PROGRAMS).index(program), SIGNALS.index(name)))
            try:
                line = case.disturb(program, name, tries, rng)
            except Broken as error:
                line, broken = f"BROKEN: {error}", broken + 1
            print(f"{program:<10} {name:<8} {line}", flush=True)
    return broken


def main() -> int:
    """Reads the flags and runs the campaign."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tries", type=int, default=60, help="per program and signal")
    parser.add_argument("--seed", type=int, default=0, help="for the moments")
    parser.add_argument("--programs", default=",".join(PROGRAMS))
    parser.add_argument("--signals", default=",".join(SIGNALS))
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="randmix-interrupted-"))
    print(f"seed {arguments.seed}, folders in {folder}", flush=True)
    broken = campaign(
        folder,
        tries=arguments.tries,
        seed=arguments.seed,
        programs=arguments.programs.split(","),
        names=arguments.signals.split(","),
    )
    if not broken:
        shutil.rmtree(folder)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
