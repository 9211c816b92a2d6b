"""The training loop: ``train(config, workdir)``, the same from the command line, a notebook and a test."""

import contextlib
import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from randmix import artifacts, distributed, eval_loop, runs, sharding, steps
from randmix.checkpoint import BEST, Checkpoints
from randmix.compiled import Programs, jit_eval_steps, jit_train_step
from randmix.data import feeds, loader
from randmix.errors import UserError
from randmix.metrics_log import MetricsLog
from randmix.preemption import Preempted, StopSignals
from randmix.progress import Reporter
from randmix.trackers import open_trackers

_NOT_FINITE = (
    "the last checkpoint before it is kept; "
    "lower config.optimizer.learning_rate, or set config.optimizer.clip_norm"
)


def train(
    config: ConfigDict,
    workdir: epath.PathLike,
    *,
    devices: list[jax.Device] | None = None,
    programs: Programs | None = None,
) -> dict[str, Any]:
    """Trains what ``config`` describes, or goes on where ``workdir`` was left, and evaluates it.

    Args:
        config: see ``randmix.config``.
        workdir: the run's folder; it is made where it doesn't exist.
        devices: to train on; by default all there are, on all hosts.
        programs: what runs that differ only in their seed compile once, if the same is given to each.

    Returns:
        What ``result.json`` holds. A finished workdir gives its result again without training.

    On several processes (``distributed.start``) each calls this with the same arguments; process 0 writes.

    Raises:
        UserError: a mistake in the config or the workdir, before anything is compiled; or a loss that
            isn't finite.
        Preempted: SIGTERM or SIGINT came; the state is saved.
    """
    with StopSignals() as stop:
        return _train(config, epath.Path(workdir), devices, programs or Programs(), stop)


def _train(
    config: ConfigDict,
    workdir: epath.Path,
    devices: list[jax.Device] | None,
    programs: Programs,
    stop: StopSignals,
) -> dict[str, Any]:
    began = time.monotonic()
    with distributed.shared_errors():
        parts = runs.assemble(config)
        mesh = sharding.make_mesh(devices)
        sharding.check_batch_size(config.batch_size, mesh)
        train_split, test_split = open_splits(config, parts)
    with artifacts.open_workdir(workdir, config, parts.description) as result:
        if result is not None:
            print(
                f"{workdir}: finished before, at step {result['step']}; nothing to do", flush=True
            )
            return result
        return _train_alone(
            config, workdir, parts, mesh, train_split, test_split, programs, stop, began
        )


def _train_alone(
    config: ConfigDict,
    workdir: epath.Path,
    parts: runs.Parts,
    mesh: jax.sharding.Mesh,
    train_split: feeds.Split,
    test_split: feeds.Split,
    programs: Programs,
    stop: StopSignals,
    began: float,
) -> dict[str, Any]:
    """Trains in a workdir that no other run has; ``began`` is when the call did, by `time.monotonic`."""
    primary = distributed.is_primary()
    if primary:
        save_constants(parts, workdir)
    if stop.signalled:
        raise Preempted("stopped before the first step, with nothing new to save")
    with (
        Checkpoints(workdir, about=parts.identity) as checkpoints,
        Checkpoints(workdir, about=parts.identity, folder=BEST, kept=1) as best,
    ):
        loop = Loop(config, parts, mesh, checkpoints, best, programs, stop)
        with (
            open_trackers(config, workdir, loop.start, active=primary) as trackers,
            MetricsLog(
                workdir / artifacts.METRICS, loop.start, writes=primary, trackers=trackers
            ) as log,
            Reporter(parts.total_steps, loop.start) as report,
        ):
            if loop.start:
                report.say(f"{workdir}: going on from step {loop.start}")
            train_feed = train_split.for_training(
                seed=config.seed,
                batch_size=config.batch_size,
                total_steps=parts.total_steps,
                examples=parts.train_examples,
                mesh=mesh,
            )
            with contextlib.closing(train_feed):
                metrics = loop.run(workdir, train_feed, train_split, test_split, log, report)
    result = summarize(config, parts, metrics, time.monotonic() - began, list(mesh.devices.flat))
    finish(parts, workdir, result)
    return result


