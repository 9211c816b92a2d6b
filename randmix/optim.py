"""The learning-rate schedule, and the optimizer of a label tree."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from randmix.errors import UserError, check_choice
from randmix.groups import FREEZE, Group


def build_schedule(settings: ConfigDict, peak: float, total_steps: int) -> optax.Schedule:
    """The learning rate as a function of the steps taken.

    Args:
        settings: ``config.schedule``.
        peak: the learning rate at the schedule's height.
        total_steps: of the run.
    """
    check_choice("config.schedule.name", settings.name, ("linear", "step", "cosine", "constant"))
    if settings.name == "linear":
        return _linear_schedule(settings.points, peak, total_steps)
    if settings.name == "step":
        steps = [round(share * total_steps) for share in settings.boundaries]
        return optax.piecewise_constant_schedule(peak, dict.fromkeys(steps, settings.factor))
    if settings.name == "cosine":
        warmup = round(settings.warmup * total_steps)
        return optax.warmup_cosine_decay_schedule(
            0.0 if warmup else peak, peak, warmup, total_steps
        )
    return optax.constant_schedule(peak)


def _linear_schedule(
    points: tuple[tuple[float, float], ...], peak: float, total_steps: int
) -> optax.Schedule:
    shares = [share for share, _ in points]
    if not points or shares != sorted(shares) or shares[0] < 0 or shares[-1] > 1:
        raise UserError(
            f"config.schedule.points: got shares {shares}, allowed rising numbers from 0 to 1"
        )
    steps = jnp.asarray([share * total_steps for share in shares])
    rates = jnp.asarray([multiple * peak for _, multiple in points])
    return lambda step: jnp.interp(jnp.asarray(step, jnp.float32), steps, rates)


def build_optimizer(
    config: ConfigDict, total_steps: int, labels: Any, groups: tuple[Group, ...], step: int = 0
) -> optax.GradientTransformation:
    """The optimizer of all groups, in the phase that holds after ``step`` steps.

    Its state has one structure in every phase: that of a group yet to start stays as it was made. Frozen
    leaves have neither state nor update. The gradients' norm is clipped once, over all that is trained,
    before the leaves part ways by label; frozen ones have no gradient (None) and so no place in it.

    Args:
        config: the whole config; ``config.optimizer`` and ``config.schedule`` are read.
        total_steps: of the run.
        labels: the label of every parameter, that of its group or "freeze".
        groups: what is trained.
        step: steps taken.
    """
    transforms = {FREEZE: optax.set_to_zero()}
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

    def schedule(count: jax.Array) -> jax.Array:
        return of_run(
            count + group.start_step
        )  # a group counts its own steps, the schedule the run's

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
    """The state of ``inner``, left as it is; what is paused has no gradients, so there is nothing to update."""
    return optax.GradientTransformation(
        inner.init, lambda updates, state, params=None: (updates, state)
    )


def kernels_only(params: Any) -> Any:
    """A tree of bools: weight decay is for kernels, not for biases and normalisation (PAPER: recipes)."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
