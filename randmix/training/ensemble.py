"""Training of several seeds as one program: the loop of ``train``, vmapped over the seed.

A small model leaves most of an accelerator idle; several models in one program use it. Each member
is a separate run, with its own initial values, data order, augmentation and workdir, to which it
writes the same files as a single run. It matches the single run up to rounding, not bit for bit:
XLA sums in another order in the larger program.
"""

import collections
import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from randmix.data import arrays, catalog, loader
from randmix.errors import UserError
from randmix.runtime import sharding
from randmix.runtime.preemption import Preempted, StopSignals
from randmix.runtime.progress import Reporter
from randmix.training import loop as lone
from randmix.training import runs, steps
from randmix.training.compiled import Programs, lower_steps, memory_bytes
from randmix.workdir import artifacts
from randmix.workdir.checkpoints import Checkpoints
from randmix.workdir.metrics_log import MetricsLog
from randmix.workdir.trackers import open_trackers

# Usable fraction of a device's memory. A step's memory excludes saving, the test set and
# fragmentation.
_USABLE = 0.9


@dataclasses.dataclass
class _Member:
    """One run of an ensemble; ``failure`` says why it dropped out, or is None while it trains."""

    config: ConfigDict
    parts: runs.Parts
    workdir: epath.Path
    checkpoints: Checkpoints
    failure: str | None = None


def train(
    configs: Sequence[ConfigDict],
    workdirs: Sequence[epath.PathLike],
    *,
    devices: list[jax.Device] | None = None,
    programs: Programs | None = None,
) -> list[str | None]:
    """Trains or resumes runs together and evaluates them, on a single process.

    A member whose loss or parameters aren't finite drops out, and its workdir says what is wrong.
    Its slot in the program keeps computing, with the results discarded: members are independent,
    and a smaller program would have to be compiled. ``result.json`` has the size of the "ensemble"
    that took its ``wall_seconds``.

    Args:
        configs: two or more, equal except for ``seed`` and display keys.
        workdirs: the runs' folders, one cohort from ``cohorts``.
        devices: the devices to train on; by default all.
        programs: a cache of compiled programs to share with ensembles of the same size and with
            single runs.

    Returns:
        For each run None, or one line that says why it failed.

    Raises:
        UserError: a mistake in the configs or a workdir; raised before anything is compiled.
        ValueError: no step is intact in all workdirs.
        Preempted: a signal was received; all members are saved at the same step.
    """
    began = time.monotonic()
    with StopSignals() as stop, contextlib.ExitStack() as stack:
        all_parts = [runs.assemble(config) for config in configs]
        mesh = sharding.make_mesh(devices)
        sharding.check_batch_size(configs[0].batch_size, mesh)
        splits = lone.open_splits(configs[0], all_parts[0])
        data = catalog.describe(all_parts[0].dataset, configs[0].data.data_dir)
        members = []
        for config, parts, workdir in zip(
            configs, all_parts, map(epath.Path, workdirs), strict=True
        ):
            if (
                stack.enter_context(
                    artifacts.open_workdir(workdir, config, parts.description, data)
                )
                is not None
            ):
                raise UserError(f"{workdir}: finished meanwhile; start again without this run")
            lone.save_constants(parts, workdir)
            checkpoints = stack.enter_context(Checkpoints(workdir, about=parts.identity))
            members.append(_Member(config, parts, workdir, checkpoints))
        if stop.signalled:
            raise Preempted("stopped before the first step, with nothing new to save", saved=False)
        loop = _Loop(members, mesh, programs or Programs(), stop)
        with contextlib.suppress(_NoneLeft):
            test = loop.run_in_workdirs(*splits)
            seconds, on = time.monotonic() - began, list(mesh.devices.flat)
            for i, member in enumerate(members):
                if member.failure is None:
                    # A finished run has its last checkpoint.
                    member.checkpoints.wait()
                    own = {name: values[i] for name, values in test.items()}
                    result = lone.summarize(member.config, member.parts, own, seconds, on)
                    artifacts.write_result(member.workdir, {**result, "ensemble": len(members)})
    return [member.failure for member in members]


def cohorts(
    configs: Sequence[ConfigDict], workdirs: Sequence[epath.PathLike], at_most: int
) -> list[list[int]]:
    """Partitions runs that differ only in their seed into those to train together and single runs.

    Runs train together if they can start from a common step: runs that haven't begun, and runs with
    an intact checkpoint of the same step. Finished runs and runs with only damaged checkpoints stay
    single, and so does every run that an ensemble doesn't support: one with a composed ResNet (vmap
    would turn its convolutions into grouped ones: 22.5 ms for four seeds, 2.1 ms for one), with a
    streamed data set, with a best checkpoint (``data.validation``), whose step differs between
    members, or on several processes.

    Args:
        configs: the runs' configs.
        workdirs: the runs' folders, begun or not.
        at_most: the largest number of runs to train together.

    Returns:
        Lists of indices of the runs; each run is in exactly one of them.
    """
    if at_most < 2 or not _suited(configs[0]):
        return [[i] for i in range(len(configs))]
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


