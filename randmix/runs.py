"""From a config to the parts of a run; and a run's workdir back to a model and its variables."""

import dataclasses
import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import optax
from etils import epath
from flax import linen as nn
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from randmix import config as configs
from randmix import groups, masks, models, optim, sharding, steps, tasks
from randmix.artifacts import read_config
from randmix.checkpoint import BEST, FOLDER, Checkpoints
from randmix.data import catalog, feeds
from randmix.data.augment import Augmentation
from randmix.errors import UserError
from randmix.models import stack


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of a run in which the same groups are trained: one compiled step.

    Attributes:
        start_step: steps taken when it begins.
        labels: the label tree, groups yet to start frozen.
        model: the run's; with ``config.model.scan``, scanned over blocks whose labels are equal.
        optimizer: of all groups; the state has the same structure in every phase.
    """

    start_step: int
    labels: Any
    model: nn.Module
    optimizer: optax.GradientTransformation


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a run is made of; everything but arrays.

    Attributes:
        mode: what is trained, in a word: the mode, the selector or "groups".
        dataset: the catalogue's entry.
        model: the Linen module.
        task: how its outputs are scored.
        augmentation: what is done to training batches.
        groups: what is trained.
        labels: the label of every parameter, that of its group or "freeze".
        channel_masks: inside partly learned parameters, which filters are; None for the others.
        phases: from the first step on; a further one for each later start of a group.
        summary: the table of parameters with their labels.
        identity: what a checkpoint belongs to: hashes of the config and of the label tree.
        train_examples: how many there are, after ``data.subset`` and ``data.validation``.
        validation_examples: how many follow them in the training split, held out.
        steps_per_epoch: whole batches in an epoch; what is left over is dropped.
        total_steps: how many the run takes.
        schedule: step -> learning rate, for the log.
    """

    mode: str
    dataset: catalog.DataSet
    model: nn.Module
    task: tasks.Task
    augmentation: Augmentation
    groups: tuple[groups.Group, ...]
    labels: Any
    channel_masks: Any
    phases: tuple[Phase, ...]
    summary: masks.Summary
    identity: dict[str, str]
    train_examples: int
    validation_examples: int
    steps_per_epoch: int
    total_steps: int
    schedule: optax.Schedule

    def init_state(self, seed: int | jax.Array) -> steps.TrainState:
        """The state before the first step; a pure function of the seed."""
        return steps.init_state(
            jax.random.key(seed),
            self.dataset.image_shape,
            model=self.model,
            task=self.task,
            optimizer=self.phases[0].optimizer,
            labels=self.labels,
        )

    @property
    def description(self) -> str:
        """The table of parameters, and what each group is and when it starts."""
        return "\n".join([str(self.summary), "", *map(str, self.groups)])

    def phase_at(self, step: int) -> Phase:
        """The phase of the step that follows ``step`` others."""
        return [phase for phase in self.phases if phase.start_step <= step][-1]

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
    dataset = catalog.get(config.data.name, config.data.data_dir, image_size=config.data.image_size)
    task = tasks.build(
        config.task, image_shape=dataset.image_shape, permutation_seed=config.permutation_seed
    )
    model = _build_model(config, dataset.num_classes)
    model.check_image_shape(dataset.image_shape)
    variables = jax.eval_shape(
        model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *dataset.image_shape), jnp.float32)
    )
    params, _ = models.split(variables)
    used = max(1, round(config.data.subset * dataset.train_examples))
    validation_examples = round(config.data.validation * used)
    if config.data.validation and not validation_examples:
        raise UserError(
            f"config.data.validation: got {config.data.validation}, which is none of the {used} training examples; "
            "set a larger one, or 0"
        )
    train_examples = used - validation_examples
    total_steps = configs.total_steps(config, train_examples)
    steps_per_epoch = train_examples // config.batch_size
    trained = groups.from_config(config, steps_per_epoch, total_steps)
    labels, channel_masks = groups.label_tree(params, trained, groups.source(config))
    return Parts(
        mode=config.train or config.mode if config.groups is None else "groups",
        dataset=dataset,
        model=model.clone(scan=stack.equal_runs(params)) if config.model.scan else model,
        task=task,
        augmentation=feeds.augmentation(config, dataset),
        groups=trained,
        labels=labels,
        channel_masks=channel_masks,
        phases=tuple(
            _phase(config, start, params, labels, model, trained, total_steps)
            for start in groups.phase_starts(trained)
        ),
        summary=masks.summary(params, labels, channel_masks),
        identity={"config": configs.fingerprint(config), "labels": _hash(labels)},
        train_examples=train_examples,
        validation_examples=validation_examples,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        schedule=optim.build_schedule(config.schedule, config.optimizer.learning_rate, total_steps),
    )


