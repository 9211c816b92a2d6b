"""Runs that differ only in their seed, trained as one program: the loop of ``train``, vmapped over the seed.

A small model leaves most of an accelerator idle; several of them in one program don't. Every member is a run of its
own, with its own initial values, data order and augmentation, and its own workdir, in which it leaves what it would
leave alone. It follows the lone run to rounding, not bit for bit: XLA adds in another order in the larger program.
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

from randmix import artifacts, runs, sharding, steps
from randmix import train as lone
from randmix.checkpoint import SET_ASIDE, Checkpoints
from randmix.compiled import Programs, lower_steps, memory_bytes
from randmix.data import arrays, catalog, loader
from randmix.errors import UserError
from randmix.metrics_log import MetricsLog
from randmix.preemption import Preempted, StopSignals
from randmix.progress import Reporter
from randmix.trackers import open_trackers

# Of a device's memory: saving, the test set and what fragmentation wastes come on top of a step.
_USABLE = 0.9


@dataclasses.dataclass
class _Member:
    """One run of an ensemble; ``failure`` says why it fell out, and None while it is trained."""

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
    """Trains runs together, or goes on with them where all were, and evaluates them; on one process.

    A member whose loss or parameters aren't finite falls out: what is wrong with it is in its workdir, and its
    place in the program computes on, into nothing, since members don't touch each other and a smaller program would
    have to be compiled. ``result.json`` says of how many the "ensemble" is that took its ``wall_seconds``.

    Args:
        configs: equal but for ``seed`` and what is shown; two or more.
        workdirs: of the runs, a cohort of ``cohorts``.
        devices: to train on; by default all there are.
        programs: what ensembles of one size and runs that go alone compile once, if the same is given to each.

    Returns:
        For each run why it failed, in one line, or None.

    Raises:
        UserError: a mistake in the configs or a workdir, before anything is compiled.
        ValueError: no step is intact in all workdirs.
        Preempted: SIGTERM or SIGINT came; all members are saved at the same step.
    """
    began = time.monotonic()
    with StopSignals() as stop, contextlib.ExitStack() as stack:
        all_parts = [runs.assemble(config) for config in configs]
        mesh = sharding.make_mesh(devices)
        sharding.check_batch_size(configs[0].batch_size, mesh)
        splits = lone.open_splits(configs[0], all_parts[0])
        members = []
        for config, parts, workdir in zip(
            configs, all_parts, map(epath.Path, workdirs), strict=True
        ):
            if (
                stack.enter_context(artifacts.open_workdir(workdir, config, parts.description))
                is not None
            ):
                raise UserError(f"{workdir}: finished meanwhile; start again with the others")
            lone.save_constants(parts, workdir)
            checkpoints = stack.enter_context(Checkpoints(workdir, about=parts.identity))
            members.append(_Member(config, parts, workdir, checkpoints))
        if stop.signalled:
            raise Preempted("stopped before the first step, with nothing new to save")
        loop = _Loop(members, mesh, programs or Programs(), stop)
        with contextlib.suppress(_NoneLeft):
            test = loop.run_in_workdirs(*splits)
            seconds, on = time.monotonic() - began, list(mesh.devices.flat)
            for i, member in enumerate(members):
                if member.failure is None:
                    own = {name: values[i] for name, values in test.items()}
                    result = lone.summarize(member.config, member.parts, own, seconds, on)
                    lone.finish(member.parts, member.workdir, {**result, "ensemble": len(members)})
    return [member.failure for member in members]


def cohorts(
    configs: Sequence[ConfigDict], workdirs: Sequence[epath.PathLike], at_most: int
) -> list[list[int]]:
    """Parts runs that differ only in their seed into those that are trained together, and those that go alone.

    Together go those that can be brought to one step: the runs yet to begin, and those with an intact checkpoint of
    the same step. Alone go the finished ones, of which nothing is left to do, those whose checkpoints are all
    damaged, and every run that no ensemble takes: one of a composed ResNet (vmap would make its convolutions
    grouped ones: four seeds 22.5 ms where one takes 2.1), of a streamed data set, with a best checkpoint
    (``data.validation``), which comes at another step in each, or on several processes.

    Args:
        configs: of the runs.
        workdirs: of the runs, begun or not.
        at_most: how many go together at most.

    Returns:
        Lists of the runs' indices, each run in one of them.
    """
    if at_most < 2 or not _suited(configs[0]):
        return [[i] for i in range(len(configs))]
    steps_of = {i: _common_ground(epath.Path(workdir)) for i, workdir in enumerate(workdirs)}
    found = [[i] for i, intact in steps_of.items() if not intact]
    left = [i for i, intact in steps_of.items() if intact]
    while left:
        counts = collections.Counter(step for i in left for step in steps_of[i])
        step = max(
            counts, key=lambda step: (counts[step], step)
        )  # shared by the most, the latest of equals
        cohort = [i for i in left if step in steps_of[i]]
        found += [cohort[first : first + at_most] for first in range(0, len(cohort), at_most)]
        left = [i for i in left if i not in cohort]
    return found


def largest_that_fits(config: ConfigDict, count: int, *, limit_bytes: int | None = None) -> int:
    """How many members, ``count`` or what is left of it by halving, a device's memory holds; 1 at the least.

    Args:
        config: of one of the runs.
        count: how many there are.
        limit_bytes: of each device; by default what it has. One that doesn't say so holds all.

    Raises:
        UserError: a mistake in the config.
        Preempted: a signal came while it compiled.
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
    """The memory in bytes that the largest step needs; infinity where the compiler already gives up."""
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
    """The steps that a run can be brought to, 0 where nothing was saved; none where there is nothing to go on with."""
    if (workdir / artifacts.RESULT).exists():
        return []
    with Checkpoints(workdir) as checkpoints:
        if intact := checkpoints.intact_steps():
            return intact
        return [] if checkpoints.all_steps() or (workdir / SET_ASIDE).exists() else [0]