def largest_that_fits(config: ConfigDict, count: int, *, limit_bytes: int | None = None) -> int:
    """Returns how many members fit a device's memory: ``count``, or the result of halving it.

    Args:
        config: the config of one of the runs.
        count: the number of runs.
        limit_bytes: memory per device in bytes; by default the device's own. If the device doesn't
            report it, ``count`` is returned.

    Returns:
        The number of members, 1 or more.

    Raises:
        UserError: a mistake in the config.
        Preempted: a signal was received while compiling.
    """
    mesh = sharding.make_mesh()
    if limit_bytes is None:
        limit_bytes = (mesh.devices.flat[0].memory_stats() or {}).get("bytes_limit")
    if limit_bytes is None or not _suited(config):
        return count
    parts = runs.assemble(config)
    with StopSignals() as stop:
        while count > 1:
            lowered = lower_steps(config, parts, mesh, count).values()
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


def _suited(config: ConfigDict) -> bool:
    data = config.data
    return (
        config.model.name != "resnet"
        and not data.validation
        and not catalog.get(data.name, data.data_dir, image_size=data.image_size).streamed
        and jax.process_count() == 1
    )


def _common_ground(workdir: epath.Path) -> list[int]:
    """Returns the steps a run can start from: [0] if nothing is saved, [] if none is intact."""
    if artifacts.is_finished(workdir):
        return []
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.intact_steps() or [0]


class _NoneLeft(Exception):
    """Raised when every member has dropped out."""


class _Loop(lone.Loop):
    """The loop of ``train`` over stacked members, with the checks of a single run for each."""

    def __init__(
        self,
        members: Sequence[_Member],
        mesh: jax.sharding.Mesh,
        programs: Programs,
        stop: StopSignals,
    ):
        self.each = members
        self.stack, self.unstack = _stacking(len(members), mesh)
        seeds = [member.config.seed for member in members]
        super().__init__(
            members[0].config,
            members[0].parts,
            mesh,
            # These adapters have only the methods that the loop of an ensemble calls.
            _Checkpoints(members, self.stack, self.unstack),  # pyright: ignore[reportArgumentType]
            None,
            programs,
            stop,
            seeds,
        )

    @functools.cached_property
    def init(self) -> Callable[[np.ndarray], steps.TrainState]:
        one = super().init  # the single run's program, so that initial values are the same bits
        return lambda seeds: self.stack([one(seed) for seed in seeds])

    def run_in_workdirs(self, train_split: Any, test_split: Any) -> dict[str, Any]:
        """Trains to the last step, logging to every member's workdir.

        Returns:
            The test metrics at the last step, name -> a list with one float per member.
        """
        parts, start = self.parts, self.start
        with contextlib.ExitStack() as stack:
            logs = []
            for member in self.each:
                trackers = stack.enter_context(open_trackers(member.config, member.workdir, start))
                log = MetricsLog(member.workdir / artifacts.METRICS, start, trackers=trackers)
                logs.append(stack.enter_context(log))
            report = stack.enter_context(_Reporter(self.each, parts.total_steps, start))
            report.say(f"{len(self.each)} seeds together from step {start}; showing their means")
            feed = train_split.for_training(
                seed=self.config.seed,
                batch_size=self.config.batch_size,
                total_steps=parts.total_steps,
                examples=parts.train_examples,
                mesh=self.mesh,
            )
            return self.run(
                self.each[0].workdir,
                # As above, only the methods that the loop of an ensemble calls.
                _TrainFeed(  # pyright: ignore[reportArgumentType]
                    [feed.with_seed(member.config.seed) for member in self.each]
                ),
                train_split,
                test_split,
                _Logs(self.each, logs, start),  # pyright: ignore[reportArgumentType]
                report,
            )

    def require_finite(self, workdir: epath.Path, feed: "_TrainFeed") -> None:
        """Drops the members that had a non-finite step."""
        for i, before in enumerate(jax.device_get(self.state.failed_step).tolist()):
            if before >= 0 and self.each[i].failure is None:
                rows = feed.each[i].rows(before)
                self.drop(
                    self.each[i], lone.step_not_finite(before + 1, rows, self.each[i].workdir)
                )

    def save(self, step: int, log: MetricsLog) -> None:
        """Starts the checkpoints of members with finite parameters and drops the others."""
        finite = jax.device_get(_finite((self.state.params, self.state.batch_stats)))
        for member, ok in zip(self.each, finite, strict=True):
            if not ok and member.failure is None:
                self.drop(member, lone.parameters_not_finite(step))
        log.flush()
        self.checkpoints.save(step, self.state)

    def drop(self, member: _Member, error: UserError) -> None:
        """Drops a member; raises ``_NoneLeft`` if it was the last one."""
        member.failure = str(error)
        print(f"seed {member.config.seed}: {error}", flush=True)
        if all(other.failure is not None for other in self.each):
            raise _NoneLeft


