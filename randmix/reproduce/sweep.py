"""Execution of a plan: trains and measures whatever is missing, one group of runs at a time.

A run's state is read from its folder, so any number of calls, sequential or concurrent, share the
work:

    result.json     trained to the end
    failed.json     failed, with the reason; the next call tries again
    checkpoints/    begun
    sweep.lock      locked while a process works on the run
"""

import contextlib
import datetime
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
from etils import epath
from jax.experimental.compilation_cache import compilation_cache

from randmix.reproduce.plan import Group, PlannedRun
from randmix.reproduce.training import train_seeds
from randmix.runtime import durable, locks, signals
from randmix.runtime.preemption import Preempted, StopSignals
from randmix.training.compiled import Programs
from randmix.workdir import artifacts, json_files

FAILED = "failed.json"
LOCK = "sweep.lock"  # distinct from the lock that `train` takes while it is held
Say = Callable[[str], None]
Measure = Callable[[PlannedRun, StopSignals, Programs], None]


class State(NamedTuple):
    """State of a run: "finished", "failed", "begun" or "missing", and the reason of a failure."""

    name: str
    reason: str = ""


def state(run: PlannedRun, root: epath.PathLike) -> State:
    """Reads a run's state from its folder."""
    folder = run.folder(root)
    if artifacts.is_finished(folder):
        return State("finished")
    if (folder / FAILED).exists():
        failed = json_files.read(
            folder / FAILED, {"reason": str}, what_to_do="remove it to train the run again"
        )
        return State("failed", failed["reason"])
    return State("begun" if (folder / artifacts.CONFIG).exists() else "missing")


def execute(
    groups: Sequence[Group],
    root: epath.PathLike,
    *,
    measure: Measure = lambda run, stop, programs: None,
    together: int | str = 1,
    say: Say = lambda line: print(line, flush=True),
) -> None:
    """Trains and measures all runs; records failures and continues with the next run.

    Skips runs that another process has locked; call again to pick them up.

    Args:
        groups: the runs, in groups that differ only in their seed.
        root: the sweep's folder.
        measure: called with each finished run, under its lock, with the signals to watch and the
            compiled programs that its group shares.
        together: largest number of seeds trained as one program; see ``training.train_seeds``.
        say: prints a line for the user.

    Raises:
        Preempted: a signal arrived; everything is saved, and the same call resumes.
    """
    progress = _Progress(groups, root, say)
    with StopSignals() as stop:
        for group in groups:
            with contextlib.ExitStack() as stack:
                mine = [run for run in group if stack.enter_context(_try_lock(run.folder(root)))]
                progress.begin(group, mine)
                programs = Programs()
                _train(mine, root, together, programs)
                for run in mine:
                    progress.check(stop)
                    if state(run, root).name == "finished":
                        measure(run, stop, programs)
                progress.end(mine, root)
            signals.saved()
            progress.check(stop)


def _try_lock(folder: epath.Path) -> contextlib.AbstractContextManager[bool]:
    folder.mkdir(parents=True, exist_ok=True)
    return locks.try_lock(folder / LOCK)


def _train(
    runs: Sequence[PlannedRun], root: epath.PathLike, together: int | str, programs: Programs
) -> None:
    unfinished = [run for run in runs if state(run, root).name != "finished"]
    if not unfinished:
        return
    configs, folders = [run.config for run in unfinished], [run.folder(root) for run in unfinished]
    reasons = train_seeds(configs, folders, together, programs)
    for run, reason in zip(unfinished, reasons, strict=True):
        file = run.folder(root) / FAILED
        if reason is not None:
            durable.write(file, json.dumps({"reason": reason}) + "\n")
        elif file.exists():
            file.unlink()


class _Progress:
    """Reports which runs come next and how long the rest may take."""

    def __init__(self, groups: Sequence[Group], root: epath.PathLike, say: Say):
        runs = [run for group in groups for run in group]
        self.total, self.done, self.say = len(runs), 0, say
        # Work that is left, by run; none for those that were finished before.
        self.left = {run.name: _work(run) for run in runs if state(run, root).name != "finished"}
        self.seconds = self.work = self.began = 0.0
        if before := self.total - len(self.left):
            say(f"{before} of {self.total} runs were finished before")

    def begin(self, group: Group, mine: Sequence[PlannedRun]) -> None:
        self.began = time.monotonic()
        if len(mine) < len(group):
            self.say(
                f"{len(group) - len(mine)} seeds of {group[0].title}: "
                "skipped, another process is working on them"
            )
        first, self.done = self.done + 1, self.done + len(group)
        if new := [run for run in mine if run.name in self.left]:
            seeds = ",".join(str(run.settings["seed"]) for run in new)
            title = new[0].title.rpartition(" seed ")[0]
            place = f"{first}-{self.done}" if len(group) > 1 else f"{first}"
            self.say(
                f"run {place} of {self.total}  {'+'.join(new[0].experiments)}  {title}  "
                f"seed {seeds}  {self.time_left()}log: runs/{new[0].name}/log.txt"
            )

    def end(self, mine: Sequence[PlannedRun], root: epath.PathLike) -> None:
        if work := sum(self.left.pop(run.name, 0.0) for run in mine):
            self.seconds += time.monotonic() - self.began
            self.work += work
        for run in mine:
            if (after := state(run, root)).name == "failed":
                self.say(f"FAILED  {run.title}: {after.reason}")

    def check(self, stop: StopSignals) -> None:
        """Raises Preempted after a signal."""
        if stop.signalled:
            raise Preempted(f"stopped and saved after {self.done} of {self.total} runs")

    def time_left(self) -> str:
        """Time left at the pace so far; empty before any work is done."""
        if not self.work:
            return ""
        seconds = round(self.seconds / self.work * sum(self.left.values()))
        return f"about {datetime.timedelta(seconds=seconds)} left  "


def _work(run: PlannedRun) -> float:
    # Compilation and start-up take about as long as 10 GMAC of training on two CPU cores.
    return run.cost + 1e10


@contextlib.contextmanager
def compiled_programs_kept(root: epath.PathLike) -> Iterator[None]:
    """Caches compiled programs in the sweep's folder.

    Runs that differ only in their seed, and a resumed sweep, then compile nothing twice. Each
    machine has its own folder, since a program for one CPU may not run on another.
    """
    keys = {
        "jax_compilation_cache_dir": str(epath.Path(root) / "compiled" / platform.node()),
        "jax_persistent_cache_min_compile_time_secs": 0.2,
    }
    before = {key: getattr(jax.config, key) for key in keys}
    try:
        for key, value in keys.items():
            jax.config.update(key, value)
        compilation_cache.reset_cache()  # an earlier compilation has fixed the cache's location
        yield
    finally:
        for key, value in before.items():
            jax.config.update(key, value)
        compilation_cache.reset_cache()
