"""``python -m randmix convert``."""

from typing import Any

from absl import flags

from randmix.commands import Command, shared
from randmix.errors import UserError

HELP = r"""
    python -m randmix convert convmixer_768_32.safetensors --workdir=runs/published \
        --activation=relu --mean=0.485,0.456,0.406 --std=0.229,0.224,0.225

CHECKPOINT is a .safetensors file, or a .pth, .pt, .bin or .tar file from PyTorch, for which PyTorch
must be installed. It contains the state dict of a ConvMixer with the weight names of its authors
(locuslab/convmixer) or of timm, either alone or in a training checkpoint under "state_dict" or
"model". Sizes are read from the weights, which must be dense, finite float32, float16 or bfloat16
numbers, at most 2^30 of them. The activation and the normalisation can't be: pass them as flags.
The models published for ImageNet use the normalisation above and gelu, except ConvMixer-768/32,
which uses relu.

The workdir must be new or empty. Afterwards randmix.load(WORKDIR) returns the model and its
variables, as for a trained run. With --data=NAME, it is a run on that data set, whose images and
classes must fit the weights; without it, a model alone, with no data to evaluate on. To convert
back, in Python:

    run = randmix.load("runs/published")
    arrays = randmix.convmixer_to_torch(run.model, run.variables, "timm")
    safetensors.numpy.save_file(arrays, "out.safetensors")

Exit status: 0 done, 2 a mistake in the command or in the checkpoint.
"""


def define_flags() -> None:
    """Defines the flags of the command."""
    shared.workdir("Folder to write; it must be new or empty.")
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


def prepare(options: Any) -> None:
    """Checks that there is a workdir, and makes numbers of the mean and the deviation."""
    shared.require(options, "workdir", "runs/converted")
    for name in ("mean", "std"):
        words = getattr(options, name)
        try:
            setattr(options, name, tuple(map(float, words)))
        except ValueError as error:
            raise UserError(
                f"--{name}={','.join(words)}: expected numbers, such as 0.5,0.5,0.5"
            ) from error


COMMAND = Command(HELP, "randmix.convert", define_flags, ("CHECKPOINT",), prepare)
