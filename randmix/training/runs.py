"""Assembly of a run from its config: the one place where a config becomes a run.

It turns every key into an option and checks what can be checked first, hence its length.
"""

import dataclasses
import hashlib
import json
import logging
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import optax
from etils import epath
from flax.traverse_util import flatten_dict

from randmix import attacks, masks, models, parts
from randmix import config as configs
from randmix.config import Config
from randmix.data import catalog, feeds, photographs, reader
from randmix.data.augment import Augmentation
from randmix.errors import UserError
from randmix.models import Model, OwnModel, counts, own, stack
from randmix.models.filters import Transplant
from randmix.runtime import sharding
from randmix.training import groups, optim, steps, tasks, transplants
from randmix.workdir import artifacts, manifest


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
    model: Model
    optimizer: optax.GradientTransformation


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Which examples are read, and how.

    Attributes:
        dataset: the data set's entry in the catalog.
        data_dir: TFDS's data folder; None for its default.
        reading: how the photographs of a streamed set are read.
        train_examples: number of training examples, after ``data.subset`` and ``data.validation``.
        validation_examples: number of held-out examples, which follow them in the training split.
        pgd_examples: number of test examples for the PGD of adversarial training.
    """

    dataset: catalog.DataSet
    data_dir: str | None
    reading: reader.Reading
    train_examples: int
    validation_examples: int
    pgd_examples: int

    def open(self) -> tuple[feeds.Split, feeds.Split]:
        """Opens the training and the test split, in memory if the data set is of a kind that fits.

        Raises:
            UserError: the data set isn't prepared, or it is damaged.
        """
        train, test = (
            feeds.Split(self.dataset, split, self.data_dir, self.reading)
            for split in ("train", "test")
        )
        return train, test


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """What the compiled steps compute.

    Attributes:
        model: the model.
        task: scores the model's outputs.
        batch_size: examples per global batch.
        accumulate: number of micro-batches into which it is divided.
        augmentation: applied to training batches.
        label_smoothing: share of each target that is spread over all classes.
        ema: decay of the moving average of the weights; 0 for none.
        perturb, perturb_test: the attacks of adversarial training, or None.
        share: fraction of each batch that is attacked, from its start.
        draws: whether the model draws in training, as dropout does.
        labels: the label of every parameter: its group's, or "freeze".
        channel_masks: for each partly learned parameter, a mask of its learned filters; None for
            the others.
        phases: the phase from the first step, and one more for each later start of a group.
    """

    model: Model
    task: tasks.Task
    batch_size: int
    accumulate: int
    augmentation: Augmentation
    label_smoothing: float
    ema: float
    perturb: attacks.Perturb | None
    perturb_test: attacks.Perturb | None
    share: float
    draws: bool
    labels: Any
    channel_masks: Any
    phases: tuple[Phase, ...]

    @property
    def micro_batch_size(self) -> int:
        """Examples per micro-batch, and per batch of an evaluation, which then needs no more."""
        return self.batch_size // self.accumulate


@dataclasses.dataclass(frozen=True)
class LoopOptions:
    """How long a run takes, and how often it logs, evaluates and saves, in steps.

    Attributes:
        total_steps: length of the run.
        steps_per_epoch: number of full batches in an epoch; the remaining examples are dropped.
        schedule: step -> learning rate, for the log.
        log_every, eval_every, checkpoint_every: steps between two of each.
    """

    total_steps: int
    steps_per_epoch: int
    schedule: optax.Schedule
    log_every: int
    eval_every: int
    checkpoint_every: int

    def evaluates_after(self, step: int) -> bool:
        """Whether the test split is evaluated after a step."""
        return step > 0 and (step == self.total_steps or step % self.eval_every == 0)


@dataclasses.dataclass(frozen=True)
class Record:
    """What the workdir says about the run.

    Attributes:
        config: the config's values, nested, as in ``config.json``.
        changed: those that aren't the defaults, by dotted key, as they were asked for: before the
            data and the machine decided what was left to them.
        identity: what identifies a checkpoint's run, see ``identity``.
        mode: what is trained, as one word: the mode, the selector or "groups".
        groups: the trained groups.
        summary: the table of parameters with their labels.
        keep_checkpoints: the number of checkpoints that are kept.
        tensorboard: whether TensorBoard's events are written.
        wandb_project: the project at Weights & Biases, or None.
    """

    config: Mapping[str, Any]
    changed: Mapping[str, Any]
    identity: dict[str, Any]
    mode: str
    groups: tuple[groups.Group, ...]
    summary: masks.Summary
    keep_checkpoints: int
    tensorboard: bool
    wandb_project: str | None

    @property
    def description(self) -> str:
        """The table of parameters, each group's selector, start and settings, and the notes."""
        return "\n".join([str(self.summary), "", *map(str, self.groups), *self.notes])

    @property
    def notes(self) -> list[str]:
        """What the modes mean for this model and isn't plain from their names, a line each."""
        spatial: dict[str, bool] = {}
        for row in self.summary.rows:
            for block in filter(stack.is_block, row.path.split("/")):
                spatial[block] = spatial.get(block, False) or row.role == "spatial"
        if all(spatial.values()):
            return []
        return [
            f"{[*spatial.values()].count(False)} of {len(spatial)} blocks have no spatial weights: "
            "in these, chans trains what full does, and floor what space does"
        ]


