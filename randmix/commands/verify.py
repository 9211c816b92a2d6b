"""``python -m randmix verify``."""

from randmix.commands import Command

HELP = """
    python -m randmix verify runs/a

Reads every file of each checkpoint and compares its SHA-256 with the manifest that was saved with
it; compares the manifests with config.json and with the names of their folders; and reads the
config, the result and the log. Changes nothing.

Exit status: 0 all is well, 2 something is damaged or of another run, or there is no checkpoint.
"""

COMMAND = Command(HELP, "randmix.analysis.verify", arguments=("WORKDIR",))
