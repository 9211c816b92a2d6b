"""Training loop: ``train(config, workdir)``, for the command line, notebooks and tests."""

import contextlib
import functools
import io
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from randmix.data import catalog, feeds, loader
from randmix.errors import UserError
from randmix.runtime import distributed, durable, sharding
from randmix.runtime.preemption import Preempted, StopSignals
from randmix.runtime.progress import Reporter
from randmix.training import evaluation as eval_loop
from randmix.training import runs, steps
from randmix.training.compiled import Programs, jit_eval_steps, jit_train_step
from randmix.workdir import artifacts
from randmix.workdir.checkpoints import BEST, Checkpoints
from randmix.workdir.metrics_log import MetricsLog
from randmix.workdir.trackers import open_trackers

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
    """Trains the run that ``config`` describes, or resumes it from ``workdir``, and evaluates it.

    With several processes (``distributed.start``), each calls this with the same arguments; process
    0 writes the files.

    Args:
        config: see ``randmix.config``.
        workdir: the run's folder; created if it doesn't exist.
        devices: the devices to train on; by default all, on all hosts.
        programs: a cache of compiled programs to share between runs that differ only in their seed.

    Returns:
        The contents of ``result.json``. A finished workdir returns its result without training.

    Raises:
        UserError: a mistake in the config or the workdir, raised before anything is compiled; or a
            loss, gradient or parameter that isn't finite.
        Preempted: a signal was received; the state is saved.
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
    data = catalog.describe(parts.dataset, config.data.data_dir)
    with artifacts.open_workdir(workdir, config, parts.description, data) as result:
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
    """Trains in a locked workdir; ``began`` is the `time.monotonic` of the call to ``train``."""
    primary = distributed.is_primary()
    if primary:
        save_constants(parts, workdir)
    if stop.signalled:
        raise Preempted("stopped before the first step, with nothing new to save", saved=False)
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
                report.say(f"{workdir}: resuming from step {loop.start}")
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
    if primary:
        artifacts.write_result(workdir, result)
    return result


def save_constants(parts: runs.Parts, workdir: epath.Path) -> None:
    """Writes the task's constants, arrays that are the same for all examples, each as NAME.npy."""
    for name, array in parts.task.constants.items():
        content = io.BytesIO()
        np.save(content, array)
        durable.write(workdir / f"{name}.npy", content.getvalue())


def summarize(
    config: ConfigDict,
    parts: runs.Parts,
    metrics: Mapping[str, float],
    seconds: float,
    devices: list[jax.Device],
) -> dict[str, Any]:
    """Returns the contents of ``result.json``.

    Args:
        config: the run's config.
        parts: the run's parts.
        metrics: the metrics of the evaluation at the last step.
        seconds: wall time of the call.
        devices: the devices of the run.
    """
    return {
        "mode": parts.mode,
        "metrics": metrics,
        "parameters": {"trainable": parts.summary.trainable, "frozen": parts.summary.frozen},
        "step": parts.total_steps,
        "seed": config.seed,
        "wall_seconds": round(seconds, 2),
        **artifacts.provenance(devices),
    }


def open_splits(config: ConfigDict, parts: runs.Parts) -> tuple[feeds.Split, feeds.Split]:
    """Opens the training and the test split, in memory if the data set is of a kind that fits."""
    reading = feeds.reading(config.data)
    train_split, test_split = (
        feeds.Split(parts.dataset, split, config.data.data_dir, reading)
        for split in ("train", "test")
    )
    return train_split, test_split


