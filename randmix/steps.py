"""The train and eval steps: plain functions, jitted elsewhere."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from randmix import masks
from randmix.models import split
from randmix.tasks import CLASSIFICATION, Task


class TrainState(struct.PyTreeNode):
    """Everything that a step changes, and all that a checkpoint holds.

    Attributes:
        step: [] int32, steps taken.
        params: the parameters by role, float32.
        batch_stats: running statistics.
        opt_state: optax's, with arrays for trainable leaves only.
        totals: each metric summed over the steps since it was last logged. It is here, and not beside the
            loop, so that a resumed run logs the same numbers.
        failed_step: [] int32, the ``step`` from which the first loss or gradient came that wasn't finite; -1 while
            all were.
    """

    step: jax.Array
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    opt_state: Any
    totals: dict[str, jax.Array]
    failed_step: jax.Array

    @property
    def variables(self) -> dict[str, Any]:
        """What the model is applied to: parameters by role and ``batch_stats``."""
        return {**self.params, "batch_stats": self.batch_stats}


def init_state(
    key: jax.Array,
    image_shape: tuple[int, int, int],
    *,
    model: nn.Module,
    task: Task,
    optimizer: optax.GradientTransformation,
    labels: Any,
) -> TrainState:
    """The state before the first step; pure, so that ``jax.eval_shape`` of it gives the shapes.

    Args:
        key: decides the initial parameters.
        image_shape: (height, width, channels).
        model: the model.
        task: whose metrics are summed.
        optimizer: of the label tree.
        labels: of every parameter; "freeze" is frozen.
    """
    params, batch_stats = split(model.init(key, jnp.zeros((1, *image_shape), jnp.float32)))
    trainable, _ = masks.partition(params, labels)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(trainable),
        totals=empty_totals(task),
        failed_step=never_failed(),
    )


def empty_totals(task: Task = CLASSIFICATION) -> dict[str, jax.Array]:
    """Totals over no step at all."""
    return {name: jnp.zeros((), jnp.float32) for name in (*task.metric_names, "steps")}


def never_failed() -> jax.Array:
    """``TrainState.failed_step`` of a state whose steps were all finite."""
    return jnp.full((), -1, jnp.int32)


def train_step(
    state: TrainState,
    batch: Mapping[str, jax.Array],
    *,
    model: nn.Module,
    task: Task,
    optimizer: optax.GradientTransformation,
    labels: Any,
    channel_masks: Any = None,
    label_smoothing: float = 0.0,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of descent on the trainable leaves.

    Only the leaves that ``labels`` doesn't freeze are differentiated: a frozen one is a constant here, so it
    costs neither a gradient, nor optimizer state, nor a place in the clipped norm, and comes out as it was.

    Args:
        state: before the step.
        batch: ``image`` [N, H, W, C] float32 in [0, 1] and ``label``; the task prepares it for the model.
        model, task, optimizer, labels, label_smoothing: static.
        channel_masks: None, or a tree with a bool array for each parameter that is learned in part; what it
            leaves out has no gradient, and neither momentum nor weight decay moves it. Static.

    Returns:
        The state after the step, and the batch's mean metrics ([] float32 each).
    """
    trainable, frozen = masks.partition(state.params, labels)
    batch = task.prepare(batch)

    def loss_fn(trainable: Any) -> tuple[jax.Array, Any]:
        variables = {**masks.merge(trainable, frozen), "batch_stats": state.batch_stats}
        outputs, updates = model.apply(
            variables, batch["image"], train=True, mutable=["batch_stats"]
        )
        metrics = task.metrics(outputs, batch, label_smoothing)
        means = {name: values.mean() for name, values in metrics.items()}
        return means["loss"], (means, updates["batch_stats"])

    gradients, (metrics, batch_stats) = jax.grad(loss_fn, has_aux=True)(trainable)
    gradients = masks.blend(channel_masks, gradients, optax.tree.zeros_like(gradients))
    updates, opt_state = optimizer.update(gradients, state.opt_state, trainable)
    trainable = masks.blend(channel_masks, optax.apply_updates(trainable, updates), trainable)
    failed = (state.failed_step < 0) & ~_all_finite((metrics["loss"], gradients))
    increments = {**metrics, "steps": jnp.ones((), jnp.float32)}
    state = TrainState(
        step=state.step + 1,
        params=masks.merge(trainable, frozen),
        batch_stats=batch_stats,
        opt_state=opt_state,
        totals={name: total + increments[name] for name, total in state.totals.items()},
        failed_step=jnp.where(failed, state.step, state.failed_step),
    )
    return state, metrics


def _all_finite(tree: Any) -> jax.Array:
    # Leaf by leaf: a norm overflows where every number is finite.
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()


def eval_step(
    variables: dict[str, Any], batch: Mapping[str, jax.Array], *, model: nn.Module, task: Task
) -> dict[str, jax.Array]:
    """Sums of the task's metrics over a batch whose padding doesn't count.

    Args:
        variables: parameters by role and ``batch_stats``.
        batch: as for training, and ``mask`` [N] bool, False for padding.
        model, task: static.

    Returns:
        A sum for each metric and ``examples``, how many were counted; [] float32 each.
    """
    batch = task.prepare(batch)
    outputs = model.apply(variables, batch["image"], train=False)
    metrics = task.metrics(outputs, batch, 0.0)
    sums = {name: jnp.where(batch["mask"], values, 0).sum() for name, values in metrics.items()}
    return {**sums, "examples": batch["mask"].sum().astype(jnp.float32)}
