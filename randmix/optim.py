"""The learning-rate schedule, and the optimizer of a label tree."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from randmix.errors import UserError, check_choice


def build_schedule(config: ConfigDict, total_steps: int) -> optax.Schedule:
    """The learning rate as a function of the step, a pure function of ``config`` and ``total_steps``."""
    check_choice("config.schedule.name", config.schedule.name, ("linear", "step", "cosine", "constant"))
    peak, schedule = config.optimizer.learning_rate, config.schedule
    if schedule.name == "linear":
        return _linear_schedule(schedule.points, peak, total_steps)
    if schedule.name == "step":
        steps = [round(share * total_steps) for share in schedule.boundaries]
        return optax.piecewise_constant_schedule(peak, dict.fromkeys(steps, schedule.factor))
    if schedule.name == "cosine":
        warmup = round(schedule.warmup * total_steps)
        return optax.warmup_cosine_decay_schedule(0.0 if warmup else peak, peak, warmup, total_steps)
    return optax.constant_schedule(peak)


def _linear_schedule(
    points: tuple[tuple[float, float], ...], peak: float, total_steps: int
) -> optax.Schedule:
    shares = [share for share, _ in points]
    if not points or shares != sorted(shares) or shares[0] < 0 or shares[-1] > 1:
        raise UserError(f"config.schedule.points: got shares {shares}, allowed rising numbers from 0 to 1")
    steps = jnp.asarray([share * total_steps for share in shares])
    rates = jnp.asarray([multiple * peak for _, multiple in points])
    return lambda step: jnp.interp(jnp.asarray(step, jnp.float32), steps, rates)


def build_optimizer(
    config: ConfigDict, schedule: optax.Schedule, labels: Any
) -> optax.GradientTransformation:
    """The optimizer of the leaves that ``labels`` trains; frozen leaves have no state and get no update.

    The gradients' norm is clipped once, over all trainable leaves together, before the leaves part ways by
    label; frozen ones have no gradient (None) and so no place in it.

    Args:
        config: the whole config; ``config.optimizer`` is read.
        schedule: step -> learning rate.
        labels: a tree of "train" and "freeze", the structure of the parameters.
    """
    optimizer = optax.multi_transform(
        {"train": _descent(config.optimizer, schedule), "freeze": optax.set_to_zero()}, labels
    )
    if config.optimizer.clip_norm > 0:
        optimizer = optax.chain(optax.clip_by_global_norm(config.optimizer.clip_norm), optimizer)
    return optimizer


def _descent(settings: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    check_choice("config.optimizer.name", settings.name, ("adamw", "sgd"))
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


def kernels_only(params: Any) -> Any:
    """A tree of bools: weight decay is for kernels, not for biases and normalisation (PAPER: recipes)."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
