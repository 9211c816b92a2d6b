"""The command line, ``python -m randmix COMMAND`` or ``randmix COMMAND``."""

import sys

from randmix import commands
from randmix.errors import check_choice
from randmix.runtime import cli


def main() -> None:
    """Runs the command that `sys.argv` names, and exits."""
    cli.run(_command)


def _command() -> None:
    if len(sys.argv) < 2 or sys.argv[1] in cli.HELP:
        print(_overview())
        return
    name = sys.argv.pop(1)  # what is left are the command's flags and arguments
    check_choice("command", name, commands.SUMMARIES)
    commands.run(name)


def _overview() -> str:
    lines = [f"  {name:<11}{summary}" for name, summary in commands.SUMMARIES.items()]
    return "\n".join(
        [
            "Usage: python -m randmix COMMAND [flags]",
            "",
            *lines,
            "",
            "python -m randmix COMMAND --help explains a command and its flags.",
        ]
    )


if __name__ == "__main__":
    main()