@dataclasses.dataclass(frozen=True)
class Parts:
    """The components of a run, without its arrays, grouped by who uses them.

    Attributes:
        seed: seed of the initial weights, the data order and every augmentation.
        data: for the feeds.
        step: for the compiled steps.
        loop: for the loop.
        record: for the workdir.
    """

    seed: int
    data: DataOptions
    step: StepOptions
    loop: LoopOptions
    record: Record

    def init_state(self, seed: int | jax.Array) -> steps.TrainState:
        """Returns the state before the first step, a pure function of the seed."""
        return steps.init_state(
            jax.random.key(seed),
            self.data.dataset.image_shape,
            model=self.step.model,
            task=self.step.task,
            optimizer=self.step.phases[0].optimizer,
            labels=self.step.labels,
            ema=self.step.ema > 0,
        )

    def phase_at(self, step: int) -> Phase:
        """Returns the phase of the run once ``step`` steps have been taken."""
        return [phase for phase in self.step.phases if phase.start_step <= step][-1]

    def abstract_state(self, mesh: jax.sharding.Mesh) -> steps.TrainState:
        """Returns the state's shapes, dtypes and shardings without computing anything."""
        state = jax.eval_shape(self.init_state, 0)
        whole = sharding.replicated(mesh)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), state)


def assemble(config: Config, workdir: epath.PathLike | None = None) -> Parts:
    """Builds the parts of a run and checks everything that can be checked before compiling.

    Args:
        config: the run's config.
        workdir: the folder in which the run is about to be trained or resumed, or None. Without it,
            filters from a run that can't be read are NaN: enough to count and to compile.

    Raises:
        UserError: a value that isn't allowed; the message names its key.
    """
    config = configs.complete(config.copy_and_resolve_references())
    configs.check(config)
    changed = configs.changed(config)
    config, dataset, filters = _resolve(config, workdir)
    if filters is not None:
        changed["model.filters"] = filters.text
    if filters is not None and workdir is not None:
        transplants.require(filters, workdir)
    data = _data_options(config, dataset)
    image_shape = data.dataset.image_shape
    bank = None if filters is None else filters.bank
    model = build_model(config, data.dataset.num_classes, bank, image_shape=image_shape)
    model.check_image_shape(image_shape)
    task = build_task(config, model, image_shape, data.dataset.num_classes)
    _check_metrics(config, task)
    params, _ = models.split(counts.abstract_variables(model, image_shape))
    total_steps = configs.total_steps(config, data.train_examples)
    steps_per_epoch = data.train_examples // config.batch_size
    trained = _groups(config, steps_per_epoch, total_steps)
    key, mode = source(config)
    labels, channel_masks = groups.label_tree(params, trained, key)
    named = {"code_dir": config.code_dir, "user": config.user.to_dict()}
    schedule = partial(optim.build_schedule, config.schedule, total_steps, **named)

    def scanned(labels: Any = None) -> Model:
        if isinstance(model, OwnModel) or not config.model.scan:
            return model
        return model.clone(scan=stack.equal_runs(params, labels))

    def phase(start: int) -> Phase:
        at_start = groups.labels_at(labels, trained, start)
        optimizer = optim.build_optimizer(
            config.optimizer, schedule, labels, trained, start, **named
        )
        named_by = {config.optimizer.name, *(group.optimizer.get("name") for group in trained)}
        if others := sorted(named_by - {None, *configs.OPTIMIZERS}):
            trainable, _ = masks.partition(params, labels)
            optim.check(optimizer, ", ".join(others), trainable)
        return Phase(start, at_start, scanned(at_start), optimizer)

    train_attack, test_attack = _attacks(config)
    return Parts(
        seed=config.seed,
        data=data,
        step=StepOptions(
            model=scanned(),
            task=task,
            batch_size=config.batch_size,
            accumulate=config.accumulate,
            augmentation=augmentation(config, data.dataset),
            label_smoothing=config.label_smoothing,
            ema=config.ema,
            perturb=train_attack,
            perturb_test=test_attack,
            share=config.defense.share,
            draws=isinstance(model, OwnModel),
            labels=labels,
            channel_masks=channel_masks,
            phases=tuple(phase(start) for start in sorted({g.start_step for g in trained})),
        ),
        loop=LoopOptions(
            total_steps=total_steps,
            steps_per_epoch=steps_per_epoch,
            schedule=schedule(config.optimizer.learning_rate),
            log_every=config.log_every,
            eval_every=config.eval_every,
            checkpoint_every=config.checkpoint_every,
        ),
        record=Record(
            config=config.to_dict(),
            changed=changed,
            identity=identity(config, labels),
            mode=mode,
            groups=trained,
            summary=masks.summary(params, labels, channel_masks),
            keep_checkpoints=config.keep_checkpoints,
            tensorboard=config.tensorboard,
            wandb_project=config.wandb_project,
        ),
    )


