"""Pure train and eval steps; ``compiled`` and ``evaluation`` jit them."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from flax import struct

from randmix import masks
from randmix.models import Model, split, with_averages
from randmix.training.tasks import CLASSIFICATION, Batch, Task


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


class AveragedState(TrainState):
    """The state of a run that keeps moving averages of its weights.

    It is a type of its own, since a field that is None would change every checkpoint.

    Attributes:
        ema: the averages of ``variables``, with None for a parameter that is never trained.
    """

    ema: dict[str, Any]

    @property
    def averaged_variables(self) -> dict[str, Any]:
        """The variables with the averages in place of what they average."""
        return with_averages(self.variables, self.ema)


def init_state(
    key: jax.Array,
    image_shape: tuple[int, int, int],
    *,
    model: Model,
    task: Task,
    optimizer: optax.GradientTransformation,
    labels: Any,
    ema: bool = False,
) -> TrainState:
    """Returns the state before the first step; works under ``jax.eval_shape``.

    Args:
        key: key of the initial parameters.
        image_shape: (height, width, channels).
        model: the model.
        task: the task whose metrics are summed.
        optimizer: the optimizer for the label tree.
        labels: the label of every parameter; "freeze" means frozen.
        ema: whether the state has moving averages; they start at the initial values.
    """
    variables = model.init(key, jnp.zeros((1, *image_shape), jnp.float32))
    params, batch_stats = split(dict(variables))
    trainable, _ = masks.partition(params, labels)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(trainable),
        totals=empty_totals(task),
        failed_step=never_failed(),
    )
    if not ema:
        return state
    return AveragedState(**vars(state), ema={**trainable, "batch_stats": batch_stats})


def empty_totals(task: Task = CLASSIFICATION) -> dict[str, jax.Array]:
    """Returns the totals of zero steps."""
    return {name: jnp.zeros((), jnp.float32) for name in (*task.metric_names, "steps")}


def never_failed() -> jax.Array:
    """Returns the ``failed_step`` of a state without failed steps."""
    return jnp.full((), -1, jnp.int32)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: Model,
    task: Task,
    optimizer: optax.GradientTransformation,
    labels: Any,
    channel_masks: Any = None,
    label_smoothing: float = 0.0,
    perturb: Callable[[dict[str, Any], Batch], Batch] | None = None,
    accumulate: int = 1,
    ema: float = 0.0,
    key: jax.Array | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Takes one optimizer step on the trainable leaves.

    Only leaves that ``labels`` doesn't freeze are differentiated. A frozen leaf is a constant here:
    it has no gradient or optimizer state, doesn't contribute to the clipped norm and stays
    bit-equal.

    Args:
        state: the state before the step.
        batch: ``image`` [N, H, W, C] float32 in [0, 1] and ``label``; the task prepares it for the
            model.
        model, task, optimizer, labels, label_smoothing, accumulate, ema: static.
        channel_masks: None, or a tree with a bool array for each partly learned parameter. Masked
            entries have no gradient, and neither momentum nor weight decay moves them. Static.
        perturb: None, or ``(variables, batch) -> batch`` with the images attacked. Each micro-batch
            is attacked on its own, with the variables before the step.
        accumulate: number of micro-batches into which the batch is divided, whose gradients and
            metrics are averaged. They are normalised, and move the running statistics, one after
            the other.
        ema: decay of the moving averages, in [0, 1), if the state has them. The decay of the step
            after ``step`` ones is min(ema, (1 + step) / (10 + step)), as in TensorFlow's
            ``ExponentialMovingAverage`` with ``num_updates``.
        key: None, or the typed key of this step, for a model that draws, as dropout does. Each
            micro-batch has a key of its own.

    Returns:
        The state after the step, and the batch's mean metrics ([] float32 each).
    """
    trainable, frozen = masks.partition(state.params, labels)

    def differentiate(
        batch_stats: Any, batch: Batch, key: jax.Array | None
    ) -> tuple[Any, tuple[Any, Any]]:
        if perturb is not None:
            batch = perturb(state.variables, batch)
        batch = task.prepare(batch)

        def loss_fn(trainable: Any) -> tuple[jax.Array, Any]:
            variables = {**masks.merge(trainable, frozen), "batch_stats": batch_stats}
            outputs, updates = model.apply(
                variables,
                batch["image"],
                train=True,
                mutable=["batch_stats"],
                rngs=None if key is None else {"dropout": key},
            )
            metrics = task.metrics(outputs, batch, label_smoothing)
            means = {name: values.mean() for name, values in metrics.items()}
            return means["loss"], (means, updates["batch_stats"])

        gradients, (means, updated) = jax.grad(loss_fn, has_aux=True)(trainable)
        return updated, (gradients, means)

    if accumulate == 1:
        batch_stats, (gradients, metrics) = differentiate(state.batch_stats, batch, key)
    else:

        def add(carry: Any, part: tuple[Batch, jax.Array | None]) -> tuple[Any, None]:
            batch_stats, sums = carry
            batch_stats, one = differentiate(batch_stats, *part)
            return (batch_stats, jax.tree.map(jnp.add, sums, one)), None

        zeros = {name: jnp.zeros((), jnp.float32) for name in task.metric_names}
        first = state.batch_stats, (optax.tree.zeros_like(trainable), zeros)
        keys = None if key is None else jax.random.split(key, accumulate)
        (batch_stats, sums), _ = jax.lax.scan(add, first, (divide(batch, accumulate), keys))
        gradients, metrics = jax.tree.map(lambda total: total / accumulate, sums)
    gradients = masks.blend(channel_masks, gradients, optax.tree.zeros_like(gradients))
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an int32 count
        updates, opt_state = optimizer.update(gradients, state.opt_state, trainable)
    trainable = masks.blend(channel_masks, optax.apply_updates(trainable, updates), trainable)
    failed = (state.failed_step < 0) & ~all_finite((metrics["loss"], gradients))
    increments = {**metrics, "steps": jnp.ones((), jnp.float32)}
    params, averages = masks.merge(trainable, frozen), {}
    if isinstance(state, AveragedState):
        new = {**params, "batch_stats": batch_stats}
        averages["ema"] = average(state.ema, new, state.step, decay=ema)
    state = state.replace(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        totals={name: total + increments[name] for name, total in state.totals.items()},
        failed_step=jnp.where(failed, state.step, state.failed_step),
        **averages,
    )
    return state, metrics


