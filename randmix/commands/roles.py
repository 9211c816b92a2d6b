"""``python -m randmix roles``."""

from randmix.commands import Command, shared

HELP = """
    python -m randmix roles --config=configs/digits.py

Prints what each parameter of the config's model is for: spatial mixing, channel mixing, norm or
head. A model whose parameters lie in collections of these names declares it. For any other model
it is a proposal, by names and shapes alone: kernels with a window, query and key of attention,
token mixing and position embeddings are spatial; pointwise kernels, MLPs, value and output of
attention are channel.

Below the table is what isn't sure, and why, such as a dense 3 x 3 kernel, which mixes both, and
then the lines to paste into the config. Their selectors give every parameter the role in the table.
Nothing is computed or downloaded: shapes are enough.

Exit status: 0 done, 2 a mistake in the command.
"""


def define_flags() -> None:
    """Defines the flags of the command."""
    shared.config()


COMMAND = Command(
    HELP, "randmix.analysis.roles.command", define_flags, prepare=shared.require_config
)