def find_dataset(config: Config) -> catalog.DataSet:
    """Looks up a config's data set.

    Raises:
        UserError: as ``catalog.get`` does.
    """
    data = config.data
    if config.code_dir:
        parts.look_in(config.code_dir)
    return catalog.get(
        data.name, data.data_dir, image_size=data.image_size, in_memory=data.in_memory
    )


def resolve(config: Config) -> tuple[Config, catalog.DataSet]:
    """Returns a copy of a config in which nothing is left for the data or the machine to decide.

    What was decided is then part of the run: where it can't be had again, a resumed run is refused.
    Only ``model.filters = "from=WORKDIR"`` stays as it is where that run isn't finished; once it
    is, the same config resolves to the one with the hash of its filters.

    Args:
        config: the run's config.

    Returns:
        The config, as in the run's ``config.json``, and its data set.

    Raises:
        UserError: as ``catalog.get`` does, or the decoder isn't installed.
    """
    return _resolve(config, None)[:2]


def _resolve(
    config: Config, workdir: epath.PathLike | None
) -> tuple[Config, catalog.DataSet, transplants.Source | None]:
    """As ``resolve``, with the source of transplanted filters.

    If they come from a run that is gone, the workdir's ``config.json`` has their hash.
    """
    dataset = find_dataset(config)
    resolved = config.copy_and_resolve_references()
    data = resolved.data
    data.in_memory = "off" if dataset.streamed else "on"
    if dataset.streamed:
        data.image_size = dataset.image_shape[0]
        data.decoder = photographs.choose_decoder(data.decoder)
    else:  # what only photographs depend on
        data.image_size, data.decoder, data.interpolation = None, "auto", "fast"
    model = complete(resolved).model
    left_open = [key for key in ("mean", "std") if model.get(key, ()) is None]
    if left_open and dataset.statistics is None:
        logging.getLogger(__name__).warning(
            "the channel statistics of %s are unknown, so images aren't normalised; "
            "`python -m randmix prepare %s` records them, or set config.model.mean and std",
            dataset.name,
            dataset.name,
        )
    mean, std = dataset.statistics or ((), ())
    with model.ignore_type():
        for key in left_open:
            model[key] = {"mean": mean, "std": std}[key]
    if is_own(resolved):
        return resolved, dataset, None
    source = transplants.find(model.filters, workdir)
    model.filters = source.text if source else model.filters
    return resolved, dataset, source


