"""Training loop: ``train(config, workdir)``, for the command line, notebooks and tests."""

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import jax
import numpy as np
from etils import epath

from randmix.config import Config
from randmix.data import feeds, loader
from randmix.runtime import distributed, host, sharding
from randmix.runtime.preemption import Preempted, StopSignals
from randmix.runtime.progress import Reporter
from randmix.training import evaluation, profiling, runs, skipped, steps
from randmix.training.compiled import (
    Programs,
    TrainStep,
    jit_eval_steps,
    jit_train_step,
    memory_bytes,
)
from randmix.training.members import (
    Member,
    Session,
    by_member,
    drop_failed,
    log_interval,
    open_log,
    open_member,
    open_workdir,
    record_evaluation,
    save,
)
from randmix.workdir import artifacts


def train(
    config: Config,
    workdir: epath.PathLike,
    *,
    devices: list[jax.Device] | None = None,
    programs: Programs | None = None,
    context: artifacts.Context = artifacts.Context(),
    profile: range = range(0),
) -> dict[str, Any]:
    """Trains the run that ``config`` describes, or resumes it from ``workdir``, and evaluates it.

    With several processes (``distributed.start``), each calls this with the same arguments; process
    0 writes the files.

    Args:
        config: see ``randmix.config``.
        workdir: the run's folder; created if it doesn't exist.
        devices: the devices to train on; by default all, on all hosts.
        programs: a cache of compiled programs to share between runs that differ only in their seed.
        context: where the run comes from.
        profile: consecutive steps to trace, from 1; see ``profiling.Trace``.

    Returns:
        The contents of ``result.json``. A finished workdir returns its result without training.

    Raises:
        UserError: a mistake in the config or the workdir, raised before anything is compiled; or a
            loss, gradient or parameter that isn't finite.
        Preempted: a signal was received; the state is saved.
    """
    began, workdir = time.monotonic(), epath.Path(workdir)
    with StopSignals() as stop:
        with distributed.shared_errors():
            runs.find_dataset(config)  # before processes wait in `assemble` for a filters' source
        with distributed.shared_errors():
            parts = runs.assemble(config, workdir)
            profiling.check(profile, parts.loop.total_steps, workdir)
            session = Session.build(parts, devices, programs, stop, context, profile)
            splits = parts.data.open()
        with open_workdir(parts, workdir) as result:
            if result is not None:
                print(
                    f"{workdir}: finished before, at step {result['step']}; nothing to do",
                    flush=True,
                )
                if profile:
                    print("--profile: no steps are left, so nothing is traced", flush=True)
                return result
            session.require_no_signal()
            known = announce(parts, splits)
            with open_member(parts, workdir) as member:
                (metrics,) = fit([member], splits, session)
            result = summarize(parts, metrics, time.monotonic() - began, session) | known
            if leaves_out(parts):
                result["skipped"] = skipped.counts(workdir)
            if distributed.is_primary():
                artifacts.write_result(workdir, result)
    return result


def announce(parts: runs.Parts, splits: tuple[feeds.Split, feeds.Split]) -> dict[str, Any]:
    """Prints what is known of a run before it is trained; returns what its task knows."""
    task = parts.step.task
    if distributed.is_primary():
        for note in parts.record.notes:
            print(note, flush=True)
        _warn_of_lacking_classes(parts, splits[0])
    if task.prospects is None:
        return {}
    known = task.prospects(parts.step.model, *splits, parts.data.train_examples)
    if distributed.is_primary():
        print(known.text, flush=True)
        if known.warning is not None:
            logging.getLogger(__name__).warning("%s", known.warning)
    return {task.name: dict(known.values)}


def _warn_of_lacking_classes(parts: runs.Parts, train: feeds.Split) -> None:
    """Says if a part of the training set lacks classes, as the first part of a sorted set does."""
    if parts.data.dataset.streamed:
        return  # TFDS mixed its records
    used, labels = parts.data.train_examples, train.arrays()["label"]
    if lacking := len(np.setdiff1d(labels, labels[:used])):
        logging.getLogger(__name__).warning(
            "the %d training examples of %s that are trained on, the first ones, lack %d of its "
            "classes; if its arrays are sorted by class, mix them and make the set again",
            used,
            parts.data.dataset.name,
            lacking,
        )


