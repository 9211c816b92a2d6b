"""The work of ``python -m randmix reproduce``: runs a sweep and writes its report."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from randmix.errors import UserError
from randmix.experiments import calibration, sweep, training
from randmix.experiments.grid import parse_fixed
from randmix.experiments.plan import Group, PlannedRun, parse_shard, shard, table
from randmix.experiments.records import Record
from randmix.reproduce import measurements, plan, presets, report, transplants
from randmix.reproduce.order import soonest_verdicts_first
from randmix.runtime.preemption import Preempted
from randmix.workdir.artifacts import Context


def main(options: Any) -> int:
    """Runs the sweep of ``commands/reproduce.py``'s options and writes its report."""
    if not options.preset:
        raise UserError(f"--preset is missing; allowed are {', '.join(presets.NAMES)}")
    preset = presets.get(options.preset, options.tier)
    if options.data:
        preset = preset.on(options.data)
    experiments = presets.check_experiments(preset, options.experiments)
    together = training.parse_ensemble(options.ensemble)
    part = parse_shard(options.shard) if options.shard else None
    # The report lists overrides of the attack too.
    changed = parse_fixed(options.override, "override", "--override=epochs=2")
    preset, overrides = plan.split_overrides(preset, changed)
    root = Path(options.workdir or f"runs/reproduce-{preset.label}")
    sweep.check_folder(root, preset.label)
    seeds = None if options.seeds is None else range(options.seeds)

    def planned() -> list[Group]:
        groups = plan.build(
            preset,
            experiments,
            seeds,
            overrides=overrides,
            data_dir=options.data_dir,
            root=root,
            known=sweep.known(root, options.records),
            report_only=options.report_only,
        )
        return soonest_verdicts_first(groups)

    def own(groups: Sequence[Group]) -> list[Group]:
        names = {group[0].name for group in (shard(groups, *part) if part else groups)}
        return [group for group in groups if group[0].name in names]

    def complete(run: PlannedRun, record: Record) -> bool:
        return measurements.complete(run, record, preset)

    def train(groups: Sequence[Group]) -> None:
        transplants.write(groups, root, sweep.known(root, options.records))
        sweep.execute(
            [group for group in groups if not plan.waits(group)],
            root,
            measure=lambda run, *rest: measurements.measure(run, root, preset, *rest),
            complete=complete,
            more=options.records,
            together=together,
            context=Context(sweep=root.name),
        )

    groups = planned()
    if options.dry_run:
        found = sweep.collect(groups, root, complete, options.records)
        # A run whose folder is gone is trained again if anything of it is left to measure.
        finished = {
            run.name
            for group in own(groups)
            for run in group
            if sweep.state(run, root).name == "finished"
            or (run.name in found and complete(run, found[run.name]))
        }
        minutes = calibration.minutes(own(groups), finished) if options.calibrate else None
        print(table(own(groups), finished, minutes))
        return 0
    sweep.open_folder(root, preset.label)
    try:
        if not options.report_only:
            train(own(groups))
            if any(map(plan.waits, groups)):
                groups = planned()  # with the names of the runs that waited for filters
                train([group for group in own(groups) if plan.starts_elsewhere(group)])
        if part:
            return _end_of_shard(options, own(groups), root, complete)
        command = shlex.join(["python", "-m", "randmix", "reproduce", *sys.argv[1:]])
        found = sweep.collect(groups, root, complete, options.records)
        written = report.write(
            root, preset, experiments, groups, found, overrides=changed, command=command
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


def _end_of_shard(
    options: Any, groups: Sequence[Group], root: Path, complete: sweep.Complete
) -> int:
    """Says what to do next; returns 1 if a run or its measurements failed."""
    found = sweep.collect(groups, root, complete, options.records)
    mine = [run for group in groups for run in group]
    failed = [
        run
        for run in mine
        if (run.name in found and not complete(run, found[run.name]))
        or (run.name not in found and sweep.state(run, root).name == "failed")
    ]
    if failed:
        print(
            f"shard {options.shard}: {len(failed)} of {len(mine)} runs or their measurements "
            "failed; run the same command to try again",
            file=sys.stderr,
        )
        return 1
    print(
        f"shard {options.shard} is done; run the same command without --shard to write the report"
    )
    return 0