def is_own(config: Config) -> bool:
    """Whether a config's model is the user's own."""
    return parts.is_own(config.model.name)


def complete(config: Config) -> Config:
    """Adds all arguments of parts that aren't ours, with their defaults; see ``configs.complete``.

    Args:
        config: the config; modified in place and returned.

    Raises:
        UserError: a part that isn't there, or an argument that it doesn't take.
    """
    usual = configs.default()
    with config.ignore_type():
        if is_own(config):
            name = config.model.name
            values = own.complete(name, config.code_dir, _own_arguments(config))
            config.model = {"name": name, **values}
        for group in ("optimizer", "schedule"):
            if configs.is_open(config, group):
                options, known = config[group].to_dict(), usual[group].to_dict()
                config[group] = optim.complete(group, options, known, config.code_dir)
    return configs.complete(config)


def _own_arguments(config: Config) -> dict[str, Any]:
    return {key: value for key, value in config.model.to_dict().items() if key != "name"}


def _data_options(config: Config, dataset: catalog.DataSet) -> DataOptions:
    catalog.require_split(dataset, "train")
    side, size = dataset.shorter_side, dataset.image_shape[0]
    if dataset.streamed and side is not None and 2 * side < size:
        logging.getLogger(__name__).warning(
            "half of the images of %s have a side of %d pixels or less, and are enlarged to %d x "
            "%d; set a smaller config.data.image_size",
            dataset.name,
            side,
            size,
            size,
        )
    used = max(1, round(config.data.subset * dataset.train_examples))
    held_out = round(config.data.validation * used)
    if config.data.validation and not held_out:
        raise UserError(
            f"config.data.validation: got {config.data.validation}, which is none of the {used} "
            "training examples; set a larger one, or 0"
        )
    if held_out == used:
        raise UserError(
            f"config.data.validation: got {config.data.validation}, which is all of the {used} "
            "training examples; set a smaller one"
        )
    return DataOptions(
        dataset=dataset,
        data_dir=config.data.data_dir,
        reading=reading(config, dataset),
        train_examples=used - held_out,
        validation_examples=held_out,
        pgd_examples=config.defense.pgd_examples,
    )


def reading(config: Config, dataset: catalog.DataSet) -> reader.Reading:
    """Returns how a config reads the photographs of a data set."""
    values = {**config.data, "image_size": dataset.image_shape[0]}
    return reader.Reading(**_fields(reader.Reading, values))


def augmentation(config: Config, dataset: catalog.DataSet) -> Augmentation:
    """Returns a config's augmentation on the devices; photographs are cropped when decoded."""
    mean, std = dataset.statistics or ((), ())  # of a model that isn't given them
    given = {"mean": config.model.get("mean", mean), "std": config.model.get("std", std)}
    values = _fields(Augmentation, {**config.data, **given})
    whole = Augmentation(**values)  # it checks all values
    return dataclasses.replace(whole, crop_scale=1.0) if dataset.streamed else whole


def _fields(options: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: values[field.name] for field in dataclasses.fields(options)}


def _attacks(config: Config) -> tuple[attacks.Perturb | None, attacks.Perturb | None]:
    """Returns the attack of adversarial training and that of its evaluations; None without it."""
    defense = config.defense
    if not defense.epsilon:
        return None, None
    epsilon, pgd_steps = defense.epsilon / 255, defense.pgd_steps
    return (
        partial(attacks.fgsm, epsilon=epsilon),
        partial(attacks.pgd, epsilon=epsilon, steps=pgd_steps, step_size=2.5 / pgd_steps),
    )


def source(config: Config) -> tuple[str, str]:
    """Returns the key that defines what is trained, and a word or selector for it."""
    return groups.source(config.mode, config.train, config.groups)


def _groups(config: Config, steps_per_epoch: int, total_steps: int) -> tuple[groups.Group, ...]:
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
        manifest.CONFIG: configs.fingerprint(config),
        manifest.VALUES: configs.identity(config),
        **({} if labels is None else {"labels": labels_hash(labels)}),
    }


