"""``python -m randmix reproduce``."""

from typing import Any

from absl import flags

from randmix.commands import Command, shared
from randmix.errors import UserError
from randmix.runtime import host

HELP = """
    python -m randmix reproduce --preset=digits --workdir=runs/reproduce
    python -m randmix reproduce --preset=fashion_mnist --experiments=E2,E5 --dry_run --calibrate
    python -m randmix reproduce --preset=cifar10 --data=imagefolder/cifar10
    python -m randmix reproduce --preset=cifar10 --tier=paper --workdir=/shared/cifar --shard=3/8
    python -m randmix reproduce --preset=cifar10 --override=data.subset=0.1 --override=epochs=2

Presets (their tables are in randmix/reproduce/presets/):

    smoke           all experiments in a few minutes: checks that the code runs
    digits          all experiments on a small scale, on scikit-learn's digits: the demonstration,
                    on two CPU cores
    mnist           un-shuffling
    fashion_mnist   all but E4, E12 and E14, with every primary claim; tier paper: un-shuffling
    cifar10         all experiments but un-shuffling; tier paper: all
    cifar100        all experiments but un-shuffling; tier paper only
    imagenet        what the paper runs there, E13 and E15; tier paper only

Tiers:

    laptop          hours to a day of two CPU cores; the default where there is one
    paper           the paper's own sizes, for a GPU or a TPU: days to weeks

What decides a primary claim soonest is run first, so that an interrupted sweep has its answers
early.

Writes

    WORKDIR/runs/NAME/           one folder per run, as python -m randmix train writes it, and
                                 log.txt
    WORKDIR/records.jsonl        a line for each finished run, with its arrays in arrays/
    WORKDIR/report/index.html    the report, in one file
    WORKDIR/report/              results.csv, verdicts.json, figures/

After an interruption or a failure, the same command resumes; finished runs are never repeated. A
run listed in records.jsonl, or in a file of --records, counts as finished on any machine, and
--report_only draws the report from these records alone.
Several jobs can share a workdir on one file system, each with its own --shard=i/n; afterwards, the
command without --shard writes the report.

Exit status: 0 done, 1 something failed or is missing (the report says what), another process is
writing the report, or a bug, 2 a mistake in the command, 75 stopped by a signal and saved, 130
stopped by Ctrl-C with nothing new to save.
"""


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string(
        "preset",
        None,
        "smoke | digits | mnist | fashion_mnist | cifar10 | cifar100 | imagenet.",
    )
    flags.DEFINE_string("tier", None, "laptop | paper. Default: laptop, if the preset has it.")
    flags.DEFINE_string(
        "data",
        None,
        "The data set to use in place of the preset's, as config.data.name, such as the same "
        "images in a folder: imagefolder/NAME.",
    )
    flags.DEFINE_list(
        "experiments",
        [],
        "One or more of E1 to E15 and convergence, which docs/reproduce.md lists. Default: all "
        "experiments of the preset.",
    )
    shared.workdir(
        "Folder of the sweep. Default: runs/reproduce-PRESET, for the paper's tier "
        "runs/reproduce-PRESET-paper."
    )
    shared.seeds(None, "Number of seeds of every run, from 0 up. Default: the preset's.")
    flags.DEFINE_multi_string(
        "override",
        [],
        "KEY=VALUE: a config key (see python -m randmix train --help), set in every run that has "
        "it, or attack.KEY of the preset; may be repeated.",
    )
    shared.data_dir("TFDS's own")
    shared.shard("run only job i's share of n; write no report.")
    shared.ensemble()
    shared.records()
    shared.dry_run()
    flags.DEFINE_bool("report_only", False, "Train nothing; write the report from existing runs.")
    shared.host_settings()


def prepare(options: Any) -> None:
    """Makes the host settings, and has the preset smoke compile quickly."""
    shared.check_calibrate(options)
    shared.check_local(options)
    if options.calibrate and options.report_only:
        raise UserError("--calibrate: got --report_only too, which trains nothing; leave one out")
    shared.tune_host(options)
    shared.keep_compiled(options)
    if options.preset == "smoke" and host.compile_quickly():
        print("smoke: XLA compiles with few optimisations, as most of the time goes there")


COMMAND = Command(HELP, "randmix.reproduce.command", define_flags, prepare=prepare)
