"""Evaluating a whole split: every example exactly once."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from randmix import attacks, runs, sharding, steps, tasks
from randmix.data import catalog, feeds, loader
from randmix.errors import UserError
from randmix.tasks import Task

EvalStep = Callable[[dict[str, Any], loader.Data, int], dict[str, jax.Array]]


def jit_eval_step(
    *,
    model: Any,
    task: Task,
    mesh: jax.sharding.Mesh,
    batch_size: int,
    perturb: attacks.Perturb | None = None,
    members: int | None = None,
) -> EvalStep:
    """Compiles, on first use, ``(variables, data, index) -> sums``, with ``data`` as in ``loader.eval_batch``.

    Args:
        model, task: static.
        mesh: the devices that share each batch.
        batch_size: a multiple of their number.
        perturb: an attack that the images undergo first; see ``attacks.perturb_batch``.
        members: of how many an ensemble is; its variables and sums then have a first axis of that length.
    """

    def eval_step(
        variables: dict[str, Any], data: loader.Data, index: jax.Array
    ) -> dict[str, jax.Array]:
        batch = loader.eval_batch(data, index, batch_size=batch_size)
        batch = jax.lax.with_sharding_constraint(batch, sharding.split_batch(mesh))
        if perturb is not None:
            batch = attacks.perturb_batch(variables, batch, model=model, perturb=perturb)
        return steps.eval_step(variables, batch, model=model, task=task)

    if members is not None:
        eval_step = jax.vmap(eval_step, in_axes=(0, None, None))
    return jax.jit(eval_step, out_shardings=sharding.replicated(mesh))


class Stopped(Exception):
    """An evaluation was given up because the process is to end."""


def evaluate_split(
    eval_step: EvalStep,
    variables: dict[str, Any],
    data: Iterable[loader.Data],
    *,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Means of the task's metrics over all examples: numbers, or for an ensemble
    lists of one a member.

    Args:
        eval_step: from ``jit_eval_step``.
        variables: parameters by role and ``batch_stats``.
        data: what the step takes, batch by batch: ``arrays.EvalArrays`` or ``stream.EvalStream``.
        stop: asked before each batch whether to give up.

    Raises:
        Stopped: ``stop`` said so.
    """
    sums = None
    for index, arguments in enumerate(data):
        if stop():
            raise Stopped
        one = eval_step(variables, arguments, index)
        sums = one if sums is None else jax.tree.map(lambda a, b: a + b, sums, one)
    sums = {name: np.float64(value) for name, value in jax.device_get(sums).items()}
    examples = sums.pop("examples")
    return {name: (value / examples).tolist() for name, value in sums.items()}


def evaluate_run(
    run: runs.Run, split: feeds.Split, *, batch_size: int, examples: int | None = None
) -> dict[str, float]:
    """Means of the task's metrics of a trained run over all examples, as its training would log them.

    Args:
        run: from ``runs.load``.
        split: from ``open_split``.
        batch_size: examples at once, rounded up to a multiple of the number of devices.
        examples: take the first ones only; None for all.
    """
    mesh = sharding.make_mesh()
    task = tasks.build(
        run.config.task,
        image_shape=split.data_set.image_shape,
        permutation_seed=run.config.permutation_seed,
    )
    batch_size = round_up(min(batch_size, split.examples(examples)), mesh)
    eval_step = jit_eval_step(model=run.model, task=task, mesh=mesh, batch_size=batch_size)
    data = split.for_evaluation(batch_size=batch_size, mesh=mesh, examples=examples)
    return evaluate_split(eval_step, sharding.replicate(run.variables, mesh), data)


def open_split(
    run: runs.Run, split: str, *, name: str | None = None, data_dir: str | None = None
) -> feeds.Split:
    """A split that a run's model can be shown.

    Args:
        run: from ``runs.load``.
        split: "test" or "train".
        name: the data set; by default the run's own.
        data_dir: where TFDS keeps it; by default as for the run.

    Raises:
        UserError: no such data set or split, it isn't prepared, or the model wasn't made for its images or classes.
    """
    config = run.config.data
    if name is None and config.name is None:
        raise UserError(
            "--data is missing: this workdir names no data set; give one, for example --data=cifar10"
        )
    data_dir = data_dir or config.data_dir
    dataset = catalog.get(name or config.name, data_dir, image_size=config.image_size)
    _check_fits(run, dataset)
    return feeds.Split(dataset, split, data_dir, feeds.reading(config))


def _check_fits(run: runs.Run, dataset: catalog.DataSet) -> None:
    run.model.check_image_shape(dataset.image_shape)
    images = jax.ShapeDtypeStruct((1, *dataset.image_shape), jnp.float32)
    expected = jax.eval_shape(run.model.init, jax.random.key(0), images)
    fits = jax.tree.all(jax.tree.map(lambda a, b: a.shape == b.shape, expected, run.variables))
    classes = run.model.num_classes
    if not fits or classes not in (None, dataset.num_classes):
        h, w, c = dataset.image_shape
        taken = "other images" if not fits else f"{classes} classes"
        raise UserError(
            f"data set {dataset.name}: got {h} x {w} x {c} images in {dataset.num_classes} classes, but the model is "
            f"for {taken}; give --data one that it fits"
        )


def round_up(batch_size: int, mesh: jax.sharding.Mesh) -> int:
    """The least multiple of the number of devices that is no smaller; evaluation doesn't depend on it."""
    return -(-batch_size // mesh.size) * mesh.size
