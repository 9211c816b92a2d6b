"""Assembly of a run from its config, and loading of a trained run from its workdir."""

import dataclasses
import hashlib
import html
import json
import logging
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from etils import epath
from flax import linen as nn
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from randmix import config as configs
from randmix import masks, models
from randmix.data import catalog, feeds
from randmix.data.augment import Augmentation
from randmix.errors import UserError
from randmix.models import stack
from randmix.runtime import progress, sharding
from randmix.training import groups, optim, steps, tasks
from randmix.workdir import artifacts, json_files, metrics_log
from randmix.workdir.checkpoints import BEST, FOLDER, Checkpoints
from randmix.workdir.manifest import CONFIG, VALUES


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of a run in which the same groups are trained, with one compiled step.

    Attributes:
        start_step: number of steps taken when it begins.
        labels: the label tree, with groups yet to start frozen.
        model: the run's model; with ``config.model.scan``, scanned over blocks with equal labels.
        optimizer: the optimizer of all groups; its state has the same structure in every phase.
    """

    start_step: int
    labels: Any
    model: nn.Module
    optimizer: optax.GradientTransformation


@dataclasses.dataclass(frozen=True)
class Parts:
    """The components of a run, without its arrays.

    Attributes:
        mode: what is trained, as one word: the mode, the selector or "groups".
        dataset: the data set's entry in the catalog.
        model: the Linen module.
        task: scores the model's outputs.
        augmentation: applied to training batches.
        groups: the trained groups.
        labels: the label of every parameter: its group's, or "freeze".
        channel_masks: for each partly learned parameter, a mask of its learned filters; None for
            the others.
        phases: the phase from the first step, and one more for each later start of a group.
        summary: the table of parameters with their labels.
        identity: what identifies a checkpoint's run, see ``identity``.
        train_examples: number of training examples, after ``data.subset`` and ``data.validation``.
        validation_examples: number of held-out examples, which follow them in the training split.
        steps_per_epoch: number of full batches in an epoch; the remaining examples are dropped.
        total_steps: length of the run.
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
    identity: dict[str, Any]
    train_examples: int
    validation_examples: int
    steps_per_epoch: int
    total_steps: int
    schedule: optax.Schedule

    def init_state(self, seed: int | jax.Array) -> steps.TrainState:
        """Returns the state before the first step, a pure function of the seed."""
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
        """The table of parameters, followed by each group's selector, start and settings."""
        return "\n".join([str(self.summary), "", *map(str, self.groups)])

    def phase_at(self, step: int) -> Phase:
        """Returns the phase of the step that follows ``step`` others."""
        return [phase for phase in self.phases if phase.start_step <= step][-1]

    def abstract_state(self, mesh: jax.sharding.Mesh) -> steps.TrainState:
        """Returns the state's shapes, dtypes and shardings without computing anything."""
        state = jax.eval_shape(self.init_state, 0)
        whole = sharding.replicated(mesh)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), state)


