"""The runs of a loop: what each has of its own, and what they share.

A single run is the loop's only member. The members of an ensemble differ in their seed; their
states and metrics have a leading axis.
"""

import contextlib
import dataclasses
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from randmix.config import flatten
from randmix.data import catalog, feeds
from randmix.errors import UserError
from randmix.runtime import distributed, durable, sharding
from randmix.runtime.preemption import Preempted, StopSignals
from randmix.runtime.progress import Reporter
from randmix.training import runs, steps
from randmix.training.compiled import Programs
from randmix.workdir import artifacts
from randmix.workdir.checkpoints import BEST, Checkpoints
from randmix.workdir.metrics import MetricsLog, open_trackers

_NOT_FINITE = (
    "the last checkpoint before it is kept; "
    "lower config.optimizer.learning_rate, or set config.optimizer.clip_norm"
)


_all_finite = jax.jit(steps.all_finite)


@dataclasses.dataclass(frozen=True)
class Session:
    """What the runs of one loop share.

    Attributes:
        mesh: the devices that share each batch.
        programs: the compiled programs.
        stop: the signals that stop the loop.
        context: where the runs come from.
        profile: the steps that are traced, from 1; see ``profiling.Trace``.
        size: None for a single run, or the number of members of an ensemble, whose state, seeds,
            order and metrics then have a leading axis of that length.
    """

    mesh: jax.sharding.Mesh
    programs: Programs
    stop: StopSignals
    context: artifacts.Context
    profile: range = range(0)
    size: int | None = None

    @classmethod
    def build(
        cls,
        parts: runs.Parts,
        devices: list[jax.Device] | None,
        programs: Programs | None,
        stop: StopSignals,
        context: artifacts.Context,
        profile: range = range(0),
        size: int | None = None,
    ) -> "Session":
        """Builds the mesh; raises a UserError if it can't share the run's batches evenly."""
        mesh = sharding.make_mesh(devices)
        sharding.check_batch_size(parts.step.batch_size, mesh, parts.step.accumulate)
        return cls(mesh, programs or Programs(), stop, context, profile, size)

    def require_no_signal(self) -> None:
        """Raises Preempted if a signal came before the first step."""
        if self.stop.signalled:
            raise Preempted("stopped before the first step, with nothing new to save", saved=False)

    def stack(self, trees: Sequence[Any]) -> Any:
        """Returns the members' trees as one, with their leading axis."""
        if self.size is None:
            return trees[0]

        def stacked(trees: Sequence[Any]) -> Any:
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

        whole = sharding.replicated(self.mesh)
        name = ("stack", self.size)
        return self.programs.once(name, lambda: jax.jit(stacked, out_shardings=whole))(trees)

    def unstack(self, tree: Any) -> list[Any]:
        """Reverses ``stack``."""
        size = self.size
        if size is None:
            return [tree]

        def unstacked(tree: Any) -> list[Any]:
            return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(size)]

        whole = sharding.replicated(self.mesh)
        name = ("unstack", size)
        return self.programs.once(name, lambda: jax.jit(unstacked, out_shardings=whole))(tree)


@dataclasses.dataclass
class Member:
    """A run in the loop, and what is its own; a single run is the loop's only member.

    Attributes:
        parts: the run's parts, which differ between members in their seed only.
        workdir: its folder.
        checkpoints: the latest checkpoints.
        best: the checkpoint that scored best on held-out examples.
        best_score: its score.
        log: metrics.jsonl and the trackers; set by ``open_log``.
        failure: why it dropped out, or None while it trains.
    """

    parts: runs.Parts
    workdir: epath.Path
    checkpoints: Checkpoints
    best: Checkpoints
    best_score: float
    log: MetricsLog = dataclasses.field(init=False)
    failure: str | None = None


def open_workdir(
    parts: runs.Parts, workdir: epath.Path
) -> contextlib.AbstractContextManager[dict[str, Any] | None]:
    """Claims a run's folder; see ``artifacts.open_workdir``."""
    return artifacts.open_workdir(
        workdir,
        parts.record.config,
        parts.record.description,
        catalog.describe(parts.data.dataset, parts.data.data_dir),
    )


@contextlib.contextmanager
def open_member(parts: runs.Parts, workdir: epath.Path) -> Iterator[Member]:
    """Writes the task's constants, each as NAME.npy, and opens the checkpoints of a run."""
    if distributed.is_primary():
        for name, array in parts.step.task.constants.items():
            content = io.BytesIO()
            np.save(content, array)
            durable.write(workdir / f"{name}.npy", content.getvalue())
    about, kept = parts.record.identity, parts.record.keep_checkpoints
    with (
        Checkpoints(workdir, about=about, kept=kept) as checkpoints,
        Checkpoints(workdir, about=about, folder=BEST, kept=1) as best,
    ):
        yield Member(parts, workdir, checkpoints, best, best.best_score())


