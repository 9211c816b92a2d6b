"""``python -m randmix sweep``."""

from typing import Any

from absl import flags

from randmix.commands import Command, shared

HELP = """
    python -m randmix sweep --config=configs/digits.py --grid=mode=full,chans,space \\
        --grid=model.depth=2,4,8 --set=steps=400 --seeds=4 --workdir=runs/depth
    python -m randmix sweep --config=configs/digits.py --grid=mode=full,chans --dry_run
    python -m randmix sweep --config=configs/digits.py \\
        --grid="train=['~depth(0, 2)', '~depth(2, 4)']"
    python -m randmix compare runs/depth

Trains a run for every combination of the values of --grid, and for every seed. Keys are those of
the config (python -m randmix train --help lists them); a value that holds commas is written as a
Python literal in a list in brackets.

Writes

    WORKDIR/runs/NAME/       one folder per run, as python -m randmix train writes it, and log.txt
    WORKDIR/records.jsonl    a line for each finished run, with its arrays in arrays/

A run is named by its config. So the same command resumes what was stopped, tries again what
failed, and never repeats what is finished; another grid in the same workdir adds its runs. Several
jobs can share a workdir on one file system, each with its own --shard=i/n.

Exit status: 0 done, 1 a run failed (its line says why) or a bug, 2 a mistake in the command, 75
stopped by a signal and saved, 130 stopped by Ctrl-C with nothing new to save.
"""


def define_flags() -> None:
    """Defines the flags of the command."""
    shared.config()
    flags.DEFINE_multi_string(
        "grid",
        [],
        "KEY=VALUE,... or KEY=[LITERAL,...]: values of a config key to vary. Repeat it for further "
        "keys: every combination is trained.",
    )
    flags.DEFINE_multi_string(
        "set", [], "KEY=VALUE: a config key of every run, as --config.KEY=VALUE; may be repeated."
    )
    shared.seeds(1, "Number of seeds of every run, from config.seed up.")
    shared.workdir("Folder of the sweep. Default: runs/sweep-NAME, with the config file's name.")
    shared.shard("run only job i's share of n.")
    shared.ensemble()
    shared.records()
    shared.dry_run()
    shared.host_settings()


def prepare(options: Any) -> None:
    """Makes the host settings; sets the default workdir."""
    shared.require_config(options)
    shared.check_calibrate(options)
    shared.check_local(options)
    options.config_name = shared.config_name()
    options.workdir = options.workdir or f"runs/sweep-{options.config_name}"
    shared.tune_host(options)
    shared.keep_compiled(options)


COMMAND = Command(HELP, "randmix.experiments.command", define_flags, prepare=prepare)