def save_constants(parts: runs.Parts, workdir: epath.Path) -> None:
    """Writes the arrays that are the same for all examples of a task, each as NAME.npy."""
    for name, array in parts.task.constants.items():
        with (workdir / f"{name}.npy").open("wb") as file:
            np.save(file, array)


def summarize(
    config: ConfigDict,
    parts: runs.Parts,
    metrics: Mapping[str, float],
    seconds: float,
    devices: list[jax.Device],
) -> dict[str, Any]:
    """What ``result.json`` holds of a finished run: ``metrics`` are those of the evaluation at the last step."""
    return {
        "mode": parts.mode,
        "metrics": metrics,
        "parameters": {"trainable": parts.summary.trainable, "frozen": parts.summary.frozen},
        "step": parts.total_steps,
        "seed": config.seed,
        "wall_seconds": round(seconds, 2),
        **artifacts.provenance(devices),
    }


def finish(parts: runs.Parts, workdir: epath.Path, result: dict[str, Any]) -> None:
    """Writes ``result.json`` and draws what the task has to show; all processes call it, the drawing is shared."""
    if distributed.is_primary():
        artifacts.write_result(workdir, result)
    if parts.task.name == "unshuffling":
        from randmix import unshuffle  # no other task draws

        unshuffle.draw([workdir], workdir)


def open_splits(config: ConfigDict, parts: runs.Parts) -> tuple[feeds.Split, feeds.Split]:
    """The training and the test split; in memory, if they are of a kind that fits there."""
    reading = feeds.reading(config.data)
    train_split, test_split = (
        feeds.Split(parts.dataset, split, config.data.data_dir, reading)
        for split in ("train", "test")
    )
    return train_split, test_split


