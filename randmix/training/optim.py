"""Learning-rate schedules, and the optimizer for a label tree."""

import math
from collections import Counter
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from randmix.errors import check_choice
from randmix.training.groups import FREEZE, Group


def build_schedule(settings: ConfigDict, peak: float, total_steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the number of steps taken.

    Args:
        settings: ``config.schedule``, checked by ``randmix.config.check``.
        peak: the largest learning rate.
        total_steps: the length of the run.

    Raises:
        UserError: an unknown schedule.
    """
    check_choice("config.schedule.name", settings.name, ("linear", "step", "cosine", "constant"))
    if settings.name == "linear":
        return _linear_schedule(settings.points, peak, total_steps)
    if settings.name == "step":
        # In a short run, several boundaries may fall on one step.
        steps = Counter(round(share * total_steps) for share in settings.boundaries)
        factor = float(settings.factor)
        factors = {step: math.prod([factor] * count) for step, count in steps.items()}
        return optax.piecewise_constant_schedule(peak, factors)
    if settings.name == "cosine":
        # optax requires a step of decay.
        warmup = min(round(settings.warmup * total_steps), total_steps - 1)
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
    config: ConfigDict, total_steps: int, labels: Any, groups: tuple[Group, ...], step: int = 0
) -> optax.GradientTransformation:
    """Returns the optimizer of all groups in the phase after ``step`` steps.

    The state has the same structure in every phase; that of a group yet to start stays at its
    initial value. Frozen leaves have neither state nor updates. The global gradient norm is clipped
    once, over all trainable leaves, before they are partitioned by label; frozen leaves have no
    gradient (None) and don't contribute to it.

    Args:
        config: the full config; ``config.optimizer`` and ``config.schedule`` are read.
        total_steps: the length of the run.
        labels: the label of every parameter: its group's, or "freeze".
        groups: the trained groups.
        step: the number of steps taken.
    """
    transforms: dict[Hashable, optax.GradientTransformation] = {FREEZE: optax.set_to_zero()}
    for group in groups:
        descent = _descent(config, total_steps, group)
        transforms[group.label] = _paused(descent) if group.start_step > step else descent
    optimizer = optax.multi_transform(transforms, labels)
    if config.optimizer.clip_norm > 0:
        optimizer = optax.chain(optax.clip_by_global_norm(config.optimizer.clip_norm), optimizer)
    return optimizer


def _descent(config: ConfigDict, total_steps: int, group: Group) -> optax.GradientTransformation:
    settings = ConfigDict({**config.optimizer, **group.optimizer})
    check_choice("config.optimizer.name", settings.name, ("adamw", "sgd"))
    of_run = build_schedule(config.schedule, settings.learning_rate * group.lr_scale, total_steps)

    def schedule(count: ArrayLike) -> ArrayLike:
        # A group counts its own steps; the schedule counts the run's.
        return of_run(count + group.start_step)

    if settings.name == "adamw":
        return optax.adamw(
            schedule,
            b1=settings.b1,
            b2=settings.b2,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            mask=kernels_only,
        )
    return optax.chain(
        optax.add_decayed_weights(settings.weight_decay, kernels_only),
        optax.sgd(schedule, settings.momentum or None, nesterov=settings.nesterov),
    )


def _paused(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns a transform that keeps the state of ``inner``; paused leaves have no gradients."""
    return optax.GradientTransformation(
        inner.init, lambda updates, state, params=None: (updates, state)
    )


def kernels_only(params: Any) -> Any:
    """Returns a tree of bools, True for kernels: biases and normalization have no weight decay."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