@contextlib.contextmanager
def open_log(member: Member, start: int, context: artifacts.Context) -> Iterator[None]:
    """Opens a member's log and trackers; only process 0 writes."""
    primary, record = distributed.is_primary(), member.parts.record
    values = flatten(record.config)
    varied = {key: values[key] for key in (*context.varied, "seed") if key in values}
    with (
        open_trackers(
            member.workdir,
            start,
            member.parts.loop.total_steps,
            tensorboard=primary and record.tensorboard,
            wandb_project=record.wandb_project if primary else None,
            values=record.config,
            sweep=context.sweep,
            varied=varied if context.sweep and context.varied else None,
        ) as trackers,
        MetricsLog(
            member.workdir / artifacts.METRICS, start, writes=primary, trackers=trackers
        ) as member.log,
    ):
        yield


def log_interval(
    members: Sequence[Member],
    step: int,
    totals: Mapping[str, np.ndarray],
    images_per_second: float,
    report: Reporter,
    skipped: Mapping[str, int],
) -> None:
    """Logs the means of the metrics since the last log line; totals are sums over its steps.

    ``skipped`` is from ``skipped.Skipped.collect``.
    """
    options = members[0].parts.loop
    sums = {name: np.float64(total) for name, total in totals.items()}
    count = sums.pop("steps")
    whole = {name: (total / count).tolist() for name, total in sums.items()}
    means = by_member(whole, len(members))
    for member, own in zip(members, means, strict=True):
        if member.failure is None:
            member.log.write(
                step=step,
                epoch=round(step / options.steps_per_epoch, 4),
                **{f"train_{name}": value for name, value in own.items()},
                **({"train_skipped": skipped["train"]} if skipped else {}),
                # Optax's type of a schedule includes complex numbers.
                learning_rate=float(cast(jax.Array, options.schedule(step - 1))),
                images_per_second=round(images_per_second, 1),
            )
    report.train(step, _mean(members, means), images_per_second=images_per_second)


def record_evaluation(
    members: Sequence[Member],
    step: int,
    state: steps.TrainState,
    test: Sequence[Mapping[str, float]],
    session: Session,
    report: Reporter,
    skipped: Mapping[str, int],
) -> None:
    """Logs an evaluation, and saves a member that scores better on held-out examples than ever."""
    name = f"validation_{members[0].parts.step.task.score}"
    for i, (member, own) in enumerate(zip(members, test, strict=True)):
        if (score := own.get(name, -math.inf)) > member.best_score:
            member.best.save(step, session.unstack(state)[i], score=score)
            member.best_score = score
        if member.failure is None:
            more = {"test_skipped": skipped["test"]} if skipped else {}
            member.log.write(step=step, **own, **more)
    report.test(step, **_mean(members, test))


def save(members: Sequence[Member], step: int, state: steps.TrainState, session: Session) -> None:
    """Starts each member's checkpoint; a non-finite one would displace a good one."""
    for member, own in zip(members, session.unstack(state), strict=True):
        if member.failure is None and not _all_finite((own.params, own.batch_stats)):
            drop(
                members,
                member,
                UserError(f"step {step}: the parameters aren't finite; {_NOT_FINITE}"),
            )
        if member.failure is None:
            # A run that resumes from this checkpoint expects the log up to it, and the best one.
            member.log.flush()
            member.best.wait()
            member.checkpoints.save(step, own)


def drop_failed(members: Sequence[Member], state: steps.TrainState, feed: feeds.TrainFeed) -> None:
    """Drops the members that had a non-finite step, and records which examples it was given."""
    failed = np.atleast_1d(jax.device_get(state.failed_step)).tolist()
    for i, (member, before) in enumerate(zip(members, failed, strict=True)):
        if before >= 0 and member.failure is None:
            if distributed.is_primary():
                rows = np.atleast_2d(feed.rows(before))[i]
                content = {"step": before + 1, "examples": rows.tolist()}
                durable.write(member.workdir / artifacts.NOT_FINITE, json.dumps(content) + "\n")
            drop(
                members,
                member,
                UserError(
                    f"step {before + 1}: the loss or a gradient isn't finite; "
                    f"{artifacts.NOT_FINITE} lists its examples; {_NOT_FINITE}"
                ),
            )


def drop(members: Sequence[Member], member: Member, error: UserError) -> None:
    """Drops a member, and raises the error if it was the last one."""
    member.failure = str(error)
    if all(other.failure is not None for other in members):
        raise error
    print(f"seed {member.parts.seed}: {error}", flush=True)


def by_member(metrics: Mapping[str, Any], members: int) -> list[dict[str, float]]:
    """Each member's own metrics; an ensemble's are lists with one number per member."""
    return [
        {name: x[i] if isinstance(x, list) else x for name, x in metrics.items()}
        for i in range(members)
    ]


def _mean(members: Sequence[Member], metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The means over the members that are left."""
    left = [own for member, own in zip(members, metrics, strict=True) if member.failure is None]
    return {name: float(np.mean([own[name] for own in left])) for name in left[0]}
