"""From a config to the parts of a run; and a run's workdir back to a model and its variables."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from etils import epath
from flax import linen as nn
from ml_collections import ConfigDict

from randmix import config as configs
from randmix import masks, models, optim, sharding, steps, tasks
from randmix.artifacts import read_config
from randmix.checkpoint import Checkpoints
from randmix.data import catalog
from randmix.errors import UserError, check_choice


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a run is made of; everything but arrays.

    Attributes:
        dataset: the catalogue's entry.
        model: the Linen module.
        task: how its outputs are scored.
        labels: "train" or "freeze" for every parameter.
        summary: the table of parameters with their labels.
        train_examples: how many there are, after ``data.subset``.
        steps_per_epoch: whole batches in an epoch; what is left over is dropped.
        total_steps: how many the run takes.
        schedule: step -> learning rate.
        optimizer: of the label tree.
    """

    dataset: catalog.DataSet
    model: nn.Module
    task: tasks.Task
    labels: Any
    summary: masks.Summary
    train_examples: int
    steps_per_epoch: int
    total_steps: int
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation

    def init_state(self, seed: int | jax.Array) -> steps.TrainState:
        """The state before the first step; a pure function of the seed."""
        return steps.init_state(
            jax.random.key(seed),
            self.dataset.image_shape,
            model=self.model,
            optimizer=self.optimizer,
            labels=self.labels,
        )

    def abstract_state(self, mesh: jax.sharding.Mesh) -> steps.TrainState:
        """Shapes, dtypes and shardings of the state, without computing anything."""
        state = jax.eval_shape(self.init_state, 0)
        whole = sharding.replicated(mesh)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), state)


def assemble(config: ConfigDict) -> Parts:
    """Builds the parts of a run and checks all that can be checked before anything is compiled.

    Raises:
        UserError: a value that isn't allowed, named by its key.
    """
    configs.check(config)
    dataset = catalog.get(config.data.name)
    task = tasks.get(config.task)
    model = models.build(num_classes=dataset.num_classes, dtype=config.precision, **config.model)
    model.check_image_shape(dataset.image_shape)
    variables = jax.eval_shape(
        model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *dataset.image_shape), jnp.float32)
    )
    params, _ = models.split(variables)
    labels = label_tree(config, params)
    train_examples = max(1, round(config.data.subset * dataset.train_examples))
    total_steps = configs.total_steps(config, train_examples)
    schedule = optim.build_schedule(config, total_steps)
    return Parts(
        dataset=dataset,
        model=model,
        task=task,
        labels=labels,
        summary=masks.summary(params, labels),
        train_examples=train_examples,
        steps_per_epoch=train_examples // config.batch_size,
        total_steps=total_steps,
        schedule=schedule,
        optimizer=optim.build_optimizer(config, schedule, labels),
    )


def label_tree(config: ConfigDict, params: Any) -> Any:
    """The tree of labels that ``config.train``, or else ``config.mode``, asks for."""
    if config.train is None:
        check_choice("config.mode", config.mode, masks.MODES)
        selector = masks.MODES[config.mode]
    else:
        selector = config.train
    try:
        return masks.labels(params, masks.trainable(selector), strict=True)
    except masks.MaskError as error:
        raise UserError(f"config.{'mode' if config.train is None else 'train'}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained workdir, for a notebook: ``run.model.apply(run.variables, images)``.

    Attributes:
        config: as it was trained.
        model: the Linen module.
        variables: parameters by role and ``batch_stats``.
        step: of the checkpoint that they come from.
    """

    config: ConfigDict
    model: nn.Module
    variables: dict[str, Any]
    step: int


def load(workdir: epath.PathLike) -> Run:
    """Reads a workdir's latest checkpoint.

    Raises:
        UserError: no run there, or no checkpoint.
    """
    config = read_config(workdir)
    parts = assemble(config)
    with Checkpoints(workdir) as checkpoints:
        state = checkpoints.restore(parts.abstract_state(sharding.make_mesh(jax.devices()[:1])))
    variables = {**state.params, "batch_stats": state.batch_stats}
    return Run(config=config, model=parts.model, variables=variables, step=int(state.step))
