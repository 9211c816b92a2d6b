"""Minutes that a sweep takes on this machine, from a few steps of a few of its runs."""

import contextlib
import dataclasses
import functools
import itertools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from randmix.config import Config
from randmix.experiments.plan import Group, PlannedRun
from randmix.runtime import sharding
from randmix.runtime.preemption import StopSignals
from randmix.training import loop, runs, steps
from randmix.training.compiled import jit_train_step
from randmix.training.evaluation import EvalStep
from randmix.training.members import Session
from randmix.workdir.artifacts import Context

BUDGET = 60.0  # seconds; once they are over, no further group is timed
_SECONDS, _MOST = 2.0, 100  # how long a program is timed, and its calls at most


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds that a run takes on this machine.

    Attributes:
        setup: reading the data, compiling, and the initial values: once for all of its seeds.
        step: a training step.
        evaluation: an evaluation of the test split and of the held-out examples.
    """

    setup: float
    step: float
    evaluation: float


def minutes(groups: Sequence[Group], finished: Collection[str]) -> dict[str, float]:
    """Estimates the minutes of each run that isn't finished: setup, training and evaluation.

    Groups are timed for about a minute: the costliest of each model and kind of training, then the
    second of each, and so on. The others are estimated from the most similar one, by their cost.

    Args:
        groups: the runs.
        finished: the names of those that are finished.

    Returns:
        A run's name -> minutes. The first run of a group includes the group's setup.
    """
    unfinished = [[run for run in group if run.name not in finished] for group in groups]
    left = [group for group in unfinished if group]
    timed: list[tuple[PlannedRun, Timing]] = []
    began = time.monotonic()
    for run in _representatives(left):
        if timed and time.monotonic() - began > BUDGET:
            break
        timing = measure(run.config)
        timed.append((run, timing))
        print(
            f"timed {run.title}: {timing.setup:.1f} s to compile and start, "
            f"{1000 * timing.step:,.1f} ms a step, {timing.evaluation:.2f} s an evaluation",
            flush=True,
        )
    print(f"timed {len(timed)} of {len(left)} settings in {time.monotonic() - began:.0f} s\n")
    return {
        run.name: _seconds(run, *_most_similar(run, timed), first=run is group[0]) / 60
        for group in left
        for run in group
    }


def _representatives(groups: Sequence[Sequence[PlannedRun]]) -> Iterator[PlannedRun]:
    """Yields a run of each group: of the costliest of each kind, then of the second of each."""

    def work(group: Sequence[PlannedRun]) -> float:
        return sum(run.cost for run in group)

    kinds = defaultdict(list)
    for group in sorted(groups, key=work, reverse=True):
        kinds[_kind(group[0])].append(group)
    ordered = sorted(kinds.values(), key=lambda kind: sum(map(work, kind)), reverse=True)
    for rank in itertools.zip_longest(*ordered, fillvalue=()):
        yield from (group[0] for group in rank if group)


def _kind(run: PlannedRun) -> tuple[Any, ...]:
    """The model's name, whether training is adversarial, and what is trained."""
    config = run.config
    return config.model.name, config.defense.epsilon > 0, runs.source(config)


def _most_similar(
    run: PlannedRun, timed: Sequence[tuple[PlannedRun, Timing]]
) -> tuple[PlannedRun, Timing]:
    """The timed run with the same model, kind, data and cost per step, or as many of these."""

    def similarity(one: tuple[PlannedRun, Timing]) -> tuple[Any, ...]:
        other, _ = one
        same = [a == b for a, b in zip(_kind(run), _kind(other), strict=True)]
        same_data = run.config.data.name == other.config.data.name
        return *same, same_data, -abs(math.log(_ratio(run, other)))

    return max(timed, key=similarity)


def _ratio(run: PlannedRun, other: PlannedRun) -> float:
    """The multiply-adds of a run's step divided by those of another's."""
    return run.cost / run.steps / (other.cost / other.steps)


def _seconds(run: PlannedRun, other: PlannedRun, timing: Timing, *, first: bool) -> float:
    """A run's seconds, by the timing of another; both evaluate as many images."""
    ratio = _ratio(run, other)
    step = timing.step * ratio
    evaluation = timing.evaluation * ratio * other.config.batch_size / run.config.batch_size
    evaluations = math.ceil(run.steps / run.config.eval_every)
    return timing.setup * first + run.steps * step + evaluations * evaluation


def measure(config: Config) -> Timing:
    """Times a run's own programs on its own data, without a workdir."""
    began = time.monotonic()
    parts = runs.assemble(config)
    session = Session.build(parts, None, None, StopSignals(), Context())
    splits, mesh = parts.data.open(), session.mesh
    seed = sharding.replicate(np.uint32(parts.seed), mesh)
    state = loop.jit_init(parts, mesh)(np.uint32(parts.seed))
    feed = splits[0].for_training(
        seed=np.asarray(parts.seed, np.uint32),
        batch_size=parts.step.batch_size,
        total_steps=_MOST + 1,
        examples=parts.data.train_examples,
        mesh=mesh,
    )
    # In its last phase, a run trains all of its groups.
    train_step = jit_train_step(parts.step, parts.step.phases[-1], mesh)

    def train(i: int) -> Any:
        nonlocal state
        state, metrics = train_step(state, *feed.arguments(i), seed)
        return metrics

    with contextlib.closing(feed):
        step, timed = _time(train)
    examples = {
        "test": splits[1].examples(),
        "test_pgd": splits[1].examples(parts.data.pgd_examples),
        "validation": parts.data.validation_examples,
    }
    evaluation = 0.0
    for name, (eval_step, batches) in loop.evaluation_passes(parts, splits, session).items():
        endless = itertools.chain.from_iterable(itertools.repeat(batches))
        one = functools.partial(_evaluate, eval_step, state.variables, endless)
        batch, seconds = _time(one)
        evaluation += batch * math.ceil(examples[name] / parts.step.micro_batch_size)
        timed += seconds
    if isinstance(state, steps.AveragedState):  # both the weights and their average
        evaluation *= 2
    return Timing(time.monotonic() - began - timed, step, evaluation)


def _evaluate(eval_step: EvalStep, variables: Any, batches: Iterator[Any], i: int) -> Any:
    return eval_step(variables, next(batches), 0)


def _time(call: Callable[[int], Any]) -> tuple[float, float]:
    """The mean seconds of calls 1, 2, ..., and the seconds of all; call 0 compiles."""
    previous, calls = jax.block_until_ready(call(0)), 0
    began = time.monotonic()
    while not calls or (calls < _MOST and time.monotonic() - began < _SECONDS):
        calls += 1
        current = call(calls)
        jax.block_until_ready(previous)  # the host stays one call ahead, as in training
        previous = current
    jax.block_until_ready(previous)
    seconds = time.monotonic() - began
    return seconds / calls, seconds
