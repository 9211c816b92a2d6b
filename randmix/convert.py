"""PyTorch's ConvMixer weights to a workdir, and to and from the variables of a model.

    python -m randmix.convert CHECKPOINT --workdir=DIR [flags]
    python -m randmix.convert convmixer_768_32.safetensors --workdir=runs/published --activation=relu \\
        --mean=0.485,0.456,0.406 --std=0.229,0.224,0.225

CHECKPOINT is a .safetensors file, or a .pth, .pt, .bin or .tar file of PyTorch's, which takes PyTorch to be
installed. It holds a ConvMixer's state dict as its authors (locuslab/convmixer) or timm name the weights, alone
or in a training checkpoint, under "state_dict" or "model". Sizes are read off the weights. No weight tells the
activation and the normalisation: give them as flags. The models published for ImageNet have gelu, but
ConvMixer-768/32 relu, and the normalisation above.

DIR must be new or empty. Afterwards randmix.load("DIR") gives the model and its variables, as for a run that was
trained. With --data=NAME it is a run on that data set, whose images and classes the weights must fit; without, it
is a model alone, with no data to be evaluated on. From Python, the way back:

    run = randmix.load("runs/published")
    safetensors.numpy.save_file(convert.convmixer_to_torch(run.model, run.variables, "timm"), "out.safetensors")
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

from randmix import artifacts, checkpoint, cli, masks, models, steps
from randmix import config as configs
from randmix.data import catalog
from randmix.errors import UserError
from randmix.torch_weights import NAMINGS, convmixer_from_torch, convmixer_to_torch

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
    """Makes a workdir that ``randmix.load`` reads, as if a run had ended at step 0.

    Args:
        workdir: a folder that is new or empty.
        model: a ConvMixer with a classifier.
        variables: its parameters by role and ``batch_stats``, float32.
        data: a data set of the catalogue whose images and classes are the model's; None: a model alone.
        origin: what ``origin.json`` is to say of where the weights come from.

    Raises:
        UserError: something is in the folder, it can't be written, or the model doesn't fit the data set.
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
        artifacts.write_atomically(workdir / ORIGIN, json.dumps(origin, indent=2) + "\n")
        state = steps.TrainState(
            step=np.zeros((), np.int32),
            params=params,
            batch_stats=batch_stats,
            opt_state=(),  # nothing was trained here
            totals=steps.empty_totals(),
            failed_step=steps.never_failed(),
        )
        with checkpoint.Checkpoints(workdir) as checkpoints:
            checkpoints.save(0, state)


def _check_fits(data: str, model: models.ConvMixer, variables: Mapping[str, Any]) -> None:
    """Raises a UserError where a data set has other images or classes than the model."""
    data_set = catalog.get(data)
    channels = variables["spatial"]["stem"]["kernel"].shape[2]
    for name, got, allowed in (
        ("channels", data_set.image_shape[2], channels),
        ("classes", data_set.num_classes, model.num_classes),
    ):
        if got != allowed:
            raise UserError(
                f"data set {data}: got {got} {name}, allowed {allowed} as the weights have it"
            )
    model.check_image_shape(data_set.image_shape)


def _config(model: models.ConvMixer, data: str | None) -> ConfigDict:
    """The config of a run that ends with this model: everything was learned."""
    config = configs.default("convmixer")
    config.mode = "full"
    for name in ("width", "depth", "kernel_size", "patch_size", "activation", "mean", "std"):
        config.model[name] = getattr(model, name)
    with config.ignore_type():
        config.data.name = data
    return config


def define_flags() -> None:
    """Defines the command line's flags; not at import, which a program with flags of its own may do."""
    flags.DEFINE_string("workdir", None, "The folder to make; it must be new or empty.")
    flags.DEFINE_string("activation", "gelu", "gelu | relu: what the weights were trained with.")
    flags.DEFINE_list(
        "mean", [], "Normalisation, a number a channel for images in [0, 1]. Default: none."
    )
    flags.DEFINE_list("std", [], "The same.")
    flags.DEFINE_string(
        "data", None, "The data set that the weights are for, for example cifar10. Default: none."
    )


def main(argv: list[str]) -> None:
    """Converts the file that the command line names."""
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
    words = flags.FLAGS[name].value
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
        f"ConvMixer-{model.width}/{model.depth}, kernel {model.kernel_size}, patch {model.patch_size}, "
        f"{model.activation}, {channels} channels, {model.num_classes} classes, {count:,} parameters"
    )


if __name__ == "__main__":
    define_flags()
    cli.run(main)
