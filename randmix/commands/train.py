"""``python -m randmix train``."""

import re
from typing import Any

from absl import flags

from randmix import config as configs
from randmix.commands import Command, shared
from randmix.errors import UserError
from randmix.runtime import host

HELP = """
    python -m randmix train --config=configs/digits.py
    python -m randmix train --config=configs/digits.py --config.mode=full --config.model.depth=8
    python -m randmix train --config=configs/digits.py --summary
    python -m randmix train --config=configs/digits.py --compile_for=v5e:4x4

python -m randmix.main is the same command. Set any of the config's keys, listed below, with
--config.KEY=VALUE. Without --workdir, a run goes to runs/NAME-HASH, one folder per config, which is
printed first. The same command resumes a run that was stopped, and does nothing for a finished
one.

On several hosts, start the same command on each. The processes find each other on Cloud TPU, GKE
(TPUs), SLURM and Open MPI 4; elsewhere, set --coordinator, --num_processes and --process_id. The
scripts in launch/ do this and restart what was stopped.

--compile_for trains nothing. It compiles the run's steps for a Cloud TPU slice, on any machine with
libtpu, prints what they need of each chip and writes it to WORKDIR/compile.json.

--profile=START:STOP traces these steps into WORKDIR/tensorboard, for TensorBoard's profiler and for
Perfetto.

Exit status: 0 done, 1 a bug or another process was lost, 2 a mistake in the command or a step that
doesn't fit the slice, 75 stopped by a signal (the same command resumes), 130 stopped by Ctrl-C with
nothing new to save.
"""


def define_flags() -> None:
    """Defines the flags of the command."""
    shared.config()
    shared.workdir("The run's folder. Default: runs/NAME-HASH, with the config file's name.")
    flags.DEFINE_bool(
        "summary",
        False,
        "Print every parameter with its role, label, count and multiply-adds, and exit.",
    )
    flags.DEFINE_string(
        "compile_for",
        None,
        "Compile the steps for this Cloud TPU slice, for example v5e:4x4, print what they need, "
        "and exit.",
    )
    flags.DEFINE_string(
        "profile",
        None,
        "START:STOP, the steps to trace, counted from 1, STOP included; the compilation before "
        "them is not. With several processes, process 0 is traced.",
    )
    flags.DEFINE_bool(
        "deterministic",
        False,
        "Ask XLA for deterministic operations on a GPU, at some cost in speed; not yet tested on "
        "one. A CPU always gives the same bits.",
    )
    shared.host_settings()
    shared.processes()


def prepare(options: Any) -> None:
    """Makes the host settings; sets the default workdir, and notes what ``compiled`` came to."""
    shared.require_config(options)
    shared.check_processes(options)
    options.profiled_steps = _profiled_steps(options)
    options.config_name = name = shared.config_name()
    options.workdir = options.workdir or f"runs/{name}-{configs.fingerprint(options.config)}"
    if options.compile_for is None:
        options.host_settings = shared.tune_host(options)
    else:
        host.only_compile_for_tpu()  # and no settings for a CPU
        options.compiled = options.compiled or "off"
    shared.keep_compiled(options)
    if options.deterministic:
        host.make_deterministic()


def _profiled_steps(options: Any) -> range:
    if options.profile is None:
        return range(0)
    if options.summary or options.compile_for is not None:
        other = "--summary" if options.summary else "--compile_for"
        raise UserError(f"--profile: got it with {other}, which trains no steps; leave one out")
    match = re.fullmatch(r"(\d+):(\d+)", options.profile)
    first, last = map(int, match.groups()) if match else (0, 0)
    if not 1 <= first <= last:
        raise UserError(
            f"--profile: got {options.profile!r}, allowed START:STOP with 1 <= START <= STOP, for "
            "example --profile=10:14"
        )
    return range(first, last + 1)


COMMAND = Command(HELP, "randmix.train", define_flags, prepare=prepare)
