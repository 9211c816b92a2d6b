"""``python -m randmix unshuffle``."""

from typing import Any

from absl import flags

from randmix.commands import Command, shared
from randmix.errors import UserError

HELP = """
    python -m randmix unshuffle --workdirs=runs/full
    python -m randmix unshuffle --workdirs=runs/full,runs/chans,runs/space --out=figures

Each column is a test image; they are the first ones in the data set's own order, in which classes
are mixed. Below the rows "original" and "shuffled" there are two baselines, the mean training image
and linear regression from the pixels within reach, and one row per run, with the PSNR under each
image and the mean over the entire test split beside the row. Baselines are left out for data sets
that don't fit in memory, and regression for images of more than 4,096 numbers. Pixels are clipped
to [0, 1] for display; the PSNR is that of the unclipped output. All runs in one picture must share
the data set and the permutation.

Writes reconstructions.png, .svg and, with every PSNR, .csv. Training draws the picture of a run
with the task "unshuffling" when it ends.

Exit status: 0 done, 2 a mistake in the command.
"""


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_list("workdirs", [], "The runs' folders, in the order of their rows.")
    shared.out(
        None,
        "The folder to write to. Default: the run's folder for a single run, else runs/unshuffle.",
    )
    shared.examples(8, "Number of test images.", most=32)


def prepare(options: Any) -> None:
    """Checks that there are runs, and sets the default folder."""
    if not options.workdirs:
        raise UserError(
            "--workdirs is missing; list the runs' folders, for example --workdirs=runs/a,runs/b"
        )
    if options.out is None:
        options.out = options.workdirs[0] if len(options.workdirs) == 1 else "runs/unshuffle"


COMMAND = Command(HELP, "randmix.analysis.unshuffle", define_flags, prepare=prepare)
