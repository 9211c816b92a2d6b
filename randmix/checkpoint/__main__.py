"""Verifies that a run's checkpoints are unchanged since they were saved.

    python -m randmix.checkpoint verify WORKDIR

Reads every file of each checkpoint and compares its SHA-256 with the manifest that was saved with
it. Changes nothing. Exit status: 0 all are intact, 2 one is damaged or there is none.
"""

from randmix import cli


def main(argv: list[str]) -> None:
    """Verifies the workdir that the command line names."""
    from etils import epath

    from randmix.checkpoint import Checkpoints
    from randmix.errors import UserError

    if len(argv) != 3 or argv[1] != "verify":
        raise UserError(f"expected `verify WORKDIR`, got {argv[1:]}; see --help")
    workdir = epath.Path(argv[2])
    with Checkpoints(workdir) as checkpoints:
        damaged = 0
        for step in reversed(steps := checkpoints.all_steps()):
            damage = checkpoints.damage(step)
            damaged += damage is not None
            print(f"{checkpoints.folder / str(step)}: {damage or 'intact'}")
    if not steps:
        raise UserError(f"{workdir}: no checkpoint there; train this workdir first")
    if damaged:
        raise UserError(
            f"{workdir}: {damaged} of {len(steps)} checkpoints damaged; training it again sets "
            "them aside and resumes from the newest intact one"
        )


if __name__ == "__main__":
    cli.run(main)
