"""``python -m randmix.main``: the command ``python -m randmix train``."""

from randmix import commands
from randmix.runtime import cli

if __name__ == "__main__":
    cli.run(lambda: commands.run("train"))
