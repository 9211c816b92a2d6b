"""Trains and evaluates the run that a config describes.

    python -m randmix.main --config=configs/digits.py
    python -m randmix.main --config=configs/digits.py --config.mode=full --config.model.depth=8
    python -m randmix.main --config=configs/digits.py --summary
    python -m randmix.main --config=configs/digits.py --compile_for=v5e:4x4

randmix/config.py lists the config's keys with their meaning and defaults; set any of them with
--config.KEY=VALUE. Without --workdir, a run goes to runs/NAME-DIGITS, one folder per config, which
is printed first. The same command resumes a run that was stopped, and does nothing for a finished
one.

On several hosts, start the same command on each. The processes find each other on Cloud TPU, SLURM
and GKE; elsewhere, set --coordinator, --num_processes and --process_id. The scripts in launch/ do
this and restart what was stopped.

--compile_for trains nothing. It compiles the run's steps for a Cloud TPU slice, on any machine with
libtpu, prints what they need of each chip and writes it to WORKDIR/compile.json.

Exit status: 0 done, 2 a mistake in the command or a step that doesn't fit the slice, 75 stopped by
a signal (the same command resumes), 130 stopped by Ctrl-C with nothing new to save.
"""

import dataclasses
import sys
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from randmix import config as configs
from randmix.errors import UserError
from randmix.runtime import cli, distributed, host, signals

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    help_string="The config file, for example configs/digits.py, or configs/NAME.py:VARIANT.",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder. Default: runs/NAME-DIGITS.")
_TUNE_HOST = flags.DEFINE_bool(
    "tune_host",
    True,
    "On a CPU: let malloc keep its memory and XLA use 512-bit vectors; see runtime/host.py.",
)
_SUMMARY = flags.DEFINE_bool(
    "summary",
    False,
    "Print every parameter with its role, label, count and multiply-adds, and exit.",
)
_COMPILE_FOR = flags.DEFINE_string(
    "compile_for",
    None,
    "Compile the steps for this Cloud TPU slice, for example v5e:4x4, print what they need, and "
    "exit.",
)
_DETERMINISTIC = flags.DEFINE_bool(
    "deterministic",
    False,
    "Produce the same bits every time on a GPU too, at some cost in speed; see runtime/host.py.",
)
_COMPILED = flags.DEFINE_string(
    "compiled",
    None,
    "Folder in which compiled programs are kept for later runs, or off. Default: .compiled next to "
    "the workdir on a GPU or TPU, off on a CPU.",
)
distributed.define_flags()


def main(argv: list[str]) -> int:
    """Trains with the parsed flags and returns the exit status."""
    host_settings = "left as they are: --notune_host"
    if _COMPILE_FOR.value is not None:
        host.only_compile_for_tpu()  # and no settings for a CPU
    elif _TUNE_HOST.value:
        host_settings = host.tune()
    if _DETERMINISTIC.value:
        host.make_deterministic()
    if _CONFIG.value is None:
        raise UserError("--config is missing; give one, for example --config=configs/digits.py")
    workdir = _WORKDIR.value or f"runs/{_config_name()}-{configs.fingerprint(_CONFIG.value)}"
    compiled = host.keep_compiled(
        _COMPILED.value, default=f"{workdir.rpartition('/')[0] or '.'}/.compiled"
    )
    # Only now import modules that import JAX.
    from randmix.analysis import unshuffle
    from randmix.runtime import progress
    from randmix.runtime.preemption import Preempted
    from randmix.training.loop import train

    if len(argv) > 1:
        raise UserError(f"got {argv[1]!r}, allowed are flags only; see --help")
    if _SUMMARY.value:
        print(summary(_CONFIG.value))
        return 0
    if _COMPILE_FOR.value is not None:
        from randmix.training import aot, runs, tpu

        print(f"workdir: {workdir}", flush=True)
        print(aot.report(runs.assemble(_CONFIG.value), tpu.parse(_COMPILE_FOR.value), workdir))
        return 0
    distributed.start(saves_when_stopped=True)
    print(f"workdir: {workdir}\nhost settings: {host_settings}", flush=True)
    if compiled:
        print(f"compiled programs: kept in {compiled}", flush=True)
    try:
        result = train(_CONFIG.value, workdir)
    except Preempted as stopped:
        what = "resumes from there" if stopped.saved else "starts again"
        print(f"randmix: {stopped}; the same command {what}", file=sys.stderr)
        return stopped.status
    if _CONFIG.value.task == "unshuffling":
        unshuffle.draw_missing(workdir)
    signals.saved()
    print(progress.result_table(result))
    return 0


def summary(config: ConfigDict) -> str:
    """Returns the table of initial parameters, with the multiply-adds per image."""
    from randmix.models import counts
    from randmix.training import runs

    parts = runs.assemble(config)
    costs = counts.multiply_adds(parts.step.model, parts.data.dataset.image_shape)
    table = dataclasses.replace(parts.record.summary, columns={"multiply-adds per image": costs})
    return dataclasses.replace(parts.record, summary=table).description


def _config_name() -> str:
    path, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return "-".join(filter(None, (Path(path).stem, variant)))


if __name__ == "__main__":
    cli.run(main)
