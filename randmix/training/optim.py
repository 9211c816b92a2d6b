"""Learning-rate schedules, and the optimizer for a label tree."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from randmix.errors import check_choice
from randmix.training.groups import FREEZE, Group


@dataclasses.dataclass(frozen=True)
class ScheduleOptions:
    """The keys of ``config.schedule``; `randmix.config` says what they mean."""

    name: str
    points: tuple[tuple[float, float], ...]
    boundaries: tuple[float, ...]
    factor: float
    warmup: float


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
    """The keys of ``config.optimizer``; `randmix.config` says what they mean."""

    name: str
    learning_rate: float
    weight_decay: float
    clip_norm: float
    b1: float
    b2: float
    eps: float
    momentum: float
    nesterov: bool


def build_schedule(options: ScheduleOptions, total_steps: int, peak: float) -> optax.Schedule:
    """Returns the learning rate as a function of the number of steps taken.

    Args:
        options: the schedule's shape.
        total_steps: the length of the run.
        peak: the largest learning rate.

    Raises:
        UserError: an unknown schedule.
    """
    check_choice("config.schedule.name", options.name, ("linear", "step", "cosine", "constant"))
    if options.name == "linear":
        return _linear_schedule(options.points, peak, total_steps)
    if options.name == "step":
        # In a short run, several boundaries may fall on one step.
        steps = Counter(round(share * total_steps) for share in options.boundaries)
        factor = float(options.factor)
        factors = {step: math.prod([factor] * count) for step, count in steps.items()}
        return optax.piecewise_constant_schedule(peak, factors)
    if options.name == "cosine":
        # optax requires a step of decay.
        warmup = min(round(options.warmup * total_steps), total_steps - 1)
        return optax.warmup_cosine_decay_schedule(
            0.0 if warmup else peak, peak, warmup, total_steps
        )
    return optax.constant_schedule(peak)


def _linear_schedule(
    points: tuple[tuple[float, float], ...], peak: float, total_steps: int
) -> optax.Schedule:
    steps = jnp.asarray([share * total_steps for share, _ in points])
    rates = jnp.asarray([multiple * peak for _, multiple in points])
    return lambda step: jnp.interp(jnp.asarray(step, jnp.float32), steps, rates)


def build_optimizer(
    options: OptimizerOptions,
    schedule: Callable[[float], optax.Schedule],
    labels: Any,
    groups: tuple[Group, ...],
    step: int = 0,
) -> optax.GradientTransformation:
    """Returns the optimizer of all groups in the phase after ``step`` steps.

    The state has the same structure in every phase; that of a group yet to start stays at its
    initial value. Frozen leaves have neither state nor updates. The global gradient norm is clipped
    once, over all trainable leaves, before they are partitioned by label; frozen leaves have no
    gradient (None) and don't contribute to it.

    Args:
        options: the run's optimizer; a group may have other values.
        schedule: from the largest learning rate to the run's schedule.
        labels: the label of every parameter: its group's, or "freeze".
        groups: the trained groups.
        step: the number of steps taken.
    """
    transforms: dict[Hashable, optax.GradientTransformation] = {FREEZE: optax.set_to_zero()}
    for group in groups:
        descent = _descent(options, schedule, group)
        transforms[group.label] = _paused(descent) if group.start_step > step else descent
    optimizer = optax.multi_transform(transforms, labels)
    if options.clip_norm > 0:
        optimizer = optax.chain(optax.clip_by_global_norm(options.clip_norm), optimizer)
    return optimizer


def _descent(
    options: OptimizerOptions, schedule: Callable[[float], optax.Schedule], group: Group
) -> optax.GradientTransformation:
    options = dataclasses.replace(options, **group.optimizer)
    check_choice("config.optimizer.name", options.name, _OPTIMIZERS)
    of_run = schedule(options.learning_rate * group.lr_scale)

    def learning_rate(count: ArrayLike) -> ArrayLike:
        # A group counts its own steps; the schedule counts the run's.
        return of_run(count + group.start_step)

    return _OPTIMIZERS[options.name](options, learning_rate)


def _adamw(
    options: OptimizerOptions, learning_rate: optax.Schedule
) -> optax.GradientTransformation:
    return optax.adamw(
        learning_rate,
        b1=options.b1,
        b2=options.b2,
        eps=options.eps,
        weight_decay=options.weight_decay,
        mask=kernels_only,
    )


def _sgd(options: OptimizerOptions, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.chain(
        optax.add_decayed_weights(options.weight_decay, kernels_only),
        optax.sgd(learning_rate, options.momentum or None, nesterov=options.nesterov),
    )


_OPTIMIZERS = {"adamw": _adamw, "sgd": _sgd}


def _paused(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns a transform that keeps the state of ``inner``; paused leaves have no gradients."""
    return optax.GradientTransformation(
        inner.init, lambda updates, state, params=None: (updates, state)
    )


def kernels_only(params: Any) -> Any:
    """Returns a tree of bools, True for kernels: biases and normalization have no weight decay."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
