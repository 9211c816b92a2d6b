"""Runs the paper's experiments and writes a report with every figure and a verdict on every claim.

    python -m randmix.reproduce --preset=digits --workdir=runs/reproduce
    python -m randmix.reproduce --preset=fashion_mnist --experiments=E2,E5 --workdir=runs/fashion --dry_run
    python -m randmix.reproduce --preset=cifar --workdir=/shared/cifar --shard=3/8
    python -m randmix.reproduce --preset=cifar --override=data.subset=0.1,epochs=10,attack.examples=500

Presets, from seconds to weeks (their tables are in randmix/reproduce/presets.py):

    smoke           all experiments, a minute: that the code runs
    digits          all experiments in small on scikit-learn's digits: the demonstration, on two CPU cores
    fashion_mnist   all experiments on the real Fashion-MNIST: half an hour of a GPU, or a night of two CPU cores
    cifar           the paper's sizes on CIFAR-10 and -100, and un-shuffling on MNIST, Fashion-MNIST and CIFAR-10
    imagenet        the paper's sizes on ImageNet-1k

It leaves

    WORKDIR/runs/NAME/           a folder for each run, as python -m randmix.main leaves it, with log.txt
    WORKDIR/report/index.html    the report, in one file
    WORKDIR/report/              results.csv, verdicts.json, figures/

The same command goes on where it was stopped, or failed; what is finished is never run again. Several jobs share a
workdir on one file system with --shard=i/n each; then the command without --shard writes the report.

Exit status: 0 done, 1 a run or measurement failed (the report says which) or a bug, 2 a mistake in the command, 75 stopped
by a signal and saved.
"""

import json
import shlex
import sys
from pathlib import Path

from absl import flags

from randmix import cli, host
from randmix.errors import UserError

_SWEEP = "sweep.json"


def define_flags() -> None:
    """Defines the command line's flags; not at import, which a program with flags of its own may do."""
    flags.DEFINE_string("preset", None, "smoke | digits | fashion_mnist | cifar | imagenet.")
    flags.DEFINE_list(
        "experiments", [], "Of E1 to E12, one or more. Default: all that the preset has."
    )
    flags.DEFINE_string("workdir", None, "The sweep's folder. Default: runs/reproduce-PRESET.")
    flags.DEFINE_integer(
        "seeds", 3, "Every run with the seeds 0 to this, less one.", lower_bound=1, upper_bound=1000
    )
    flags.DEFINE_list(
        "override",
        [],
        "KEY=VALUE, ...: keys of randmix/config.py for every run that has them, or attack.KEY of the preset.",
    )
    flags.DEFINE_string("data_dir", None, "Where TFDS keeps its data sets. Default: TFDS's own.")
    flags.DEFINE_string("shard", None, "i/n: this is job i of n that share the runs; no report.")
    flags.DEFINE_string(
        "ensemble",
        "auto",
        "auto | off | N: how many seeds of a ConvMixer are trained as one program at most. auto: on a GPU or TPU as many "
        "as its memory holds, on a CPU none.",
    )
    flags.DEFINE_bool("dry_run", False, "Print the runs and their cost, and end.")
    flags.DEFINE_bool("report_only", False, "Train nothing; write the report of what is there.")
    flags.DEFINE_bool("tune_host", True, "On a CPU: as in randmix.main.")


def main(argv: list[str]) -> int:
    """Runs the sweep that the flags describe and writes its report."""
    options = flags.FLAGS
    if options.tune_host:
        host.tune()
    # Only now what imports JAX.
    from randmix.preemption import EXIT_STATUS, Preempted
    from randmix.reproduce import measurements, plan, presets, report, sweep, training

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
                    f"shard {options.shard} is done; the same command without --shard writes the report"
                )
                return 0
            # Beside the runs' overrides the report names the attack's.
            changed = plan.parse_overrides(options.override)
            command = shlex.join(["python", "-m", "randmix.reproduce", *sys.argv[1:]])
            written = report.write(
                root, preset, experiments, groups, overrides=changed, command=command
            )
    except Preempted as stopped:
        print(f"randmix: {stopped}; the same command goes on from there", file=sys.stderr)
        return EXIT_STATUS
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
    """Raises a UserError where a folder holds the sweep of another preset, or something else."""
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
            f"{root}: holds a sweep of --preset={other}, got --preset={preset}; give another --workdir"
        )


def open_workdir(root: Path, preset: str) -> None:
    """Makes the folder of a sweep.

    Raises:
        UserError: it can't be written.
    """
    from randmix import artifacts

    try:
        root.mkdir(parents=True, exist_ok=True)
        if not (root / _SWEEP).exists():
            artifacts.write_atomically(root / _SWEEP, json.dumps({"preset": preset}) + "\n")
    except OSError as error:
        raise UserError(
            f"{root}: can't be written ({error.strerror}); give a --workdir that you may write to"
        ) from error


if __name__ == "__main__":
    define_flags()
    cli.run(main)