def _phase(
    config: ConfigDict,
    start: int,
    params: Any,
    labels: Any,
    model: nn.Module,
    trained: tuple[groups.Group, ...],
    total_steps: int,
) -> Phase:
    at_start = groups.labels_at(labels, trained, start)
    if config.model.scan:
        model = model.clone(scan=stack.equal_runs(params, at_start))
    optimizer = optim.build_optimizer(config, total_steps, labels, trained, start)
    return Phase(start_step=start, labels=at_start, model=model, optimizer=optimizer)


def _hash(labels: Any) -> str:
    text = json.dumps(flatten_dict(labels, sep="/"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _build_model(config: ConfigDict, num_classes: int | None) -> nn.Module:
    """The config's model with the read-out that its task takes."""
    if config.task == "unshuffling" and config.model.name == "resnet":
        raise UserError(
            "config.model.name: got 'resnet', allowed with the task unshuffling is convmixer"
        )
    readout = tasks.model_arguments(config.task, num_classes)
    # Which blocks a scan may take is known once there are parameters.
    arguments = {key: value for key, value in config.model.items() if key != "scan"}
    return models.build(dtype=config.precision, **readout, **arguments)


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


def load(workdir: epath.PathLike, *, best: bool = False) -> Run:
    """Reads a workdir's latest checkpoint; neither its data set nor its optimizer is needed.

    Args:
        workdir: the run's folder.
        best: read the one that was best on the held-out examples, of a run with ``data.validation``.

    Raises:
        UserError: no run there, no checkpoint, or one of another model.
    """
    config = read_config(workdir)
    if best and not config.data.validation:
        raise UserError(
            f"{workdir}: no examples were held out to choose the best by; train with data.validation"
        )
    with Checkpoints(workdir, folder=BEST if best else FOLDER) as checkpoints:
        step, variables = checkpoints.restore_variables()
    # A converted model may be of no data set in the catalogue; the weights know its classes.
    classifier = variables["head"].get("classifier")
    num_classes = None if classifier is None else classifier["bias"].shape[0]
    model = _build_model(config, num_classes)
    _check_fits(workdir, config, model, variables)
    return Run(config=config, model=model, variables=variables, step=step)


def _check_fits(
    workdir: epath.PathLike, config: ConfigDict, model: nn.Module, saved: dict[str, Any]
) -> None:
    """Raises a UserError where a checkpoint doesn't hold the variables that the config's model has."""
    if config.data.name is None:  # one patch [p, p, C] of a converted ConvMixer's stem
        image_shape = saved["spatial"]["stem"]["kernel"].shape[:3]
    else:
        image_shape = catalog.image_shape(config.data.name, config.data.image_size)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    expected = jax.eval_shape(model.init, jax.random.key(0), images)
    got, allowed = (
        {path: leaf.shape for path, leaf in flatten_dict(tree, sep="/").items()}
        for tree in (saved, expected)
    )
    for path in sorted(got.keys() | allowed.keys()):
        if got.get(path) != allowed.get(path):
            raise UserError(
                f"{workdir}: the checkpoint doesn't hold this config's parameters ({path}: got shape "
                f"{got.get(path)}, expected {allowed.get(path)}); use the config that it was trained with"
            )
