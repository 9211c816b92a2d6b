"""Training of several seeds as one program: the loop of ``train``, vmapped over the seed.

A small model leaves most of an accelerator idle; several models in one program use it. Each member
is a separate run, with its own initial values, data order, augmentation and workdir, to which it
writes the same files as a single run. It matches the single run up to rounding, not bit for bit:
XLA sums in another order in the larger program.
"""

import collections
import contextlib
import functools
import time
from collections.abc import Iterable, Sequence

import jax
from etils import epath

from randmix.errors import UserError
from randmix.runtime import sharding
from randmix.runtime.preemption import StopSignals
from randmix.training import loop, runs
from randmix.training.compiled import Programs, lower_steps, memory_bytes
from randmix.training.members import Session, open_member, open_workdir
from randmix.workdir import artifacts
from randmix.workdir.checkpoints import Checkpoints

# Usable fraction of a device's memory. A step's memory excludes saving, the test set and
# fragmentation.
_USABLE = 0.9


def train(
    all_parts: Sequence[runs.Parts],
    workdirs: Sequence[epath.PathLike],
    *,
    devices: list[jax.Device] | None = None,
    programs: Programs | None = None,
    context: artifacts.Context = artifacts.Context(),
) -> list[str | None]:
    """Trains or resumes runs together and evaluates them, on a single process.

    A member whose loss or parameters aren't finite drops out, and its workdir says what is wrong.
    Its slot in the program keeps computing, with the results discarded: members are independent,
    and a smaller program would have to be compiled. ``result.json`` has the size of the "ensemble"
    that took its ``wall_seconds``.

    Args:
        all_parts: the parts of two or more runs that differ only in their seed.
        workdirs: the runs' folders, one cohort from ``cohorts``.
        devices: the devices to train on; by default all.
        programs: a cache of compiled programs to share with ensembles of the same size and with
            single runs.
        context: where the runs come from.

    Returns:
        For each run None, or one line that says why it failed.

    Raises:
        UserError: a mistake in the configs or a workdir; raised before anything is compiled.
        ValueError: no step is intact in all workdirs.
        Preempted: a signal was received; all members are saved at the same step.
    """
    began, size = time.monotonic(), len(all_parts)
    runs_in = list(zip(all_parts, map(epath.Path, workdirs), strict=True))
    with StopSignals() as stop, contextlib.ExitStack() as locks:
        session = Session.build(all_parts[0], devices, programs, stop, context, size=size)
        splits = all_parts[0].data.open()
        for parts, workdir in runs_in:
            if locks.enter_context(open_workdir(parts, workdir)) is not None:
                raise UserError(f"{workdir}: finished meanwhile; start again without this run")
        session.require_no_signal()
        known = loop.announce(all_parts[0], splits)
        _delete_after_common_step([workdir for _, workdir in runs_in])
        with contextlib.ExitStack() as stack:
            members = [stack.enter_context(open_member(*run)) for run in runs_in]
            try:
                metrics = loop.fit(members, splits, session)
            except UserError as error:
                if any(member.failure is None for member in members):
                    raise
                print(error, flush=True)
                return [member.failure for member in members]
        seconds = time.monotonic() - began
        for member, own in zip(members, metrics, strict=True):
            if member.failure is None:
                result = loop.summarize(member.parts, own, seconds, session)
                artifacts.write_result(member.workdir, {**result, **known, "ensemble": size})
    return [member.failure for member in members]


def cohorts(
    all_parts: Sequence[runs.Parts], workdirs: Sequence[epath.PathLike], at_most: int
) -> list[list[int]]:
    """Partitions runs that differ only in their seed into those to train together and single runs.

    Runs train together if they can start from a common step: runs that haven't begun or whose
    checkpoints are all damaged, and runs with an intact checkpoint of the same step. Finished runs
    stay single, and so does every run that an ensemble doesn't support: one with a composed ResNet
    (vmap would turn its convolutions into grouped ones: 22.5 ms for four seeds, 2.1 ms for one) or
    with a MetaFormer in stages, which has such convolutions as well, with a streamed data set, with
    a best checkpoint (``data.validation``), whose step differs between members, or on several
    processes.

    Args:
        all_parts: the runs' parts.
        workdirs: the runs' folders, begun or not.
        at_most: the largest number of runs to train together.

    Returns:
        Lists of indices of the runs; each run is in exactly one of them.
    """
    if at_most < 2 or not _suited(all_parts[0]):
        return [[i] for i in range(len(all_parts))]
    steps_of = {i: _common_ground(epath.Path(workdir)) for i, workdir in enumerate(workdirs)}
    found = [[i] for i, intact in steps_of.items() if not intact]
    left = [i for i, intact in steps_of.items() if intact]
    while left:
        counts = collections.Counter(step for i in left for step in steps_of[i])
        # The step that most runs share, and the latest of equals.
        step = max(counts, key=lambda step: (counts[step], step))
        cohort = [i for i in left if step in steps_of[i]]
        found += [cohort[first : first + at_most] for first in range(0, len(cohort), at_most)]
        left = [i for i in left if i not in cohort]
    return found


def largest_that_fits(parts: runs.Parts, count: int, *, limit_bytes: int | None = None) -> int:
    """Returns how many members fit a device's memory: ``count``, or the result of halving it.

    Args:
        parts: the parts of one of the runs.
        count: the number of runs.
        limit_bytes: memory per device in bytes; by default the device's own. If the device doesn't
            report it, ``count`` is returned.

    Returns:
        The number of members, 1 or more.

    Raises:
        Preempted: a signal was received while compiling.
    """
    mesh = sharding.make_mesh()
    if limit_bytes is None:
        limit_bytes = (mesh.devices.flat[0].memory_stats() or {}).get("bytes_limit")
    if limit_bytes is None or not _suited(parts):
        return count
    with StopSignals() as stop:
        while count > 1:
            lowered = lower_steps(parts, mesh, count).values()
            needs = stop.interruptible(functools.partial(_needs, lowered))
            if needs <= _USABLE * limit_bytes:
                break
            count = -(-count // 2)
    return count


def _needs(lowered: Iterable[jax.stages.Lowered]) -> float:
    """Returns the memory of the largest step in bytes; infinity if the compiler runs out of it."""
    try:
        return max(memory_bytes(step.compile()) for step in lowered)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return float("inf")


def _suited(parts: runs.Parts) -> bool:
    model = parts.record.config["model"]
    return (
        model["name"] != "resnet"
        and len(model.get("stages", (1,))) == 1
        and not parts.step.draws  # nor a model of the user's own, whose cost isn't known
        and not parts.data.validation_examples
        and not parts.data.dataset.streamed
        and jax.process_count() == 1
    )


def _common_ground(workdir: epath.Path) -> list[int]:
    """Returns the steps a run can start from: [0] if none intact is saved, [] if it is finished."""
    if artifacts.is_finished(workdir):
        return []
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.intact_steps() or [0]


def _delete_after_common_step(workdirs: Sequence[epath.Path]) -> None:
    """Deletes the checkpoints after the latest step that is intact in all workdirs.

    They would be mistaken for those of the steps that now run again.
    """
    shared = set.intersection(*(set(_common_ground(workdir)) for workdir in workdirs))
    if not shared:
        raise ValueError("no step is intact in all workdirs; group the runs with `cohorts` first")
    for workdir in workdirs:
        with Checkpoints(workdir) as checkpoints:
            checkpoints.delete_after(max(shared))