def fit(
    members: Sequence[Member], splits: tuple[feeds.Split, feeds.Split], session: Session
) -> list[dict[str, float]]:
    """Trains members together, from their latest common state to the last step.

    A member whose loss or parameters aren't finite drops out; its slot in the program keeps
    computing, with the results discarded.

    Args:
        members: one run, or the runs of an ensemble.
        splits: the training and the test split.
        session: what the members share.

    Returns:
        The metrics of each member's evaluation at the last step.

    Raises:
        UserError: no member is left.
        Preempted: a signal was received; all members are saved at the same step.
    """
    parts, stop = members[0].parts, session.stop
    options, total = parts.loop, parts.loop.total_steps
    session.programs.require_alike(parts, session.mesh)
    state = first_state(members, session)
    start = int(np.max(state.step))  # all members are at the same step
    seeds = np.asarray([member.parts.seed for member in members], np.uint32)
    seeds = seeds[0] if session.size is None else seeds
    seed = sharding.replicate(seeds, session.mesh)
    passes = evaluation_passes(parts, splits, session)
    with contextlib.ExitStack() as stack:
        for member in members:
            stack.enter_context(open_log(member, start, session.context))
        report = stack.enter_context(Reporter(total, start))
        if session.size is not None:
            report.say(f"{len(members)} seeds together from step {start}; showing their means")
        elif start:
            report.say(f"{members[0].workdir}: resuming from step {start}")
        trace = profiling.Trace(session.profile, start, members[0].workdir, report.say)
        stack.enter_context(trace)
        feed = splits[0].for_training(
            seed=seeds,
            batch_size=parts.step.batch_size,
            total_steps=total,
            examples=parts.data.train_examples,
            mesh=session.mesh,
        )
        stack.enter_context(contextlib.closing(feed))
        left_out = skipped.Skipped(
            members[0].workdir,
            dict(zip(("train", "test"), splits, strict=True)),
            start,
            enabled=leaves_out(parts),
        )

        test, phase, train_step = None, None, None
        previous = ()
        seconds, images = 0.0, 0  # of training, since the last log line
        logged = all("test_loss" in member.log.names_at_start for member in members)
        if options.evaluates_after(start) and not logged:
            # The run was stopped during this evaluation.
            test = evaluate(state, passes, session)
            if test is None:
                raise Preempted(f"stopped in the evaluation after step {start} of {total}")
            counts = left_out.collect(start)
            record_evaluation(members, start, state, test, session, report, counts)
        for step in range(start + 1, total + 1):
            if phase is parts.phase_at(step - 1):
                trace.begin(step)
            began = time.monotonic()
            data, order = feed.arguments(step - 1)
            if phase is not parts.phase_at(step - 1):
                phase = parts.phase_at(step - 1)
                train_step = compile_step(parts, phase, (state, data, order, seed), session, report)
                trace.begin(step)  # after the compilation, beside which a step would be invisible
                began = time.monotonic()
            assert train_step is not None
            state, metrics = train_step(state, data, order, seed)
            # The host stays one step ahead, so the device never waits and a signal acts at once.
            # What is logged is summed in the state.
            jax.block_until_ready(previous)
            previous = metrics
            seconds += time.monotonic() - began
            images += parts.step.batch_size
            trace.end(step, metrics)
            report.step(step)
            last = step == total
            if last or step % options.log_every == 0:
                drop_failed(members, state, feed)
                began = time.monotonic()
                totals = jax.device_get(state.totals)  # waits for the step
                seconds += time.monotonic() - began
                counts = left_out.collect(step)
                log_interval(members, step, totals, images / seconds, report, counts)
                empty = jax.tree.map(np.zeros_like, totals)
                state = state.replace(totals=sharding.replicate(empty, session.mesh))
                seconds, images = 0.0, 0
            if options.evaluates_after(step):
                drop_failed(members, state, feed)
                test = evaluate(state, passes, session)
                if test is not None:
                    counts = left_out.collect(step)
                    record_evaluation(members, step, state, test, session, report, counts)
            stopping = stop.requested(step)
            if last or stopping or step % options.checkpoint_every == 0:
                drop_failed(members, state, feed)
                left_out.collect(step)
                save(members, step, state, session)
            if stopping and not (last and test):
                raise Preempted(f"stopped and saved at step {step} of {total}")
        # For a run that was killed between its last checkpoint and its result, only this is left.
        test = test or evaluate(state, passes, session)
        if test is None:
            raise Preempted(f"stopped in the last evaluation, after step {total}")
        left_out.collect(total)
        return test


def leaves_out(parts: runs.Parts) -> bool:
    """Whether a run leaves out damaged photographs rather than stop at one."""
    return parts.data.dataset.streamed and parts.data.reading.corrupt == "skip"


def first_state(members: Sequence[Member], session: Session) -> steps.TrainState:
    """Returns the state of the latest checkpoints, or the state before the first step."""
    parts, mesh = members[0].parts, session.mesh
    abstract_state = parts.abstract_state(mesh)
    saved = [member.checkpoints.restore_latest(abstract_state) for member in members]
    if all(state is not None for state in saved):
        return session.stack(saved)
    # The single run's program also for an ensemble, so that initial values are the same bits.
    init = session.programs.once("init", lambda: jit_init(parts, mesh))
    return session.stop.interruptible(
        lambda: session.stack([init(np.uint32(member.parts.seed)) for member in members])
    )