class _NoneLeft(Exception):
    """Every member has fallen out."""


class _Loop(lone.Loop):
    """The loop of ``train`` over stacked members: what is checked of one run is checked of each."""

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
        checkpoints = _Checkpoints(members, self.stack, self.unstack)
        super().__init__(
            members[0].config, members[0].parts, mesh, checkpoints, None, programs, stop, seeds
        )

    @functools.cached_property
    def init(self) -> Callable[[np.ndarray], steps.TrainState]:
        one = super().init  # the lone run's program: the initial values are the same bits
        return lambda seeds: self.stack([one(seed) for seed in seeds])

    def run_in_workdirs(self, train_split: Any, test_split: Any) -> dict[str, list[float]]:
        """Trains to the last step, logging to every member's workdir, and returns the test metrics there."""
        parts, start = self.parts, self.start
        with contextlib.ExitStack() as stack:
            logs = []
            for member in self.each:
                trackers = stack.enter_context(open_trackers(member.config, member.workdir, start))
                log = MetricsLog(member.workdir / artifacts.METRICS, start, trackers=trackers)
                logs.append(stack.enter_context(log))
            report = stack.enter_context(_Reporter(self.each, parts.total_steps, start))
            report.say(
                f"{len(self.each)} seeds together from step {start}; what is shown are their means"
            )
            feed = train_split.for_training(
                seed=self.config.seed,
                batch_size=self.config.batch_size,
                total_steps=parts.total_steps,
                examples=parts.train_examples,
                mesh=self.mesh,
            )
            feed = _TrainFeed([feed.with_seed(member.config.seed) for member in self.each])
            logs = _Logs(self.each, logs, start)
            return self.run(self.each[0].workdir, feed, train_split, test_split, logs, report)

    def require_finite(self, workdir: epath.Path, feed: "_TrainFeed") -> None:
        """Lets the members fall out of which a step wasn't finite."""
        for i, before in enumerate(jax.device_get(self.state.failed_step).tolist()):
            if before >= 0 and self.each[i].failure is None:
                rows = feed.each[i].rows(before)
                self.drop(
                    self.each[i], lone.step_not_finite(before + 1, rows, self.each[i].workdir)
                )

    def save(self, step: int) -> None:
        """Starts the checkpoints of the members that are finite; the others fall out."""
        finite = jax.device_get(_finite((self.state.params, self.state.batch_stats)))
        for member, ok in zip(self.each, finite, strict=True):
            if not ok and member.failure is None:
                self.drop(member, lone.parameters_not_finite(step))
        self.checkpoints.save(step, self.state)

    def drop(self, member: _Member, error: UserError) -> None:
        """Lets a member fall out; raises ``_NoneLeft`` where it was the last."""
        member.failure = str(error)
        print(f"seed {member.config.seed}: {error}", flush=True)
        if all(other.failure is not None for other in self.each):
            raise _NoneLeft