def assemble(config: ConfigDict) -> Parts:
    """Builds the parts of a run and checks everything that can be checked before compiling.

    Raises:
        UserError: a value that isn't allowed; the message names its key.
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
            f"config.data.validation: got {config.data.validation}, which is none of the {used} "
            "training examples; set a larger one, or 0"
        )
    train_examples = used - validation_examples
    total_steps = configs.total_steps(config, train_examples)
    steps_per_epoch = train_examples // config.batch_size
    trained = _groups(config, steps_per_epoch, total_steps)
    key, mode = _source(config)
    labels, channel_masks = groups.label_tree(params, trained, key)
    return Parts(
        mode=mode,
        dataset=dataset,
        model=model.clone(scan=stack.equal_runs(params)) if config.model.scan else model,
        task=task,
        augmentation=feeds.augmentation(config, dataset),
        groups=trained,
        labels=labels,
        channel_masks=channel_masks,
        phases=tuple(
            _phase(config, start, params, labels, model, trained, total_steps)
            for start in sorted({group.start_step for group in trained})
        ),
        summary=masks.summary(params, labels, channel_masks),
        identity=identity(config, labels),
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


def _source(config: ConfigDict) -> tuple[str, str]:
    return groups.source(config.mode, config.train, config.groups)


def _groups(config: ConfigDict, steps_per_epoch: int, total_steps: int) -> tuple[groups.Group, ...]:
    return groups.build(
        config.mode,
        config.train,
        config.groups,
        optimizer_keys=config.optimizer,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
    )


def identity(config: Mapping[str, Any], labels: Any = None) -> dict[str, Any]:
    """Returns what the manifests of a run's checkpoints say about it, as JSON.

    Args:
        config: the run's config, or the content of its ``config.json``.
        labels: the label tree, or None to leave its hash out.
    """
    return {
        "seed": config["seed"],
        CONFIG: configs.fingerprint(config),
        VALUES: configs.identity(config),
        **({} if labels is None else {"labels": _hash(labels)}),
    }


def _hash(labels: Any) -> str:
    text = json.dumps(flatten_dict(labels, sep="/"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _build_model(config: ConfigDict, num_classes: int | None) -> nn.Module:
    """Builds the config's model with the output layer of its task."""
    if config.task == "unshuffling" and config.model.name == "resnet":
        raise UserError(
            "config.model.name: got 'resnet', allowed with the task unshuffling is convmixer"
        )
    readout = tasks.model_arguments(config.task, num_classes)
    # The blocks to scan over are only known once there are parameters.
    arguments = {key: value for key, value in config.model.items() if key != "scan"}
    return models.build(dtype=config.precision, **readout, **arguments)


_SCORES = ("test_accuracy", "test_psnr")


@dataclasses.dataclass(frozen=True, repr=False)
class Run:
    """A trained run, for example in a notebook: ``run.model.apply(run.variables, images)``.

    Attributes:
        config: the config that it was trained with.
        model: the Linen module.
        variables: parameters by role and ``batch_stats``.
        step: the step of the checkpoint that they come from.
        workdir: the folder that it was loaded from.
        total_steps: the length of the run; None if it is unfinished and set in epochs.
        evaluation: "step" and the metrics ("test_accuracy" and so on) of the last evaluation up to
            ``step``; None if there was none.
    """

    config: ConfigDict
    model: nn.Module
    variables: dict[str, Any]
    step: int
    workdir: str = ""
    total_steps: int | None = None
    evaluation: dict[str, Any] | None = None

    def __repr__(self) -> str:
        rows = self._rows()
        width = max(map(len, rows))
        lines = [f"  {name:{width}}  {value}" for name, value in rows.items()]
        return "\n".join([f"Run({self.workdir})", *lines])

    def _repr_html_(self) -> str:
        """The same as ``repr``, as an HTML table for notebooks."""
        rows = "".join(
            f'<tr><th style="text-align:left">{html.escape(name)}</th>'
            f'<td style="text-align:left">{html.escape(value)}</td></tr>'
            for name, value in self._rows().items()
        )
        return f"<table><caption>Run({html.escape(self.workdir)})</caption>{rows}</table>"

    def _rows(self) -> dict[str, str]:
        config = self.config
        sizes = [f"{key} {config.model[key]}" for key in ("width", "depth") if key in config.model]
        params, _ = models.split(self.variables)
        counts = masks.summary(params, *_labels_and_masks(config, self.variables))
        rows = {
            "model": ", ".join([config.model.name, *sizes]),
            "data": str(config.data.name),
            "trained": f"{_source(config)[1]}: {counts.trainable:,} of "
            f"{counts.trainable + counts.frozen:,} parameters",
            "step": f"{self.step:,}" + (f" of {self.total_steps:,}" if self.total_steps else ""),
        }
        evaluation = self.evaluation or {}
        at = "" if evaluation.get("step") == self.step else f", at step {evaluation.get('step')}"
        scores = {name: evaluation[name] for name in _SCORES if name in evaluation}
        for name, value in progress.metrics_row(scores).items():
            rows[name.replace("_", " ")] = value + at
        return rows


