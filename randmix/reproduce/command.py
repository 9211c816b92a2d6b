"""The work of ``python -m randmix reproduce``: runs a sweep and writes its report."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from randmix.errors import UserError
from randmix.reproduce import measurements, plan, presets, report, sweep, training
from randmix.runtime import durable
from randmix.runtime.preemption import Preempted

_SWEEP = "sweep.json"


def main(options: Any) -> int:
    """Runs the sweep of ``commands/reproduce.py``'s options and writes its report."""
    if not options.preset:
        raise UserError(f"--preset is missing; allowed are {', '.join(presets.NAMES)}")
    preset = presets.get(options.preset)
    experiments = presets.check_experiments(preset, options.experiments)
    together = training.parse_ensemble(options.ensemble)
    part = plan.parse_shard(options.shard) if options.shard else None
    preset, overrides = plan.split_overrides(preset, plan.parse_overrides(options.override))
    root = Path(options.workdir or f"runs/reproduce-{preset.name}")
    check_workdir(root, preset.name)
    seeds = None if options.seeds is None else range(options.seeds)
    groups = plan.build(preset, experiments, seeds, overrides=overrides, data_dir=options.data_dir)
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
            command = shlex.join(["python", "-m", "randmix", "reproduce", *sys.argv[1:]])
            written = report.write(
                root, preset, experiments, groups, overrides=changed, command=command
            )
    except Preempted as stopped:
        print(f"randmix: {stopped}; run the same command to resume", file=sys.stderr)
        return stopped.status
    if written is None:
        print(f"{root}: another process is writing the report", file=sys.stderr)
        return 1
    for one in written.judgements:
        print(f"{one.claim.id:3} {one.data:14} {one.verdict}")
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
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not (root / _SWEEP).exists():
            durable.write(root / _SWEEP, json.dumps({"preset": preset}) + "\n")
    except OSError as error:
        raise UserError(
            f"{root}: can't be written ({error.strerror}); give a --workdir that you may write to"
        ) from error
