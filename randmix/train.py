"""The work of ``python -m randmix train``: the run itself, its summary, or its compilation."""

import dataclasses
import sys
from typing import Any

from randmix.models import counts
from randmix.runtime import distributed, progress, signals
from randmix.runtime.preemption import Preempted
from randmix.training import aot, loop, runs, tpu
from randmix.workdir import artifacts


def main(options: Any) -> int:
    """Trains with the options of ``commands/train.py`` and returns the exit status."""
    if options.summary:
        print(summary(runs.assemble(options.config)))
        return 0
    if options.compile_for is not None:
        print(f"workdir: {options.workdir}", flush=True)
        print(
            aot.report(
                runs.assemble(options.config), tpu.parse(options.compile_for), options.workdir
            )
        )
        return 0
    distributed.start(
        options.coordinator,
        options.num_processes,
        options.process_id,
        heartbeat_timeout=options.heartbeat_timeout,
        saves_when_stopped=True,
    )
    print(f"workdir: {options.workdir}\nhost settings: {options.host_settings}", flush=True)
    if options.compiled:
        print(f"compiled programs: kept in {options.compiled} (--compiled)", flush=True)
    try:
        result = loop.train(
            options.config,
            options.workdir,
            context=artifacts.Context(options.config_name),
            profile=options.profiled_steps,
        )
    except Preempted as stopped:
        what = "resumes from there" if stopped.saved else "starts again"
        print(f"randmix: {stopped}; the same command {what}", file=sys.stderr)
        return stopped.status
    if options.config.task == "unshuffling":
        from randmix.analysis import unshuffle  # other tasks need no Matplotlib

        unshuffle.draw_missing(options.workdir)
    signals.saved()
    print(progress.result_table(result))
    return 0


def summary(parts: runs.Parts) -> str:
    """Returns the table of initial parameters, with the multiply-adds per image."""
    table = parts.record.summary
    if costs := counts.multiply_adds(parts.step.model, parts.data.dataset.image_shape):
        table = dataclasses.replace(table, columns={"multiply-adds per image": costs})
    return dataclasses.replace(parts.record, summary=table).description
