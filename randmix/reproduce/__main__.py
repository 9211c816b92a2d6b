"""Runs the paper's experiments and writes a report with all figures and a verdict on every claim.

    python -m randmix.reproduce --preset=digits --workdir=runs/reproduce
    python -m randmix.reproduce --preset=fashion_mnist --experiments=E2,E5 --dry_run
    python -m randmix.reproduce --preset=cifar --workdir=/shared/cifar --shard=3/8
    python -m randmix.reproduce --preset=cifar --override=data.subset=0.1,attack.examples=500

Presets, from a minute to weeks (their tables are in randmix/reproduce/presets.py):

    smoke           all experiments in a minute: checks that the code runs
    digits          all experiments on a small scale, on scikit-learn's digits: the demonstration,
                    on two CPU cores
    fashion_mnist   all experiments on the real Fashion-MNIST: half an hour on a GPU, or a night on
                    two CPU cores
    cifar           the paper's sizes on CIFAR-10 and CIFAR-100, and un-shuffling on MNIST,
                    Fashion-MNIST and CIFAR-10
    imagenet        the paper's sizes on ImageNet-1k

Writes

    WORKDIR/runs/NAME/           one folder per run, as from python -m randmix.main, with log.txt
    WORKDIR/report/index.html    the report, in one file
    WORKDIR/report/              results.csv, verdicts.json, figures/

After an interruption or a failure, the same command resumes; finished runs are never repeated.
Several jobs can share a workdir on one file system, each with its own --shard=i/n; afterwards, the
command without --shard writes the report.

Exit status: 0 done, 1 a run or measurement failed (the report says which) or a bug, 2 a usage
error, 75 stopped by a signal and saved, 130 stopped by Ctrl-C with nothing new to save.
"""

import json
import shlex
import sys
from pathlib import Path

from absl import flags

from randmix.errors import UserError
from randmix.runtime import cli, host

_SWEEP = "sweep.json"


def define_flags() -> None:
    """Defines the command-line flags; not at import, so that any program can import this module."""
    flags.DEFINE_string("preset", None, "smoke | digits | fashion_mnist | cifar | imagenet.")
    flags.DEFINE_list(
        "experiments", [], "One or more of E1 to E12. Default: all experiments of the preset."
    )
    flags.DEFINE_string("workdir", None, "Folder of the sweep. Default: runs/reproduce-PRESET.")
    flags.DEFINE_integer(
        "seeds", 3, "Number of seeds of every run, from 0 up.", lower_bound=1, upper_bound=1000
    )
    flags.DEFINE_list(
        "override",
        [],
        "KEY=VALUE,...: config keys (see randmix/config.py), set in every run that has them, or "
        "attack.KEY of the preset.",
    )
    flags.DEFINE_string("data_dir", None, "TFDS's data folder. Default: TFDS's own.")
    flags.DEFINE_string("shard", None, "i/n: run only job i's share of n; write no report.")
    flags.DEFINE_string(
        "ensemble",
        "auto",
        "auto | off | N: largest number of seeds of a ConvMixer trained as one program. auto: as "
        "many as fit into the memory of a GPU or TPU; on a CPU, one at a time.",
    )
    flags.DEFINE_bool("dry_run", False, "Print the runs and their cost, and exit.")
    flags.DEFINE_bool("report_only", False, "Train nothing; write the report from existing runs.")
    flags.DEFINE_bool("tune_host", True, "Tune the process on a CPU, as in randmix.main.")


def main(argv: list[str]) -> int:
    """Runs the sweep that the flags describe and writes its report."""
    options = flags.FLAGS
    if options.tune_host:
        host.tune()
    # These import JAX, which reads the settings made above.
    from randmix.reproduce import measurements, plan, presets, report, sweep, training
    from randmix.runtime.preemption import Preempted

    if len(argv) > 1:
        raise UserError(f"got {argv[1]!r}, allowed are flags only; see --help")
    if not options.preset:
        raise UserError(f"--preset is missing; allowed are {', '.join(presets.NAMES)}")
    preset = presets.get(options.preset)
    experiments = presets.check_experiments(preset, options.experiments)
    together = training.parse_ensemble(options.ensemble)
    part = plan.parse_shard(options.shard) if options.shard else None
    preset, overrides = plan.split_overrides(preset, plan.parse_overrides(options.override))
    root = Path(options.workdir or f"runs/reproduce-{preset.name}")
    check_workdir(root, preset.name)
    groups = plan.build(
        preset, experiments, range(options.seeds), overrides=overrides, data_dir=options.data_dir
    )
    if options.dry_run:
        print(plan.table(plan.shard(groups, *part) if part else groups, root))
        return 0
    open_workdir(root, preset.name)
    try:
        with sweep.compiled_programs_kept(root):
            if not options.report_only:
                sweep.execute(
                    plan.shard(groups, *part) if part else groups,
                    root,
                    measure=lambda run, *rest: measurements.measure(run, root, preset, *rest),
                    together=together,
                )
            if part:
                print(
                    f"shard {options.shard} is done; "
                    "run the same command without --shard to write the report"
                )
                return 0
            # The report lists overrides of the attack too.
            changed = plan.parse_overrides(options.override)
            command = shlex.join(["python", "-m", "randmix.reproduce", *sys.argv[1:]])
            written = report.write(
                root, preset, experiments, groups, overrides=changed, command=command
            )
    except Preempted as stopped:
        print(f"randmix: {stopped}; run the same command to resume", file=sys.stderr)
        return stopped.status
    if written is None:
        print(f"{root}: another process is writing the report", file=sys.stderr)
        return 1
    for id, verdict in written.verdicts.items():
        print(f"{id:3} {verdict}")
    for problem in written.problems:
        print(problem, file=sys.stderr)
    print(written.folder / "index.html")
    return 1 if written.problems else 0


def check_workdir(root: Path, preset: str) -> None:
    """Raises a UserError if a folder holds another preset's sweep, or something else."""
    file = root / _SWEEP
    if not file.exists():
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise UserError(
                f"{root}: holds something that isn't a sweep; give --workdir a new or empty folder"
            )
        return
    other = json.loads(file.read_text())["preset"]
    if other != preset:
        raise UserError(
            f"{root}: holds a sweep of --preset={other}, got --preset={preset}; "
            "give another --workdir"
        )


def open_workdir(root: Path, preset: str) -> None:
    """Creates the folder of a sweep.

    Raises:
        UserError: the folder can't be written.
    """
    from randmix.runtime import durable

    try:
        root.mkdir(parents=True, exist_ok=True)
        if not (root / _SWEEP).exists():
            durable.write(root / _SWEEP, json.dumps({"preset": preset}) + "\n")
    except OSError as error:
        raise UserError(
            f"{root}: can't be written ({error.strerror}); give a --workdir that you may write to"
        ) from error


if __name__ == "__main__":
    define_flags()
    cli.run(main)