class Loop:
    """The main part of ``train``, between its checks and its result.

    An ensemble uses the same loop (``ensemble.py``). Its arrays have a leading axis of ``members``,
    one for each of ``seeds``, and the checkpoints, feed, log and report that it passes in split
    them by member. It has no ``best``.
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
        self.start = int(np.max(self.state.step))  # all members are at the same step
        self.best_score = -math.inf if best is None else best.best_score()
        self.seconds, self.images = 0.0, 0  # of training, since the last log line
        self.eval_steps = programs.once(
            ("eval", self.members), lambda: jit_eval_steps(config, parts, mesh, self.members)
        )

    def first_state(self) -> steps.TrainState:
        """Returns the state of the latest checkpoint, or the state before the first step."""
        saved = self.checkpoints.restore_latest(self.parts.abstract_state(self.mesh))
        if saved is not None:
            return saved
        return self.stop.interruptible(lambda: self.init(self.seed))

    @functools.cached_property
    def init(self) -> Callable[[np.ndarray], steps.TrainState]:
        """The compiled function from a seed to the state before the first step."""
        return self.programs.once("init", self.jit_init)

    def jit_init(self) -> Callable[[np.ndarray], steps.TrainState]:
        """Jits ``seed -> state``."""
        # On a CPU, LLVM spends most of a minute on the random numbers of a ResNet's many kernels.
        # Level 1 takes a tenth of that and produces the same bits.
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
        """Trains to the last step and returns the metrics of the evaluation there.

        Raises:
            UserError: a loss, gradient or parameter isn't finite.
            Preempted: a signal was received.
        """
        config, total = self.config, self.parts.total_steps
        test = None
        take_step = self.stepper(train_feed, report)
        test_feeds = self.test_feeds(train_split, test_split)
        if self.tests_after(self.start) and "test_loss" not in log.names_at_start:
            # The run was stopped during this evaluation.
            test = self.test(self.start, test_feeds, log, report)
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
                self.save(step, log)
            if stopping and not (last and test):
                raise Preempted(f"stopped and saved at step {step} of {total}")
        # For a run that was killed between its last checkpoint and its result, only this is left.
        test = test or self.evaluate(test_feeds)
        if test is None:
            raise Preempted(f"stopped in the last evaluation, after step {total}")
        return test

    def tests_after(self, step: int) -> bool:
        """Whether the test split is evaluated after a step."""
        return step > 0 and (step == self.parts.total_steps or step % self.config.eval_every == 0)

    def stepper(self, feed: feeds.TrainFeed, report: Reporter) -> Callable[[int], None]:
        """Returns a function that takes step n, counted from 1, and compiles a step per phase."""
        parts, mesh, programs = self.parts, self.mesh, self.programs
        seed = sharding.replicate(self.seed, mesh)
        phase: runs.Phase | None = None
        train_step: Callable[..., Any] | None = None
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
            assert train_step is not None
            self.state, metrics = train_step(self.state, data, order, seed)
            # The host stays one step ahead, so the device never waits and a signal acts at once.
            jax.block_until_ready(previous)
            previous = metrics
            self.seconds += time.monotonic() - began
            self.images += self.config.batch_size

        return take

    def compile_step(
        self, phase: runs.Phase, data: loader.Data, order: jax.Array | None, seed: jax.Array
    ) -> jax.stages.Compiled:
        """Compiles the train step of a phase for the current state and a feed's arguments."""
        train_step = jit_train_step(self.config, self.parts, self.mesh, phase, self.members)
        return train_step.lower(self.state, data, order, seed).compile()

    def announce(self, phase: runs.Phase, seconds: float | None, report: Reporter) -> None:
        """Reports a phase's compile time in seconds, None for a shared program, and its groups."""
        if seconds is None:
            report.say("reusing the train step compiled for another seed")
        else:
            report.say(f"compiled the train step in {seconds:.1f} s")
        if len(self.parts.phases) > 1:
            trained = [
                group.label for group in self.parts.groups if group.start_step <= phase.start_step
            ]
            report.say(f"training from step {phase.start_step}: {', '.join(trained)}")

    def log_interval(self, step: int, log: MetricsLog, report: Reporter) -> None:
        """Logs the means since the last log line and starts a new interval."""
        began = time.monotonic()
        totals = {
            name: np.float64(total) for name, total in jax.device_get(self.state.totals).items()
        }
        self.seconds += time.monotonic() - began  # device_get waited for the last step
        count = totals.pop("steps")
        means = {name: (total / count).tolist() for name, total in totals.items()}
        images_per_second = self.images / self.seconds
        log.write(
            step=step,
            epoch=round(step / self.parts.steps_per_epoch, 4),
            **{f"train_{name}": value for name, value in means.items()},
            # Optax's type of a schedule includes complex numbers.
            learning_rate=float(cast(jax.Array, self.parts.schedule(step - 1))),
            images_per_second=round(images_per_second, 1),
        )
        report.train(step, **means, images_per_second=images_per_second)
        self.seconds, self.images = 0.0, 0
        empty = jax.tree.map(np.zeros_like, jax.device_get(self.state.totals))
        self.state = self.state.replace(totals=sharding.replicate(empty, self.mesh))

    def save(self, step: int, log: MetricsLog) -> None:
        """Starts a checkpoint; a non-finite one is refused, since it would displace a good one."""
        if not all_finite((self.state.params, self.state.batch_stats)):
            raise parameters_not_finite(step)
        # A run that resumes from this checkpoint expects the log up to it, and the best one.
        log.flush()
        assert self.best is not None
        self.best.wait()
        self.checkpoints.save(step, self.state)

    def require_finite(self, workdir: epath.Path, feed: feeds.TrainFeed) -> None:
        """Raises a UserError if a step wasn't finite, and records which examples it was given."""
        before = int(self.state.failed_step)
        if before >= 0:
            raise step_not_finite(before + 1, feed.rows(before), workdir)

    def test_feeds(
        self, train_split: feeds.Split, test_split: feeds.Split
    ) -> dict[str, feeds.EvalFeed]:
        """Returns the feed of each evaluation: test split, its part for PGD, held-out examples."""
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
        """Evaluates and logs; returns None without logging if a signal was received."""
        metrics = self.evaluate(test_feeds)
        if metrics is not None:
            score = metrics.get(f"validation_{self.parts.task.score}", -math.inf)
            if score > self.best_score:
                assert self.best is not None
                self.best.save(step, self.state, score=score)
                self.best_score = score
            log.write(step=step, **metrics)
            report.test(step, **metrics)
        return metrics

    def evaluate(self, test_feeds: Mapping[str, feeds.EvalFeed]) -> dict[str, float] | None:
        """Returns ``test_loss``, ``validation_loss`` and so on; None if a signal was received."""
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
    """Whether every number of a tree is finite, [] bool."""
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()


def parameters_not_finite(step: int) -> UserError:
    """Returns the error for parameters that aren't finite after a step."""
    return UserError(f"step {step}: the parameters aren't finite; {_NOT_FINITE}")


def step_not_finite(step: int, rows: np.ndarray, workdir: epath.Path) -> UserError:
    """Returns the error for a non-finite loss or gradient, and records the step's examples."""
    if distributed.is_primary():
        failed = {"step": step, "examples": rows.tolist()}
        durable.write(workdir / artifacts.NOT_FINITE, json.dumps(failed) + "\n")
    return UserError(
        f"step {step}: the loss or a gradient isn't finite; {artifacts.NOT_FINITE} lists its "
        f"examples; {_NOT_FINITE}"
    )