def divide(batch: Batch, parts: int) -> dict[str, jax.Array]:
    """Divides a batch into micro-batches, [N, ...] into [parts, N / parts, ...].

    Micro-batch i has the rows i, i + parts, i + 2 parts and so on. Those of a device that has N / D
    consecutive rows, a multiple of ``parts``, are on that device, in all micro-batches alike.
    """
    return {
        name: values.reshape(-1, parts, *values.shape[1:]).swapaxes(0, 1)
        for name, values in batch.items()
    }


def average(averages: Any, new: Any, step: jax.Array, *, decay: float) -> Any:
    """Returns the moving averages after new values; see ``train_step``.

    Args:
        averages: a tree, with None for what isn't averaged.
        new: the values, with an array there too.
        step: [] int32, number of values averaged before.
        decay: the largest decay, in [0, 1).
    """
    # 1 - min(decay, (1 + step) / (10 + step)), without cancellation in float32.
    rate = jnp.maximum(1 - decay, 9 / (10 + step.astype(jnp.float32)))

    def moved(average: jax.Array | None, new: jax.Array) -> jax.Array | None:
        if average is None:
            return None
        if not jnp.issubdtype(new.dtype, jnp.floating):  # a counter among a model's own state
            return new
        # What isn't trained stays bit-equal, also -0.0, to which adding 0.0 gives 0.0.
        return jnp.where(new == average, average, average + rate * (new - average))

    return jax.tree.map(moved, averages, new, is_leaf=lambda node: node is None)


def all_finite(tree: Any) -> jax.Array:
    """Whether every number of a tree is finite, [] bool."""
    # Leaf by leaf, since a norm may overflow although every number is finite.
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()


def eval_step(
    variables: Mapping[str, Any], batch: Mapping[str, jax.Array], *, model: Model, task: Task
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
