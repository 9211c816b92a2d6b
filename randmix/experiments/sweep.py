"""Execution of a plan: trains and measures whatever is missing, one group of runs at a time.

    ROOT/sweep.json       whose runs these are
    ROOT/runs/NAME/       a run
    ROOT/records.jsonl    a line for each run that is finished and measured; see ``records``

A run's state is read from its folder, so any number of calls, sequential or concurrent, share the
work. A run that stands in the records is finished, wherever it was made.

    result.json     trained to the end
    failed.json     failed, with the reason; the next call tries again
    checkpoints/    begun
    sweep.lock      locked while a process works on the run
"""

import contextlib
import datetime
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from etils import epath

from randmix.errors import UserError, writing
from randmix.experiments import records
from randmix.experiments.plan import Group, PlannedRun
from randmix.experiments.records import Record
from randmix.experiments.training import train_seeds
from randmix.runtime import durable, locks, signals
from randmix.runtime.preemption import Preempted, StopSignals
from randmix.training.compiled import Programs
from randmix.workdir import artifacts, json_files

FAILED = "failed.json"
LOCK = "sweep.lock"  # distinct from the lock that `train` takes while it is held
Say = Callable[[str], None]
Measure = Callable[[PlannedRun, StopSignals, Programs], None]
Complete = Callable[[PlannedRun, Record], bool]
_SWEEP = "sweep.json"
_ADVICE = "give a --workdir that you may write to"


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
        try:
            failed = json_files.read(folder / FAILED, {"reason": str}, what_to_do="")
        except json_files.Damaged:
            return State("failed", f"{FAILED} is damaged")
        return State("failed", failed["reason"])
    return State("begun" if (folder / artifacts.CONFIG).exists() else "missing")


def open_folder(root: Path, preset: str | None) -> None:
    """Makes the folder of a sweep, or checks that it is of this one.

    Args:
        root: the folder.
        preset: the preset of ``reproduce``; None for a grid, whose folder may take further grids.

    Raises:
        UserError: it holds something else, or it can't be written.
    """
    check_folder(root, preset)
    with writing(root, _ADVICE):
        durable.make_folder(root)
        if not (root / _SWEEP).exists():
            durable.write(root / _SWEEP, json.dumps({"preset": preset}) + "\n")
    check_folder(root, preset)  # another process may have been first


def check_folder(root: Path, preset: str | None) -> None:
    """Raises a UserError if a folder exists and isn't of this sweep; see ``open_folder``."""
    file = root / _SWEEP
    # Listed before the file is looked for: another process may be writing it just now.
    holds = {path.name for path in root.iterdir()} if root.is_dir() else set()
    if not file.exists():
        own = {records.FILE, records.COMPRESSED, records.ARRAYS}
        foreign = {name for name in holds - own if not name.startswith(f"{_SWEEP}.")}
        if root.exists() and (not root.is_dir() or foreign):
            raise UserError(
                f"{root}: holds something that isn't a sweep; give --workdir a new or empty folder"
            )
        return
    other = json_files.read(file, {"preset": object}, what_to_do="give another --workdir")["preset"]
    if other != preset:
        raise UserError(
            f"{root}: holds {_in_words(other)}, got {_in_words(preset)}; give another --workdir"
        )


def _in_words(preset: str | None) -> str:
    return f"a sweep of the preset {preset}" if preset else "a sweep of a grid"


def collect(
    groups: Sequence[Group],
    root: epath.PathLike,
    complete: Complete = lambda run, record: True,
    more: Sequence[epath.PathLike] = (),
) -> dict[str, Record]:
    """Returns the records of all finished runs, by name: from their folders, else as they stand.

    Args:
        groups: the runs.
        root: the sweep's folder.
        complete: whether a record has all measurements; of two, the complete one counts.
        more: further records files, or folders with one.

    Raises:
        UserError: a file is damaged, or a folder holds another run.
    """
    kept, found = _known(groups, root, complete, more), {}
    for run in (run for group in groups for run in group):
        written = kept.get(run.name)
        if not (written and complete(run, written)):
            written = records.of_folder(run.folder(root), run.resolved) or written
        if written:
            found[run.name] = written
    return found


def known(
    root: epath.PathLike,
    more: Sequence[epath.PathLike] = (),
    complete: Callable[[Record], bool] = lambda record: True,
) -> dict[str, Record]:
    """Returns what stands in a sweep's records and in further files, by name."""
    own = (file for file in records.files(root) if file.exists())
    return records.read(*own, *more, complete=complete)


def _known(
    groups: Sequence[Group],
    root: epath.PathLike,
    complete: Complete,
    more: Sequence[epath.PathLike],
) -> dict[str, Record]:
    """As ``known``, the complete record of each run if there is one."""
    runs = {run.name: run for group in groups for run in group}
    return known(
        root, more, lambda record: record.name in runs and complete(runs[record.name], record)
    )


