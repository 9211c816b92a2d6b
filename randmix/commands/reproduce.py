"""``python -m randmix reproduce``."""

from typing import Any

from absl import flags

from randmix.commands import Command, shared

HELP = """
    python -m randmix reproduce --preset=digits --workdir=runs/reproduce
    python -m randmix reproduce --preset=fashion_mnist --experiments=E2,E5 --dry_run
    python -m randmix reproduce --preset=cifar --workdir=/shared/cifar --shard=3/8
    python -m randmix reproduce --preset=cifar --override=data.subset=0.1,attack.examples=500

Presets, from minutes to weeks (their tables are in randmix/reproduce/presets.py):

    smoke           all experiments in four minutes: checks that the code runs
    digits          all experiments on a small scale, on scikit-learn's digits: the demonstration,
                    on two CPU cores
    fashion_mnist   all experiments on the real Fashion-MNIST: half an hour on a GPU, or a night on
                    two CPU cores
    cifar           the paper's sizes on CIFAR-10 and CIFAR-100, and un-shuffling on MNIST,
                    Fashion-MNIST and CIFAR-10
    imagenet        the paper's sizes on ImageNet-1k

Writes

    WORKDIR/runs/NAME/           one folder per run, as python -m randmix train writes it, and
                                 log.txt
    WORKDIR/report/index.html    the report, in one file
    WORKDIR/report/              results.csv, verdicts.json, figures/

After an interruption or a failure, the same command resumes; finished runs are never repeated.
Several jobs can share a workdir on one file system, each with its own --shard=i/n; afterwards, the
command without --shard writes the report.

Exit status: 0 done, 1 a run or measurement failed (the report says which) or a bug, 2 a mistake in
the command, 75 stopped by a signal and saved, 130 stopped by Ctrl-C with nothing new to save.
"""


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("preset", None, "smoke | digits | fashion_mnist | cifar | imagenet.")
    flags.DEFINE_list(
        "experiments",
        [],
        "One or more of E1 to E12 and convergence. Default: all experiments of the preset.",
    )
    shared.workdir("Folder of the sweep. Default: runs/reproduce-PRESET.")
    shared.seeds(None, "Number of seeds of every run, from 0 up. Default: the preset's.")
    flags.DEFINE_list(
        "override",
        [],
        "KEY=VALUE,...: config keys (see python -m randmix train --help), set in every run that "
        "has them, or attack.KEY of the preset.",
    )
    shared.data_dir("TFDS's own")
    flags.DEFINE_string("shard", None, "i/n: run only job i's share of n; write no report.")
    flags.DEFINE_string(
        "ensemble",
        "auto",
        "auto | off | N: largest number of seeds of a ConvMixer trained as one program. auto: as "
        "many as fit into the memory of a GPU or TPU; on a CPU, one at a time.",
    )
    flags.DEFINE_bool("dry_run", False, "Print the runs and their cost, and exit.")
    flags.DEFINE_bool("report_only", False, "Train nothing; write the report from existing runs.")
    shared.host_settings()


def prepare(options: Any) -> None:
    """Makes the host settings."""
    shared.tune_host(options)


COMMAND = Command(HELP, "randmix.reproduce.command", define_flags, prepare=prepare)
