"""Convert PyTorch's ConvMixer weights to a workdir.

    python -m randmix.convert CHECKPOINT --workdir=DIR [flags]
    python -m randmix.convert convmixer_768_32.safetensors --workdir=runs/published \\
        --activation=relu --mean=0.485,0.456,0.406 --std=0.229,0.224,0.225

CHECKPOINT is a .safetensors file, or a .pth, .pt, .bin or .tar file from PyTorch, for which PyTorch
must be installed. It contains the state dict of a ConvMixer with the weight names of its authors
(locuslab/convmixer) or of timm, either alone or in a training checkpoint under "state_dict" or
"model". Sizes are read from the weights, which must be dense, finite float32, float16 or bfloat16
numbers, at most 2^30 of them. The activation and the normalisation can't be: pass them as flags.
The models published for ImageNet use the normalisation above and gelu, except ConvMixer-768/32,
which uses relu.

DIR must be new or empty. Afterwards randmix.load("DIR") returns the model and its variables, as for
a trained run. With --data=NAME, DIR is a run on that data set, whose images and classes must fit
the weights; without it, DIR is a model alone, with no data to evaluate on. To convert back, in
Python:

    run = randmix.load("runs/published")
    arrays = convert.convmixer_to_torch(run.model, run.variables, "timm")
    safetensors.numpy.save_file(arrays, "out.safetensors")
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath
from ml_collections import ConfigDict

from randmix import config as configs
from randmix import masks, models
from randmix.data import catalog
from randmix.errors import UserError
from randmix.models.torch_weights import NAMINGS, convmixer_from_torch, convmixer_to_torch
from randmix.runtime import cli, durable
from randmix.training import runs, steps
from randmix.workdir import artifacts
from randmix.workdir import checkpoints as checkpoint

__all__ = ["NAMINGS", "ORIGIN", "convmixer_from_torch", "convmixer_to_torch", "write_run"]

ORIGIN = "origin.json"


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


def _config(model: models.ConvMixer, data: str | None) -> ConfigDict:
    """Config of a run that ends with this model, with everything learned."""
    config = configs.default("convmixer")
    config.mode = "full"
    for name in ("width", "depth", "kernel_size", "patch_size", "activation", "mean", "std"):
        config.model[name] = getattr(model, name)
    with config.ignore_type():
        config.data.name = data
    return config


def define_flags() -> None:
    """Defines the command-line flags; not on import, to leave importing programs their own."""
    flags.DEFINE_string("workdir", None, "Folder to write; it must be new or empty.")
    flags.DEFINE_string("activation", "gelu", "gelu | relu: the activation of the model.")
    flags.DEFINE_list(
        "mean",
        [],
        "Mean to subtract, one number per channel for images in [0, 1]. Default: no normalisation.",
    )
    flags.DEFINE_list("std", [], "Standard deviation to divide by, one number per channel.")
    flags.DEFINE_string(
        "data", None, "Data set that the weights are for, such as cifar10. Default: none."
    )


def main(argv: list[str]) -> None:
    """Converts the file named on the command line."""
    options = flags.FLAGS
    if len(argv) != 2:
        raise UserError(f"expected one checkpoint, got {argv[1:]}; see --help")
    if not options.workdir:
        raise UserError("--workdir is missing; give one, for example --workdir=runs/converted")
    file = Path(argv[1])
    model, variables = convmixer_from_torch(
        file, activation=options.activation, mean=_numbers("mean"), std=_numbers("std")
    )
    with file.open("rb") as stream:
        origin = {"file": file.name, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
    write_run(options.workdir, model, variables, data=options.data, origin=origin)
    print(f"{options.workdir}: {_description(model, variables)}")


def _numbers(name: str) -> tuple[float, ...]:
    words: list[str] = getattr(flags.FLAGS, name)
    try:
        return tuple(float(word) for word in words)
    except ValueError as error:
        raise UserError(
            f"--{name}={','.join(words)}: expected numbers, such as 0.5,0.5,0.5"
        ) from error


def _description(model: models.ConvMixer, variables: Mapping[str, Any]) -> str:
    params, _ = models.split(dict(variables))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    channels = variables["spatial"]["stem"]["kernel"].shape[2]
    return (
        f"ConvMixer-{model.width}/{model.depth}, kernel {model.kernel_size}, "
        f"patch {model.patch_size}, {model.activation}, {channels} channels, "
        f"{model.num_classes} classes, {count:,} parameters"
    )


if __name__ == "__main__":
    define_flags()
    cli.run(main)
