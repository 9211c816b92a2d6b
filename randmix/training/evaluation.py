"""Evaluation over a full split: every example exactly once."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from randmix import attacks, models
from randmix.data import catalog, feeds, loader
from randmix.errors import UserError
from randmix.models import counts
from randmix.runtime import sharding
from randmix.training import loading, runs, steps
from randmix.training.tasks import Task
from randmix.workdir import artifacts

EvalStep = Callable[[Mapping[str, Any], loader.Data, int], dict[str, jax.Array]]


def jit_eval_step(
    *,
    model: Any,
    task: Task,
    mesh: jax.sharding.Mesh,
    batch_size: int,
    perturb: attacks.Perturb | None = None,
    members: int | None = None,
) -> EvalStep:
    """Jits the eval step, ``(variables, data, index) -> sums``.

    ``data`` and ``index`` are as in ``loader.eval_batch``.

    Args:
        model, task: static.
        mesh: the devices that share each batch.
        batch_size: global batch size, a multiple of the number of devices.
        perturb: an attack to apply to the images first; see ``attacks.perturb_batch``.
        members: the size of an ensemble; variables and sums then have a leading axis of that
            length.
    """

    def eval_step(
        variables: Mapping[str, Any], data: loader.Data, index: jax.Array
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
    """Raised when an evaluation is abandoned because the process is about to end."""


def evaluate_split(
    eval_step: EvalStep,
    variables: Mapping[str, Any],
    data: Iterable[loader.Data],
    *,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Returns the means of the task's metrics over all examples.

    Args:
        eval_step: from ``jit_eval_step``.
        variables: parameters by role and ``batch_stats``.
        data: the step's data, batch by batch: ``arrays.eval_arrays`` or ``stream.EvalStream``.
        stop: called before each batch; if it returns True, the evaluation is abandoned.

    Returns:
        name -> mean, a float; for an ensemble, a list with one float per member.

    Raises:
        Stopped: ``stop`` returned True.
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
    run: loading.Run, split: feeds.Split, *, batch_size: int, examples: int | None = None
) -> dict[str, float]:
    """Returns a trained run's mean metrics over all examples, as its training would log them.

    Args:
        run: from ``loading.load``.
        split: from ``open_split``.
        batch_size: examples per batch, rounded up to a multiple of the number of devices.
        examples: use only this many, from the start of the split; None uses all.
    """
    mesh = sharding.make_mesh()
    task = runs.build_task(run.config, run.model, split.data_set.image_shape)
    batch_size = round_up(min(batch_size, split.examples(examples)), mesh)
    eval_step = jit_eval_step(model=run.model, task=task, mesh=mesh, batch_size=batch_size)
    data = split.for_evaluation(batch_size=batch_size, mesh=mesh, examples=examples)
    return evaluate_split(eval_step, sharding.replicate(run.variables, mesh), data)


def open_split(
    run: loading.Run,
    split: str,
    *,
    name: str | None = None,
    data_dir: str | None = None,
    force: bool = False,
) -> feeds.Split:
    """Opens a split of the data set that a run was trained on, or of another one that fits it.

    Args:
        run: from ``loading.load``.
        split: "test" or "train".
        name: the data set's name; by default the run's own.
        data_dir: TFDS's data folder; by default the run's.
        force: accept other class names and another image size, if the model can process it.

    Raises:
        UserError: an unknown data set or split, a data set that isn't prepared, or one whose images
            or classes differ from those of the training; the message says how.
    """
    config = run.config.data
    if name is None and config.name is None:
        raise UserError(
            "--data is missing: this workdir names no data set; "
            "give one, for example --data=cifar10"
        )
    data_dir = data_dir or config.data_dir
    trained_on = _trained_on(run)
    size, in_memory = config.image_size, config.in_memory
    if name not in (None, config.name):
        in_memory = "auto"
        if trained_on and not size:  # photographs are cropped to the size that the model knows
            height, width, _ = trained_on["image_shape"]
            size = height if height == width else None
    dataset = catalog.get(name or config.name, data_dir, image_size=size, in_memory=in_memory)
    if trained_on:
        _check_same_kind(run, catalog.describe(dataset, data_dir), trained_on, force=force)
    _check_fits(run, dataset)
    return feeds.Split(dataset, split, data_dir, runs.reading(run.config, dataset))


def _trained_on(run: loading.Run) -> Mapping[str, Any] | None:
    """The run's data set as in ``catalog.describe``, or None if it is unknown."""
    if run.workdir and (saved := artifacts.read_data(run.workdir)):
        return saved
    config = run.config.data
    try:
        return catalog.describe(runs.find_dataset(run.config), config.data_dir)
    except UserError:
        return None


def _check_same_kind(
    run: loading.Run, got: Mapping[str, Any], own: Mapping[str, Any], *, force: bool
) -> None:
    """Raises a UserError that lists how a data set differs from the run's own, as described.

    Another version of the run's own data set is a warning.
    """
    if got["name"] == own["name"] and got["version"] != own["version"]:
        logging.getLogger(__name__).warning(
            "%s now has the version %s, the run was trained on %s",
            *(got["name"], got["version"], own["version"]),
        )
    minor, major = [], []
    if tuple(got["image_shape"]) != tuple(own["image_shape"]):
        images, model = (" x ".join(map(str, data["image_shape"])) for data in (got, own))
        same_channels = got["image_shape"][2] == own["image_shape"][2]
        (minor if same_channels else major).append(f"its images are {images}, the model's {model}")
    if run.model.num_classes is not None:  # else it doesn't classify
        if got["num_classes"] != own["num_classes"]:
            major.append(f"it has {got['num_classes']} classes, the model {own['num_classes']}")
        elif got["classes"] and own["classes"] and got["classes"] != own["classes"]:
            pairs = enumerate(zip(got["classes"], own["classes"], strict=True))
            first = next(i for i, (one, other) in pairs if one != other)
            classes, model = (_some(data["classes"], first) for data in (got, own))
            minor.append(f"its classes are {classes}, the model's are {model}")
    if major or (minor and not force):
        raise UserError(
            f"data set {got['name']}: {'; '.join([*major, *minor])}; "
            f"give --data one that it fits{'' if major else ', or --force'}"
        )


def _some(names: Sequence[str], first: int) -> str:
    """Three names from the first one on, with "..." where others are left out."""
    before, after = ["..."] * (first > 0), ["..."] * (first + 3 < len(names))
    return ", ".join([*before, *names[first : first + 3], *after])


def _check_fits(run: loading.Run, dataset: catalog.DataSet) -> None:
    """Raises a UserError if the model can't process the images, or has other classes."""
    run.model.check_image_shape(dataset.image_shape)
    # Split, because a model without running statistics has no collection for them.
    expected = models.split(counts.abstract_variables(run.model, dataset.image_shape))
    got = models.split(run.variables)
    fits = jax.tree.all(jax.tree.map(lambda a, b: a.shape == b.shape, expected, got))
    classes = run.model.num_classes
    if not fits or classes not in (None, dataset.num_classes):
        h, w, c = dataset.image_shape
        taken = "other images" if not fits else f"{classes} classes"
        raise UserError(
            f"data set {dataset.name}: got {h} x {w} x {c} images in {dataset.num_classes} "
            f"classes, but the model is for {taken}; give --data one that it fits"
        )


def round_up(batch_size: int, mesh: jax.sharding.Mesh) -> int:
    """Rounds a batch size up to a multiple of the number of devices; results don't depend on it."""
    return -(-batch_size // mesh.size) * mesh.size