@jax.jit
def _finite(tree: Any) -> jax.Array:
    """Returns ``train.all_finite`` of each member, [members] bool."""
    return jax.vmap(lone.all_finite)(tree)


def _stacking(
    members: int, mesh: jax.sharding.Mesh
) -> tuple[Callable[[list[Any]], Any], Callable[[Any], list[Any]]]:
    """Returns functions that stack the members' trees and unstack them, one program each."""

    def stack(trees: list[Any]) -> Any:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    def unstack(tree: Any) -> list[Any]:
        return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(members)]

    whole = sharding.replicated(mesh)
    return jax.jit(stack, out_shardings=whole), jax.jit(unstack, out_shardings=whole)


class _Checkpoints:
    """The members' checkpoints, with the methods that the loop calls for a single run."""

    def __init__(self, members: Sequence[_Member], stack: Callable, unstack: Callable):
        self._members, self._stack, self._unstack = members, stack, unstack

    def restore_latest(self, abstract_state: Any) -> steps.TrainState | None:
        """Restores the latest step that is intact in all workdirs, stacked, and deletes later ones.

        Later checkpoints would be mistaken for those of the steps that now run again.
        """
        shared = set.intersection(*({*_common_ground(member.workdir)} for member in self._members))
        if not shared:
            raise ValueError(
                "no step is intact in all workdirs; group the runs with `cohorts` first"
            )
        states = []
        for member in self._members:
            member.checkpoints.delete_after(max(shared))
            states.append(member.checkpoints.restore_latest(abstract_state))
        return None if max(shared) == 0 else self._stack(states)

    def save(self, step: int, state: steps.TrainState) -> None:
        """Starts to write the states of the remaining members."""
        for member, own in zip(self._members, self._unstack(state), strict=True):
            if member.failure is None:
                member.checkpoints.save(step, own)


class _TrainFeed:
    """The members' training sets as one feed: the images once, and an order per member."""

    def __init__(self, each: Sequence[arrays.TrainArrays]):
        self.each = each
        self._orders: Sequence[jax.Array] = ()
        self._stacked: jax.Array | None = None

    def arguments(self, step: int) -> tuple[loader.Data, jax.Array]:
        """Returns the vmapped step's arguments: the set, and its orders [members, examples]."""
        data, orders = zip(*(feed.arguments(step) for feed in self.each), strict=True)
        if self._stacked is None or orders[0] is not self._orders[0]:
            self._orders, self._stacked = orders, jnp.stack(orders)
        return data[0], self._stacked

    def close(self) -> None:
        """Does nothing: no reader runs ahead."""


class _Logs:
    """The members' logs as one log; a member that has dropped out gets no further lines."""

    def __init__(self, members: Sequence[_Member], logs: Sequence[MetricsLog], start: int):
        self._members, self._logs, self._start = members, logs, start
        self.names_at_start = set.intersection(*(log.names_at_start for log in logs))

    def write(self, *, step: int, **metrics: Any) -> None:
        """Appends a line to each log: the member's own number of a list, other values unchanged."""
        for i, (member, log) in enumerate(zip(self._members, self._logs, strict=True)):
            # A process killed between two logs wrote this line to some of them.
            written = step == self._start and metrics.keys() <= log.names_at_start
            if member.failure is None and not written:
                own = {name: x[i] if isinstance(x, list) else x for name, x in metrics.items()}
                log.write(step=step, **own)

    def flush(self) -> None:
        """Waits until all lines are on the disk."""
        for log in self._logs:
            log.flush()


class _Reporter(Reporter):
    """Shows the means over the remaining members."""

    def __init__(self, members: Sequence[_Member], total_steps: int, start_step: int):
        super().__init__(total_steps, start_step)
        self._members = members

    def train(self, step: int, *, images_per_second: float, **metrics: list[float]) -> None:
        super().train(step, images_per_second=images_per_second, **self._means(metrics))

    def test(self, step: int, **metrics: list[float]) -> None:
        super().test(step, **self._means(metrics))

    def _means(self, metrics: dict[str, list[float]]) -> dict[str, float]:
        left = [member.failure is None for member in self._members]
        return {name: float(np.mean(np.compress(left, values))) for name, values in metrics.items()}