class Loop:
    """One call of ``train`` between its checks and its result.

    An ensemble takes this very loop (``ensemble.py``): its arrays then have a first axis of ``members``, one for each
    of ``seeds``, and what it hands over as checkpoints, feed, log and report parts them by member. It has no ``best``.
    """

    def __init__(
        self,
        config: ConfigDict,
        parts: runs.Parts,
        mesh: jax.sharding.Mesh,
        checkpoints: Checkpoints,
        best: Checkpoints | None,
        programs: Programs,
        stop: StopSignals,
        seeds: Sequence[int] | None = None,
    ):
        self.config, self.parts, self.mesh = config, parts, mesh
        self.checkpoints, self.best, self.programs, self.stop = checkpoints, best, programs, stop
        programs.require_alike(config, mesh)
        self.members = None if seeds is None else len(seeds)
        self.seed = np.asarray(config.seed if seeds is None else seeds, np.uint32)
        self.state = self.first_state()
        self.start = int(np.max(self.state.step))  # all members are at one step
        self.seconds, self.images = 0.0, 0  # of training since the last log line
        self.eval_steps = programs.once(
            ("eval", self.members), lambda: jit_eval_steps(config, parts, mesh, self.members)
        )

    def first_state(self) -> steps.TrainState:
        """The state of the latest checkpoint, or that before the first step."""
        saved = self.checkpoints.restore_latest(self.parts.abstract_state(self.mesh))
        return self.init(self.seed) if saved is None else saved

    @functools.cached_property
    def init(self) -> Callable[[np.ndarray], steps.TrainState]:
        """Makes the state of a seed before the first step."""
        return self.programs.once("init", self.jit_init)

    def jit_init(self) -> Callable[[np.ndarray], steps.TrainState]:
        """Compiles, on first use, ``seed -> state``."""
        # On a CPU LLVM spends most of a minute on the random numbers of a ResNet's many kernels; at level 1 it is a
        # tenth, and the same bits come out.
        on_cpu = self.mesh.devices.flat[0].platform == "cpu"
        return jax.jit(
            self.parts.init_state,
            out_shardings=sharding.replicated(self.mesh),
            compiler_options={"xla_backend_optimization_level": 1} if on_cpu else None,
        )

    def run(
        self,
        workdir: epath.Path,
        train_feed: feeds.TrainFeed,
        train_split: feeds.Split,
        test_split: feeds.Split,
        log: MetricsLog,
        report: Reporter,
    ) -> dict[str, float]:
        """Trains to the last step and returns the metrics of the evaluation there."""
        config, total = self.config, self.parts.total_steps
        test = None
        take_step = self.stepper(train_feed, report)
        test_feeds = self.test_feeds(train_split, test_split)
        if self.tests_after(self.start) and "test_loss" not in log.names_at_start:
            test = self.test(
                self.start, test_feeds, log, report
            )  # the run was stopped in the middle of this
            if test is None:
                raise Preempted(f"stopped in the evaluation after step {self.start} of {total}")
        for step in range(self.start + 1, total + 1):
            take_step(step)
            report.step(step)
            last = step == total
            if last or step % config.log_every == 0:
                self.require_finite(workdir, train_feed)
                self.log_interval(step, log, report)
            if self.tests_after(step):
                test = self.test(step, test_feeds, log, report)
            stopping = self.stop.requested(step)
            if last or stopping or step % config.checkpoint_every == 0:
                self.require_finite(workdir, train_feed)
                self.save(step)
            if stopping and not (last and test):
                raise Preempted(f"stopped and saved at step {step} of {total}")
        # A run that was killed between its last checkpoint and its result has only this left to do.
        test = test or self.evaluate(test_feeds)
        if test is None:
            raise Preempted(f"stopped in the last evaluation, after step {total}")
        return test

    def tests_after(self, step: int) -> bool:
        """Whether the test split is evaluated after a step."""
        return step > 0 and (step == self.parts.total_steps or step % self.config.eval_every == 0)

    def stepper(self, feed: feeds.TrainFeed, report: Reporter) -> Callable[[int], None]:
        """Returns what takes the step of a given number, counted from 1; it compiles a step for each phase."""
        parts, mesh, programs = self.parts, self.mesh, self.programs
        seed = sharding.replicate(self.seed, mesh)
        phase = train_step = None
        previous = ()

        def take(step: int) -> None:
            nonlocal phase, train_step, previous
            began = time.monotonic()
            data, order = feed.arguments(step - 1)
            if phase is not parts.phase_at(step - 1):
                phase = parts.phase_at(step - 1)
                name = ("train", phase.start_step, self.members)
                made_before = name in programs
                compile_step = partial(self.compile_step, phase, data, order, seed)
                train_step = programs.once(name, partial(self.stop.interruptible, compile_step))
                self.announce(phase, None if made_before else time.monotonic() - began, report)
                began = time.monotonic()
            self.state, metrics = train_step(self.state, data, order, seed)
            # The host stays one step ahead: the device never waits, and a signal is answered at once.
            jax.block_until_ready(previous)
            previous = metrics
            self.seconds += time.monotonic() - began
            self.images += self.config.batch_size

        return take

    def compile_step(
        self, phase: runs.Phase, data: loader.Data, order: jax.Array | None, seed: jax.Array
    ) -> jax.stages.Compiled:
        """The compiled train step of a phase, for the state as it is and a feed's arguments."""
        train_step = jit_train_step(self.config, self.parts, self.mesh, phase, self.members)
        return train_step.lower(self.state, data, order, seed).compile()

    def announce(self, phase: runs.Phase, seconds: float | None, report: Reporter) -> None:
        """Says in how many seconds a step was compiled, None for one of another seed's, and which groups it trains."""
        if seconds is None:
            report.say("took the train step that was compiled for another seed")
        else:
            report.say(f"compiled the train step in {seconds:.1f} s")
        if len(self.parts.phases) > 1:
            trained = [
                group.label for group in self.parts.groups if group.start_step <= phase.start_step
            ]
            report.say(f"from step {phase.start_step} on it trains: {', '.join(trained)}")

    def log_interval(self, step: int, log: MetricsLog, report: Reporter) -> None:
        """Logs the means since the last log line and starts the next interval."""
        began = time.monotonic()
        totals = {
            name: np.float64(total) for name, total in jax.device_get(self.state.totals).items()
        }
        self.seconds += time.monotonic() - began  # the step that was still running
        count = totals.pop("steps")
        means = {name: (total / count).tolist() for name, total in totals.items()}
        images_per_second = self.images / self.seconds
        log.write(
            step=step,
            epoch=round(step / self.parts.steps_per_epoch, 4),
            **{f"train_{name}": value for name, value in means.items()},
            learning_rate=float(self.parts.schedule(step - 1)),
            images_per_second=round(images_per_second, 1),
        )
        report.train(step, **means, images_per_second=images_per_second)
        self.seconds, self.images = 0.0, 0
        empty = jax.tree.map(np.zeros_like, jax.device_get(self.state.totals))
        self.state = self.state.replace(totals=sharding.replicate(empty, self.mesh))

    def save(self, step: int) -> None:
        """Starts a checkpoint; one that isn't finite would be of no use and push a good one out."""
        if not all_finite((self.state.params, self.state.batch_stats)):
            raise parameters_not_finite(step)
        self.best.wait()  # or a run that goes on from this one would take the best for saved
        self.checkpoints.save(step, self.state)

    def require_finite(self, workdir: epath.Path, feed: feeds.TrainFeed) -> None:
        """Raises a UserError if a step wasn't finite, and writes down which examples it was given."""
        before = int(self.state.failed_step)
        if before >= 0:
            raise step_not_finite(before + 1, feed.rows(before), workdir)

    def test_feeds(
        self, train_split: feeds.Split, test_split: feeds.Split
    ) -> dict[str, feeds.EvalFeed]:
        """What each evaluation shows: the test split, the part of it under PGD, what the training set held out."""
        defense, held_out = self.config.defense, self.parts.validation_examples
        parts = {"test": (test_split, {})}
        if "eval_pgd" in self.eval_steps:
            parts["test_pgd"] = (test_split, {"examples": defense.pgd_examples})
        if held_out:
            parts["validation"] = (
                train_split,
                {"start": self.parts.train_examples, "examples": held_out},
            )
        return {
            name: split.for_evaluation(batch_size=self.config.batch_size, mesh=self.mesh, **part)
            for name, (split, part) in parts.items()
        }

    def test(
        self, step: int, test_feeds: Mapping[str, feeds.EvalFeed], log: MetricsLog, report: Reporter
    ) -> dict[str, float] | None:
        """Evaluates and logs; None, and nothing logged, if a signal came in the middle."""
        metrics = self.evaluate(test_feeds)
        if metrics is not None:
            score = f"validation_{self.parts.task.score}"
            if score in metrics and metrics[score] > log.largest(score):
                self.best.save(step, self.state)
            log.write(step=step, **metrics)
            report.test(step, **metrics)
        return metrics

    def evaluate(self, test_feeds: Mapping[str, feeds.EvalFeed]) -> dict[str, float] | None:
        """``test_loss``, ``test_accuracy``, ``validation_loss`` and the like; None if a signal came in the middle."""
        metrics = {}
        for name, feed in test_feeds.items():
            eval_step = self.eval_steps["eval_pgd" if name == "test_pgd" else "eval"]
            try:
                means = eval_loop.evaluate_split(
                    eval_step, self.state.variables, feed, stop=lambda: self.stop.signalled
                )
            except eval_loop.Stopped:
                return None
            metrics |= {f"{name}_{metric}": mean for metric, mean in means.items()}
        metrics.pop("test_pgd_loss", None)
        return metrics


@jax.jit
def all_finite(tree: Any) -> jax.Array:
    """[] bool: whether every number of a tree is finite."""
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()


def parameters_not_finite(step: int) -> UserError:
    """The error of a run whose parameters aren't finite after a step."""
    return UserError(f"step {step}: the parameters aren't finite; {_NOT_FINITE}")


def step_not_finite(step: int, rows: np.ndarray, workdir: epath.Path) -> UserError:
    """The error of a run whose loss or gradient wasn't finite in a step; writes down which examples that was given."""
    if distributed.is_primary():
        failed = {"step": step, "examples": rows.tolist()}
        artifacts.write_atomically(workdir / artifacts.NOT_FINITE, json.dumps(failed) + "\n")
    return UserError(
        f"step {step}: the loss or a gradient isn't finite; {artifacts.NOT_FINITE} lists its examples; {_NOT_FINITE}"
    )
