"""``python -m randmix verify``."""

from randmix.commands import Command, shared

HELP = """
    python -m randmix verify runs/a
    python -m randmix verify cifar10
    python -m randmix verify imagefolder/pets --data_dir=/data/tfds

An existing folder is a run's workdir. Verify reads every file of each checkpoint and compares its
SHA-256 with the manifest that was saved with it; compares the manifests with config.json and with
the names of their folders; and reads the config, the result and the log.

Any other word is a data set's name, as in config.data.name. Verify decodes every record of every
split and names those that are damaged: split, row, file, reason. Of a function's arrays, it checks
shapes and types.

It changes nothing.

Exit status: 0 all is well, 2 something is damaged or of another run, or there is no checkpoint.
"""


def define_flags() -> None:
    """Defines the flags of the command."""
    shared.data_dir("$TFDS_DATA_DIR, or ~/tensorflow_datasets")


COMMAND = Command(HELP, "randmix.analysis.verify", define_flags, arguments=("WORKDIR_OR_DATA_SET",))
