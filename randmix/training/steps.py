"""Pure train and eval steps; ``compiled`` and ``eval_loop`` jit them."""

from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from randmix import masks
from randmix.models import split
from randmix.training.tasks import CLASSIFICATION, Task


class TrainState(struct.PyTreeNode):
    """Everything that a step changes and that a checkpoint holds.

    Attributes:
        step: [] int32, number of steps taken.
        params: the parameters by role, float32.
        batch_stats: running statistics of the normalization layers.
        opt_state: optax's state, with arrays for trainable leaves only.
        totals: the sum of each metric over the steps since it was last logged. It is part of the
            state so that a resumed run logs the same numbers.
        failed_step: [] int32, the ``step`` of the first non-finite loss or gradient; -1 if there
            was none.
    """

    step: jax.Array
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    opt_state: Any
    totals: dict[str, jax.Array]
    failed_step: jax.Array

    @property
    def variables(self) -> dict[str, Any]:
        """The model's variables: parameters by role and ``batch_stats``."""
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
    """Returns the state before the first step; works under ``jax.eval_shape``.

    Args:
        key: key of the initial parameters.
        image_shape: (height, width, channels).
        model: the model.
        task: the task whose metrics are summed.
        optimizer: the optimizer for the label tree.
        labels: the label of every parameter; "freeze" means frozen.
    """
    variables = model.init(key, jnp.zeros((1, *image_shape), jnp.float32))
    params, batch_stats = split(dict(variables))
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
    """Returns the totals of zero steps."""
    return {name: jnp.zeros((), jnp.float32) for name in (*task.metric_names, "steps")}


def never_failed() -> jax.Array:
    """Returns the ``failed_step`` of a state without failed steps."""
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
    """Takes one optimizer step on the trainable leaves.

    Only leaves that ``labels`` doesn't freeze are differentiated. A frozen leaf is a constant here:
    it has no gradient or optimizer state, doesn't contribute to the clipped norm and stays
    bit-equal.

    Args:
        state: the state before the step.
        batch: ``image`` [N, H, W, C] float32 in [0, 1] and ``label``; the task prepares it for the
            model.
        model, task, optimizer, labels, label_smoothing: static.
        channel_masks: None, or a tree with a bool array for each partly learned parameter. Masked
            entries have no gradient, and neither momentum nor weight decay moves them. Static.

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
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an int32 count
        updates, opt_state = optimizer.update(gradients, state.opt_state, trainable)
    trainable = masks.blend(channel_masks, optax.apply_updates(trainable, updates), trainable)
    failed = (state.failed_step < 0) & ~all_finite((metrics["loss"], gradients))
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


def all_finite(tree: Any) -> jax.Array:
    """Whether every number of a tree is finite, [] bool."""
    # Leaf by leaf, since a norm may overflow although every number is finite.
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()


def eval_step(
    variables: Mapping[str, Any], batch: Mapping[str, jax.Array], *, model: nn.Module, task: Task
) -> dict[str, jax.Array]:
    """Returns sums of the task's metrics over a batch, without its padding.

    Args:
        variables: parameters by role and ``batch_stats``.
        batch: as for training, and ``mask`` [N] bool, False for padding.
        model, task: static.

    Returns:
        The sum of each metric, and ``examples``, the number of examples; [] float32 each.
    """
    batch = task.prepare(batch)
    # Flax declares a tuple too, which only `mutable` returns.
    outputs = cast(jax.Array, model.apply(variables, batch["image"], train=False))
    metrics = task.metrics(outputs, batch, 0.0)
    sums = {name: jnp.where(batch["mask"], values, 0).sum() for name, values in metrics.items()}
    return {**sums, "examples": batch["mask"].sum().astype(jnp.float32)}