def jit_init(parts: runs.Parts, mesh: jax.sharding.Mesh) -> Any:
    """Jits ``seed -> state``, for the state before the first step."""
    # On a CPU, LLVM spends most of a minute on the random numbers of a ResNet's many kernels.
    # Level 1 takes a tenth of that and produces the same bits; level 0 takes less, but doesn't.
    lower = mesh.devices.flat[0].platform == "cpu" and not host.compiles_quickly()
    return jax.jit(
        parts.init_state,
        out_shardings=sharding.replicated(mesh),
        compiler_options={"xla_backend_optimization_level": 1} if lower else None,
    )


def compile_step(
    parts: runs.Parts,
    phase: runs.Phase,
    arguments: tuple[steps.TrainState, loader.Data, jax.Array | None, jax.Array],
    session: Session,
    report: Reporter,
) -> TrainStep:
    """Compiles the train step of a phase for its first arguments, unless another seed has done so.

    Reports the time that it took, and what is trained if there are several phases.
    """
    name, began = ("train", phase.start_step, session.size), time.monotonic()

    def compiled() -> TrainStep:
        train_step = jit_train_step(parts.step, phase, session.mesh, session.size)
        program = train_step.lower(*arguments).compile()
        if host.keeps_memory() and host.give_back(needed := memory_bytes(program)):
            report.say(f"the step needs {needed / 2**30:.1f} GiB: malloc returns large blocks")
        return program

    made_before = name in session.programs
    train_step = session.programs.once(name, lambda: session.stop.interruptible(compiled))
    if made_before:
        report.say("reusing the train step compiled for another seed")
    else:
        report.say(f"compiled the train step in {time.monotonic() - began:.1f} s")
    if len(parts.step.phases) > 1:
        trained = [g.label for g in parts.record.groups if g.start_step <= phase.start_step]
        report.say(f"training from step {phase.start_step}: {', '.join(trained)}")
    return train_step


def evaluation_passes(
    parts: runs.Parts, splits: tuple[feeds.Split, feeds.Split], session: Session
) -> dict[str, tuple[evaluation.EvalStep, feeds.EvalFeed]]:
    """Returns the passes of an evaluation: test split, its part for PGD, and held-out examples."""
    eval_steps = session.programs.once(
        ("eval", session.size),
        lambda: jit_eval_steps(parts.step, session.mesh, session.size),
    )
    data, (train_split, test_split) = parts.data, splits
    passes = {"test": (eval_steps["eval"], test_split, {})}
    if "eval_pgd" in eval_steps:
        part = {"examples": data.pgd_examples}
        passes["test_pgd"] = (eval_steps["eval_pgd"], test_split, part)
    if data.validation_examples:
        part = {"start": data.train_examples, "examples": data.validation_examples}
        passes["validation"] = (eval_steps["eval"], train_split, part)
    return {
        name: (
            eval_step,
            split.for_evaluation(batch_size=parts.step.micro_batch_size, mesh=session.mesh, **part),
        )
        for name, (eval_step, split, part) in passes.items()
    }


def evaluate(
    state: steps.TrainState,
    passes: Mapping[str, tuple[evaluation.EvalStep, feeds.EvalFeed]],
    session: Session,
) -> list[dict[str, float]] | None:
    """Returns each member's ``test_loss``, ``test_ema_loss`` and so on; None after a signal."""
    weights = {"": state.variables}
    if isinstance(state, steps.AveragedState):
        weights["ema_"] = state.averaged_variables
    metrics = {}
    for (name, (eval_step, feed)), (kind, variables) in product(passes.items(), weights.items()):
        try:
            means = evaluation.evaluate_split(
                eval_step, variables, feed, stop=lambda: session.stop.signalled
            )
        except evaluation.Stopped:
            return None
        metrics |= {f"{name}_{kind}{metric}": mean for metric, mean in means.items()}
    for kind in weights:
        metrics.pop(f"test_pgd_{kind}loss", None)
    return by_member(metrics, session.size or 1)


def summarize(
    parts: runs.Parts, metrics: Mapping[str, float], seconds: float, session: Session
) -> dict[str, Any]:
    """Returns the contents of ``result.json``.

    Args:
        parts: the run's parts.
        metrics: the metrics of the evaluation at the last step.
        seconds: wall time of the call.
        session: the devices of the run, and where it comes from.
    """
    summary = parts.record.summary
    return {
        "config": {"name": session.context.name, "changed": dict(parts.record.changed)},
        "mode": parts.record.mode,
        "metrics": metrics,
        "parameters": {"trainable": summary.trainable, "frozen": summary.frozen},
        "step": parts.loop.total_steps,
        "seed": parts.seed,
        "wall_seconds": round(seconds, 2),
        **artifacts.provenance(list(session.mesh.devices.flat)),
    }
