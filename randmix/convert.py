"""The work of ``python -m randmix convert``: a workdir from PyTorch's ConvMixer weights."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from randmix import config as configs
from randmix import masks, models
from randmix.data import catalog
from randmix.errors import UserError
from randmix.models.torch_weights import convmixer_from_torch
from randmix.runtime import durable
from randmix.training import runs, steps
from randmix.workdir import artifacts
from randmix.workdir import checkpoints as checkpoint
from randmix.workdir.artifacts import ORIGIN


def write_run(
    workdir: epath.PathLike,
    model: models.ConvMixer,
    variables: Mapping[str, Any],
    *,
    data: str | None = None,
    origin: Mapping[str, Any] | None = None,
) -> None:
    """Writes a workdir that ``randmix.load`` reads, as if a run had ended at step 0.

    Args:
        workdir: a new or empty folder.
        model: a ConvMixer with a classifier.
        variables: its parameters by role and ``batch_stats``, float32.
        data: a data set of the catalogue whose images and classes fit the model; None for a model
            without data.
        origin: JSON values that describe the source of the weights, written to ``origin.json``.

    Raises:
        UserError: the folder isn't empty or can't be written, or the model doesn't fit the data.
    """
    workdir = epath.Path(workdir)
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise UserError(f"{workdir}: isn't an empty folder; give another --workdir")
    if data is not None:
        _check_fits(data, model, variables)
    config = _config(model, data)
    params, batch_stats = models.split(dict(variables))
    labels = masks.labels(params, masks.trainable(masks.MODES[config.mode]))
    with artifacts.open_workdir(workdir, config, masks.summary(params, labels)):
        origin = {**(origin or {}), **artifacts.provenance(jax.devices())}
        durable.write(workdir / ORIGIN, json.dumps(origin, indent=2) + "\n")
        state = steps.TrainState(
            step=np.zeros((), np.int32),  # pyright: ignore[reportArgumentType] (a host array)
            params=params,
            batch_stats=batch_stats,
            opt_state=(),  # nothing was trained
            totals=steps.empty_totals(),
            failed_step=steps.never_failed(),
        )
        about = runs.identity(config, labels)
        with checkpoint.Checkpoints(workdir, about=about) as checkpoints:
            checkpoints.save(0, state)


def _check_fits(data: str, model: models.ConvMixer, variables: Mapping[str, Any]) -> None:
    """Raises a UserError if the images or classes of a data set don't fit the model."""
    data_set = catalog.get(data)
    channels = variables["spatial"]["stem"]["kernel"].shape[2]
    for name, got, allowed in (
        ("channels", data_set.image_shape[2], channels),
        ("classes", data_set.num_classes, model.num_classes),
    ):
        if got != allowed:
            raise UserError(
                f"data set {data}: got {got} {name}, allowed {allowed}, as in the weights"
            )
    model.check_image_shape(data_set.image_shape)


def _config(model: models.ConvMixer, data: str | None) -> configs.Config:
    """Config of a run that ends with this model, with everything learned."""
    config = configs.default("convmixer")
    config.mode = "full"
    for name in ("width", "depth", "kernel_size", "patch_size", "activation", "mean", "std"):
        config.model[name] = getattr(model, name)
    with config.ignore_type():
        config.data.name = data
    return config


def main(options: Any) -> None:
    """Converts a file with the options of ``commands/convert.py``."""
    file = Path(options.checkpoint)
    model, variables = convmixer_from_torch(
        file, activation=options.activation, mean=options.mean, std=options.std
    )
    with file.open("rb") as stream:
        origin = {"file": file.name, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
    write_run(options.workdir, model, variables, data=options.data, origin=origin)
    print(f"{options.workdir}: {_description(model, variables)}")


def _description(model: models.ConvMixer, variables: Mapping[str, Any]) -> str:
    params, _ = models.split(dict(variables))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    channels = variables["spatial"]["stem"]["kernel"].shape[2]
    return (
        f"ConvMixer-{model.width}/{model.depth}, kernel {model.kernel_size}, "
        f"patch {model.patch_size}, {model.activation}, {channels} channel{'s' * (channels > 1)}, "
        f"{model.num_classes} classes, {count:,} parameters"
    )