@jax.jit
def _finite(tree: Any) -> jax.Array:
    """[members] bool: ``train.all_finite`` of each."""
    return jax.vmap(lone.all_finite)(tree)


def _stacking(
    members: int, mesh: jax.sharding.Mesh
) -> tuple[Callable[[list[Any]], Any], Callable[[Any], list[Any]]]:
    """What makes one tree of the members' trees, and the members' of that one; each a single program."""

    def stack(trees: list[Any]) -> Any:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    def unstack(tree: Any) -> list[Any]:
        return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(members)]

    whole = sharding.replicated(mesh)
    return jax.jit(stack, out_shardings=whole), jax.jit(unstack, out_shardings=whole)


class _Checkpoints:
    """The members' checkpoints as the loop takes those of one run."""

    def __init__(self, members: Sequence[_Member], stack: Callable, unstack: Callable):
        self._members, self._stack, self._unstack = members, stack, unstack

    def restore_latest(self, abstract_state: Any) -> steps.TrainState | None:
        """The state, stacked, of the latest step that is intact in all workdirs; later ones are deleted.

        They would be taken for those of the steps that now run again.
        """
        shared = set.intersection(*({*_common_ground(member.workdir)} for member in self._members))
        if not shared:
            raise ValueError(
                "no step is intact in all workdirs; train the runs of each of `cohorts` together"
            )
        states = []
        for member in self._members:
            member.checkpoints.delete_after(max(shared))
            states.append(member.checkpoints.restore_latest(abstract_state))
        return None if max(shared) == 0 else self._stack(states)

    def save(self, step: int, state: steps.TrainState) -> None:
        """Starts to write the states of the members that are left."""
        for member, own in zip(self._members, self._unstack(state), strict=True):
            if member.failure is None:
                member.checkpoints.save(step, own)


class _TrainFeed:
    """The members' training sets as the loop takes that of one run: the images once, an order each."""

    def __init__(self, each: Sequence[arrays.TrainArrays]):
        self.each = each
        self._orders: list[jax.Array] = []
        self._stacked: jax.Array | None = None

    def arguments(self, step: int) -> tuple[loader.Data, jax.Array]:
        """The arguments of the vmapped step: the set, and its orders [members, examples]."""
        data, orders = zip(*(feed.arguments(step) for feed in self.each), strict=True)
        if self._stacked is None or orders[0] is not self._orders[0]:
            self._orders, self._stacked = orders, jnp.stack(orders)
        return data[0], self._stacked

    def close(self) -> None:
        """There is nothing to end."""


class _Logs:
    """The members' logs as the loop takes that of one run; who has fallen out gets no further line."""

    def __init__(self, members: Sequence[_Member], logs: Sequence[MetricsLog], start: int):
        self._members, self._logs, self._start = members, logs, start
        self.names_at_start = set.intersection(*(log.names_at_start for log in logs))

    def write(self, *, step: int, **metrics: Any) -> None:
        """Appends a line to each log: of lists a member's own number, the rest as it is."""
        for i, (member, log) in enumerate(zip(self._members, self._logs, strict=True)):
            # A process killed between two logs left this line in some of them.
            written = step == self._start and metrics.keys() <= log.names_at_start
            if member.failure is None and not written:
                own = {name: x[i] if isinstance(x, list) else x for name, x in metrics.items()}
                log.write(step=step, **own)


class _Reporter(Reporter):
    """Shows the means over the members that are left."""

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