def load(workdir: epath.PathLike, *, best: bool = False) -> Run:
    """Loads a workdir's latest checkpoint; needs neither its data set nor its optimizer.

    Args:
        workdir: the run's folder.
        best: load the checkpoint that scored best on the held-out examples, of a run with
            ``data.validation``.

    Raises:
        UserError: no run there, no checkpoint, or a checkpoint of another run.
    """
    config = artifacts.read_config(workdir)
    if best and not config.data.validation:
        raise UserError(
            f"{workdir}: no examples were held out to choose the best by; "
            "train with data.validation"
        )
    written = identity(artifacts.read_config_values(workdir))
    with Checkpoints(workdir, about=written, folder=BEST if best else FOLDER) as checkpoints:
        about, variables = checkpoints.restore_variables()
    step = about["step"]
    # A converted model may have no data set in the catalog; its weights give the classes.
    classifier = variables["head"].get("classifier")
    num_classes = None if classifier is None else classifier["bias"].shape[0]
    model = _build_model(config, num_classes)
    _check_fits(workdir, config, model, variables)
    _check_labels(workdir, config, variables, about)
    result = _readable_result(workdir)
    return Run(
        config=config,
        model=model,
        variables=variables,
        step=step,
        workdir=str(workdir),
        total_steps=config.steps or result.get("step"),
        evaluation=_last_evaluation(epath.Path(workdir), step, result),
    )


def _last_evaluation(
    workdir: epath.Path, step: int, result: dict[str, Any]
) -> dict[str, Any] | None:
    """Returns "step" and metrics of the last evaluation up to ``step``, or None."""
    if result.get("step") == step:
        return {"step": step, **result["metrics"]}
    rows = [row for row in metrics_log.read(workdir / artifacts.METRICS) if row["step"] <= step]
    return next((row for row in reversed(rows) if "test_loss" in row), None)


def _check_fits(
    workdir: epath.PathLike, config: ConfigDict, model: nn.Module, saved: dict[str, Any]
) -> None:
    """Raises a UserError if a checkpoint doesn't hold the variables of the config's model."""
    if config.data.name is None:  # one patch [p, p, C] of a converted ConvMixer's stem
        image_shape = saved["spatial"]["stem"]["kernel"].shape[:3]
    else:
        image_shape = catalog.image_shape(config.data.name, config.data.image_size)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    expected = jax.eval_shape(model.init, jax.random.key(0), images)
    got, allowed = _shapes(saved), _shapes(expected)
    for path in sorted(got.keys() | allowed.keys()):
        if got.get(path) != allowed.get(path):
            raise UserError(
                f"{workdir}: the checkpoint doesn't hold this config's parameters ({path}: got "
                f"shape {got.get(path)}, expected {allowed.get(path)}); use the config that it was "
                "trained with"
            )


def _check_labels(
    workdir: epath.PathLike, config: ConfigDict, variables: dict[str, Any], about: dict[str, Any]
) -> None:
    """Raises a UserError if a checkpoint's parameters had other labels than the config's now."""
    labels = _hash(_labels_and_masks(config, variables)[0])
    if about.get("labels", labels) != labels:
        raise UserError(
            f"{workdir}: step {about['step']} was trained with other labels (hash "
            f"{about['labels']}) than the config gives now ({labels}); "
            "use the version of randmix that it was trained with"
        )


def _labels_and_masks(config: ConfigDict, variables: dict[str, Any]) -> tuple[Any, Any]:
    """Returns the label tree and the channel masks of a config's groups."""
    params, _ = models.split(variables)
    # Labels don't depend on when a group starts.
    trained = _groups(config, steps_per_epoch=1, total_steps=sys.maxsize)
    return groups.label_tree(params, trained, _source(config)[0])


def _readable_result(workdir: epath.PathLike) -> dict[str, Any]:
    """Returns result.json, which a model can do without: {} if it is missing or damaged."""
    try:
        return artifacts.read_result(workdir) or {}
    except json_files.Damaged as damaged:
        logging.getLogger(__name__).warning("%s", damaged)
        return {}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves: dict[str, Any] = flatten_dict(tree, sep="/")
    return {path: leaf.shape for path, leaf in leaves.items()}
