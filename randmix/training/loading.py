"""Loading of a trained run from its workdir."""

import contextlib
import dataclasses
import html
import logging
from typing import Any

from etils import epath
from flax.traverse_util import flatten_dict

from randmix import masks, models
from randmix.config import Config
from randmix.errors import UserError
from randmix.models import Model, counts
from randmix.runtime import progress
from randmix.training import runs
from randmix.workdir import artifacts, json_files, metrics
from randmix.workdir.checkpoints import BEST, FOLDER, Checkpoints

_SCORES = ("accuracy", "psnr")


@dataclasses.dataclass(frozen=True, repr=False)
class Run:
    """A trained run, for example in a notebook: ``run.model.apply(run.variables, images)``.

    Attributes:
        config: the config that it was trained with.
        model: the Linen module, or the user's own behind the same ``init`` and ``apply``.
        variables: parameters by role and ``batch_stats``.
        step: the step of the checkpoint that they come from.
        workdir: the folder that it was loaded from.
        total_steps: the length of the run; None if it is unfinished and set in epochs.
        evaluation: "step" and the metrics ("test_accuracy" and so on) of the last evaluation up to
            ``step``; None if there was none.
        ema: whether the variables are the moving averages of the run's.
    """

    config: Config
    model: Model
    variables: dict[str, Any]
    step: int
    workdir: str = ""
    total_steps: int | None = None
    evaluation: dict[str, Any] | None = None
    ema: bool = False

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
        counts = masks.summary(params, *runs.labels_and_masks(config, self.variables))
        rows = {
            "model": ", ".join([config.model.name, *sizes]),
            "data": str(config.data.name),
            "trained": f"{runs.source(config)[1]}: {counts.trainable:,} of "
            f"{counts.trainable + counts.frozen:,} parameters",
            "step": f"{self.step:,}" + (f" of {self.total_steps:,}" if self.total_steps else ""),
        }
        evaluation = self.evaluation or {}
        at = "" if evaluation.get("step") == self.step else f", at step {evaluation.get('step')}"
        names = [f"test_{'ema_' if self.ema else ''}{score}" for score in _SCORES]
        scores = {name: evaluation[name] for name in names if name in evaluation}
        for name, value in progress.metrics_row(scores).items():
            rows[name.replace("_", " ")] = value + at
        return rows


def load(
    workdir: epath.PathLike, *, best: bool = False, step: int | None = None, ema: bool = False
) -> Run:
    """Loads a workdir's latest checkpoint; needs neither its data set nor its optimizer.

    Args:
        workdir: the run's folder.
        best: load the checkpoint that scored best on the held-out examples, of a run with
            ``data.validation``.
        step: load the checkpoint of this step, one of ``kept_steps``, instead of the latest.
        ema: load the moving averages, of a run with ``ema``, in place of the weights and running
            statistics that they average.

    Raises:
        UserError: no run there, no checkpoint, or a checkpoint of another run.
    """
    config = runs.read_config(workdir)
    if best and not config.data.validation:
        raise UserError(
            f"{workdir}: no examples were held out to choose the best by; "
            "train with data.validation"
        )
    if ema and not config.ema:
        raise UserError(f"{workdir}: no average of the weights was kept; train with config.ema")
    written = runs.identity(artifacts.read_config_values(workdir))
    with Checkpoints(workdir, about=written, folder=BEST if best else FOLDER) as checkpoints:
        about, variables = checkpoints.restore_variables(step, ema=ema)
    found: int = about["step"]
    if config.data.name is None:  # one patch [p, p, C] of a converted ConvMixer's stem
        image_shape = variables["spatial"]["stem"]["kernel"].shape[:3]
    else:
        image_shape = _image_shape(config, workdir)
    num_classes = _num_classes(config, workdir, variables)
    model = runs.build_model(config, num_classes, image_shape=image_shape)
    _check_fits(workdir, model, image_shape, variables)
    _check_labels(workdir, runs.labels_and_masks(config, variables)[0], about)
    result = _readable_result(workdir)
    return Run(
        config=config,
        model=model,
        variables=variables,
        step=found,
        workdir=str(workdir),
        total_steps=config.steps or result.get("step"),
        evaluation=_last_evaluation(epath.Path(workdir), found, result),
        ema=ema,
    )


def kept_steps(workdir: epath.PathLike) -> list[int]:
    """Returns the steps of a workdir's intact checkpoints, ascending."""
    with Checkpoints(workdir) as checkpoints:
        return sorted(checkpoints.intact_steps())


def _image_shape(config: Config, workdir: epath.PathLike) -> tuple[int, int, int]:
    """The shape of the images that the run was trained on; its own record needs no data set."""
    with contextlib.suppress(json_files.Damaged):
        if saved := artifacts.read_data(workdir):
            height, width, channels = saved["image_shape"]
            return height, width, channels
    return runs.find_dataset(config).image_shape


def _num_classes(config: Config, workdir: epath.PathLike, variables: dict[str, Any]) -> int | None:
    """The number of classes of the run's data; None if there are none."""
    if runs.is_own(config):
        with contextlib.suppress(json_files.Damaged):
            if saved := artifacts.read_data(workdir):
                return saved["num_classes"]
        return runs.find_dataset(config).num_classes
    # A converted model may have no data set in the catalog; its weights give the classes.
    classifier = variables["head"].get("classifier")
    return None if classifier is None else classifier["bias"].shape[0]


def _last_evaluation(
    workdir: epath.Path, step: int, result: dict[str, Any]
) -> dict[str, Any] | None:
    """Returns "step" and metrics of the last evaluation up to ``step``, or None."""
    if result.get("step") == step:
        return {"step": step, **result["metrics"]}
    rows = [row for row in metrics.read(workdir / artifacts.METRICS) if row["step"] <= step]
    return next((row for row in reversed(rows) if "test_loss" in row), None)


def _check_fits(
    workdir: epath.PathLike,
    model: Model,
    image_shape: tuple[int, int, int],
    saved: dict[str, Any],
) -> None:
    """Raises a UserError if a checkpoint doesn't hold the variables of the config's model."""
    got, allowed = _shapes(saved), _shapes(counts.abstract_variables(model, image_shape))
    for path in sorted(got.keys() | allowed.keys()):
        if got.get(path) != allowed.get(path):
            raise UserError(
                f"{workdir}: the checkpoint doesn't hold this config's parameters ({path}: got "
                f"shape {got.get(path)}, expected {allowed.get(path)}); use the config that it was "
                "trained with"
            )


def _check_labels(workdir: epath.PathLike, labels: Any, about: dict[str, Any]) -> None:
    """Raises a UserError if a checkpoint's parameters had other labels than the config's now."""
    now = runs.labels_hash(labels)
    if about.get("labels", now) != now:
        raise UserError(
            f"{workdir}: step {about['step']} was trained with other labels (hash "
            f"{about['labels']}) than the config gives now ({now}); "
            "use the version of randmix that it was trained with"
        )


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