def labels_hash(labels: Any) -> str:
    """Returns eight hex digits that identify a label tree."""
    text = json.dumps(flatten_dict(labels, sep="/"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def build_model(
    config: Config,
    num_classes: int | None,
    transplant: Transplant | None = None,
    *,
    image_shape: tuple[int, int, int] | None = None,
) -> Model:
    """Builds the config's model with the output layer of its task.

    Args:
        config: the run's config.
        num_classes: of its data set.
        transplant: the filters, if they come from another run; a model whose variables are loaded
            does without.
        image_shape: (height, width, channels), for a model of the user's own that takes it.

    Raises:
        UserError: a model that the task can't have, or an argument that isn't allowed.
    """
    if config.task == "unshuffling" and config.model.name != "convmixer":
        raise UserError(
            f"config.model.name: got {config.model.name!r}, allowed with the task unshuffling is "
            "convmixer"
        )
    readout = tasks.model_arguments(config.task, num_classes)
    if is_own(config):
        dtype = models.DTYPES[config.precision]
        return own.build(
            config.model.name,
            folder=config.code_dir,
            given=_own_arguments(config),
            known={**readout, "image_shape": image_shape, "dtype": dtype},
            roles=config.roles.to_dict(),
        )
    # The blocks to scan over are only known once there are parameters.
    arguments = {key: value for key, value in config.model.items() if key != "scan"}
    arguments |= {name: arguments[name] or () for name in ("mean", "std")}
    if (named := configs.transplant(config.model.filters)) is not None:
        arguments["filters"] = transplant or Transplant(named[1] or "", None)
    return models.build(dtype=config.precision, **readout, **arguments)


def build_task(
    config: Config,
    model: Model,
    image_shape: tuple[int, int, int],
    num_classes: int | None = None,
) -> tasks.Task:
    """Builds the config's task for a model.

    Args:
        config: the run's config.
        model: from ``build_model``.
        image_shape: (height, width, channels).
        num_classes: of the data set, to check that a model of the user's own has as many; None
            leaves it unchecked.

    Raises:
        UserError: an unknown task, or one that can't score the model's outputs.
    """
    outputs = None
    if parts.is_own(config.task) or is_own(config):
        variables = counts.abstract_variables(model, image_shape)
        images = jax.ShapeDtypeStruct((2, *image_shape), "float32")
        outputs = jax.eval_shape(model.apply, variables, images)
    if is_own(config) and config.task == "classification" and num_classes is not None:
        got = getattr(outputs, "shape", None)
        if got != (2, num_classes):
            raise UserError(
                f"config.model.name: {config.model.name} returned outputs of shape {got} for two "
                f"images, the task classification needs (2, {num_classes}), a logit per class"
            )
    return tasks.build(
        config.task,
        image_shape=image_shape,
        permutation_seed=config.permutation_seed,
        outputs=outputs,
        code_dir=config.code_dir,
        user=config.user.to_dict(),
    )


def _check_metrics(config: Config, task: tasks.Task) -> None:
    """Raises a UserError if the config needs a metric that the task doesn't have."""
    if config.data.validation and task.score is None:
        raise UserError(
            f"config.data.validation: got {config.data.validation}, allowed 0 with {task.name}, "
            "which returns the loss alone; return a metric too, of which larger is better"
        )
    if config.defense.epsilon and not task.has_accuracy:
        raise UserError(
            f"config.defense.epsilon: got {config.defense.epsilon}, allowed 0 with {task.name}, "
            "which has no accuracy"
        )


def read_config(workdir: epath.PathLike) -> Config:
    """Returns the config of the run in a folder.

    Raises:
        UserError: there is none, it is damaged, or it has an unknown key or a value that isn't
            allowed.
    """
    values = artifacts.read_config_values(workdir)
    try:
        config = configs.from_values(values)
    except UserError as error:
        raise UserError(f"{epath.Path(workdir) / artifacts.CONFIG}: {error}") from error
    if config.code_dir:
        parts.look_in(config.code_dir)  # a data set of the user's own may be there
    return config


def labels_and_masks(config: Config, variables: dict[str, Any]) -> tuple[Any, Any]:
    """Returns the label tree and the channel masks of a config's groups."""
    params, _ = models.split(variables)
    # Labels don't depend on when a group starts.
    trained = _groups(config, steps_per_epoch=1, total_steps=sys.maxsize)
    return groups.label_tree(params, trained, source(config)[0])
