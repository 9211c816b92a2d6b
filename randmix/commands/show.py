"""``python -m randmix show``."""

from absl import flags

from randmix.commands import Command, shared

HELP = """
    python -m randmix show --config=configs/digits.py --config.data.mixup=0.2
    python -m randmix show --config=configs/digits.py --examples=8 --step=100 --out=figures

Draws the first examples of a step's batch with their classes: above as they are in the data set
(photographs after cropping), below as the model receives them in that step. A mixed image shows
both classes and their weights. Writes augmented.png, augmented.svg and augmented.csv, which lists
the labels, to --out.

Exit status: 0 done, 2 a mistake in the command.
"""


def define_flags() -> None:
    """Defines the flags of the command."""
    shared.config()
    shared.out("runs/augmented")
    shared.examples(16, "Number of images, up to the batch size.", most=64)
    flags.DEFINE_integer("step", 0, "Steps taken before the one that is shown.", lower_bound=0)


COMMAND = Command(HELP, "randmix.analysis.augmented", define_flags, prepare=shared.require_config)