def execute(
    groups: Sequence[Group],
    root: epath.PathLike,
    *,
    measure: Measure = lambda run, stop, programs: None,
    complete: Complete = lambda run, record: True,
    more: Sequence[epath.PathLike] = (),
    together: int | str = 1,
    context: artifacts.Context = artifacts.Context(),
    say: Say = lambda line: print(line, flush=True),
) -> None:
    """Trains, measures and records all runs; writes failures down and goes on with the next run.

    Skips runs that another process has locked; call again to pick them up.

    Args:
        groups: the runs, in groups that differ only in their seed.
        root: the sweep's folder.
        measure: called with each run that is trained here, under its lock, with the signals to
            watch and the compiled programs that its group shares.
        complete: whether a finished run's record has all measurements; a run is recorded once it
            has.
        more: further records files, or folders with one, whose runs count as finished too.
        together: largest number of seeds trained as one program; see ``training.train_seeds``.
        context: where the runs come from.
        say: prints a line for the user.

    Raises:
        Preempted: a signal arrived; everything is saved, and the same call resumes.
        UserError: the folder can't be written, or a run's folder holds another run.
    """
    kept = _known(groups, root, complete, more)
    done = {
        run.name
        for group in groups
        for run in group
        if run.name in kept and complete(run, kept[run.name])
    }
    progress = _Progress(groups, root, done, say)
    with StopSignals() as stop:
        for group in groups:
            with contextlib.ExitStack() as stack:
                left = [run for run in group if run.name not in done]
                with writing(root, _ADVICE):
                    mine = [run for run in left if stack.enter_context(_try_lock(run.folder(root)))]
                progress.begin(group, left, mine)
                programs = Programs()
                for run in _trained(mine, root, together, programs, context):
                    progress.check(stop)
                    record = None
                    if state(run, root).name == "finished":
                        measure(run, stop, programs)
                        record = records.of_folder(run.folder(root), run.resolved)
                    if record and complete(run, record):
                        records.append(root, record)
                    progress.end(run, root)
                    signals.saved()
            progress.check(stop)


def _try_lock(folder: epath.Path) -> contextlib.AbstractContextManager[bool]:
    durable.make_folder(folder)
    return locks.try_lock(folder / LOCK)


def _is_whole(run: PlannedRun, root: epath.PathLike) -> bool:
    """Whether the files of a finished run are undamaged."""
    try:
        records.of_folder(run.folder(root), run.resolved)
    except json_files.Damaged:
        return False
    return True


def _trained(
    runs: Sequence[PlannedRun],
    root: epath.PathLike,
    together: int | str,
    programs: Programs,
    context: artifacts.Context,
) -> Iterator[PlannedRun]:
    """Yields each run as soon as it has finished or failed, which is written down."""
    left = []
    for run in runs:
        if state(run, root).name == "finished" and _is_whole(run, root):
            yield run
        else:
            left.append(run)  # training also mends a finished run's damaged files
    configs, folders = [run.config for run in left], [run.folder(root) for run in left]
    for i, reason in train_seeds(configs, folders, together, programs, context):
        file = folders[i] / FAILED
        if reason is not None:
            with writing(file, f"the run failed ({reason}); make room or {_ADVICE}"):
                durable.write(file, json.dumps({"reason": reason}) + "\n")
        elif file.exists():
            file.unlink()
        yield left[i]


class _Progress:
    """Reports which runs come next, how many are done and how long the rest may take."""

    def __init__(self, groups: Sequence[Group], root: epath.PathLike, recorded: set[str], say: Say):
        runs = [run for group in groups for run in group]
        self.total, self.place, self.say = len(runs), 0, say
        # Work that is left, by run; none for those that were finished before.
        self.left = {
            run.name: _work(run)
            for run in runs
            if run.name not in recorded and state(run, root).name != "finished"
        }
        self.done = self.total - len(self.left)
        self.seconds = self.work = self.began = 0.0
        if self.done:
            say(f"{self.done} of {self.total} runs were finished before")

    def begin(self, group: Group, left: Sequence[PlannedRun], mine: Sequence[PlannedRun]) -> None:
        self.began = time.monotonic()
        names = {run.name for run in mine}
        if others := [str(run.config.seed) for run in left if run.name not in names]:
            self.say(
                f"skipped, as another process is working on it: {group[0].title}, "
                f"seed {','.join(others)}"
            )
        first, self.place = self.place + 1, self.place + len(group)
        if new := [run for run in mine if run.name in self.left]:
            seeds = ",".join(str(run.config.seed) for run in new)
            place = f"{first}-{self.place}" if len(group) > 1 else f"{first}"
            experiments = f"{'+'.join(new[0].experiments)}  " if new[0].experiments else ""
            self.say(
                f"run {place} of {self.total}  {experiments}{new[0].title}  "
                f"seed {seeds}  log: runs/{new[0].name}/log.txt"
            )

    def end(self, run: PlannedRun, root: epath.PathLike) -> None:
        if (after := state(run, root)).name == "failed":
            self.say(f"FAILED  {run}: {after.reason}")
        if work := self.left.pop(run.name, 0.0):
            now = time.monotonic()
            self.seconds, self.began = self.seconds + now - self.began, now
            self.work, self.done = self.work + work, self.done + 1
            self.say(f"    {self.done} of {self.total} runs done{self.time_left()}")

    def check(self, stop: StopSignals) -> None:
        """Raises Preempted after a signal."""
        if stop.signalled:
            raise Preempted(f"stopped and saved after {self.done} of {self.total} runs")

    def time_left(self) -> str:
        """Time left at the pace so far, if any is."""
        seconds = round(self.seconds / self.work * sum(self.left.values()))
        return f", about {datetime.timedelta(seconds=seconds)} left" if seconds else ""


def _work(run: PlannedRun) -> float:
    # Compilation and start-up take about as long as 10 GMAC of training on two CPU cores.
    return run.cost + 1e10
