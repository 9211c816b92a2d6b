"""The work of ``python -m randmix sweep``: trains the runs of a grid."""

import sys
from pathlib import Path
from typing import Any

from randmix.experiments import calibration, compare, formatting, grid, sweep, training
from randmix.experiments.plan import parse_shard, shard, table
from randmix.runtime.preemption import Preempted
from randmix.workdir.artifacts import Context


def main(options: Any) -> int:
    """Runs the sweep of ``commands/sweep.py``'s options and prints a table of what came out."""
    together = training.parse_ensemble(options.ensemble)
    part = parse_shard(options.shard) if options.shard else None
    root = Path(options.workdir)
    sweep.check_folder(root, None)
    axes, fixed = grid.parse_axes(options.grid), grid.parse_fixed(options.set)
    groups = grid.build(options.config, options.config_name, axes, fixed, options.seeds)
    mine = shard(groups, *part) if part else groups
    if options.dry_run:
        finished = sweep.collect(mine, root, more=options.records)
        minutes = calibration.minutes(mine, finished) if options.calibrate else None
        print(table(mine, finished, minutes))
        return 0
    sweep.open_folder(root, None)
    print(f"workdir: {root}", flush=True)
    try:
        context = Context(options.config_name, root.name, tuple(axes))
        sweep.execute(mine, root, more=options.records, together=together, context=context)
    except Preempted as stopped:
        print(f"randmix: {stopped}; run the same command to resume", file=sys.stderr)
        return stopped.status
    runs = [run for group in mine for run in group]
    found = sweep.collect(mine, root, more=options.records)
    states = [(run, sweep.state(run, root)) for run in runs if run.name not in found]
    failed = [f"{run}: {state.reason}" for run, state in states if state.name == "failed"]
    for reason in failed:
        print(f"FAILED  {reason}", file=sys.stderr)
    if found:
        print(
            f"\n{formatting.as_text(compare.table(compare.side_by_side([*found.values()]), {}))}\n"
        )
    print(
        f"{len(found)} of {len(runs)} runs are finished in {root}; see also randmix compare --help"
    )
    return 1 if failed else 0
