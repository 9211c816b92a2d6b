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
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import command
import numpy as np
from etils import epath
from fault_cases import (
    CONFIG,
    LIMIT,
    PHASES,
    STOPPED,
    Case,
    Lost,
    NotTried,
    Refused,
    at_a_moment,
    end_of,
    require,
    wait_for,
)
from fault_disks import full_disk, on_a_disk, power_cuts, read_only
from fault_files import DAMAGES, damage, other_files

from randmix.analysis.verify import findings
from randmix.workdir import artifacts

CASES = ("convmixer-chans", "convmixer-full", "resnet-chans", "convmixer-chans-validation")
REPOSITORY = command.REPOSITORY


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
