"""Flags that several commands take, and what their values lead to."""

import os
import re
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from randmix.errors import UserError
from randmix.runtime import host

LARGEST_SEED = 2**32 - 1
_ADDRESS = re.compile(r".+:\d{1,5}")


def config() -> None:
    """Defines --config, which also takes --config.KEY=VALUE."""
    config_flags.DEFINE_config_file(
        "config",
        help_string="The config file, for example configs/digits.py, or configs/NAME.py:VARIANT.",
    )


def config_name() -> str:
    """Returns the name of the --config that was given, such as "digits" or "digits-tiny"."""
    path, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return "-".join(filter(None, (Path(path).stem, variant)))


def workdir(meaning: str) -> None:
    """Defines --workdir."""
    flags.DEFINE_string("workdir", None, meaning)


def data_dir(default: str) -> None:
    """Defines --data_dir; the default is said in words."""
    flags.DEFINE_string("data_dir", None, f"The folder of TFDS's data sets. Default: {default}.")


def out(default: str | None, meaning: str = "The folder to write to.") -> None:
    """Defines --out."""
    flags.DEFINE_string("out", default, meaning)


def examples(default: int | None, meaning: str, *, most: int | None = None) -> None:
    """Defines --examples, from 1."""
    flags.DEFINE_integer("examples", default, meaning, lower_bound=1, upper_bound=most)


def seed(default: int | None, meaning: str) -> None:
    """Defines --seed."""
    flags.DEFINE_integer("seed", default, meaning, lower_bound=0, upper_bound=LARGEST_SEED)


def seeds(default: int | None, meaning: str) -> None:
    """Defines --seeds, their number."""
    flags.DEFINE_integer("seeds", default, meaning, lower_bound=1, upper_bound=1000)


def shard(meaning: str) -> None:
    """Defines --shard, i/n."""
    flags.DEFINE_string("shard", None, f"i/n: {meaning}")


def ensemble() -> None:
    """Defines --ensemble, which ``experiments.training.parse_ensemble`` reads."""
    flags.DEFINE_string(
        "ensemble",
        "auto",
        "auto | off | N: largest number of seeds of a ConvMixer or of a MetaFormer without stages "
        "trained as one program. auto: as many as fit into the memory of a GPU or TPU; on a CPU, "
        "one at a time.",
    )


def records() -> None:
    """Defines --records, files beside the sweep's own."""
    flags.DEFINE_list(
        "records",
        [],
        "FILE,...: further records.jsonl files, or folders with one; their runs count as finished.",
    )


def dry_run() -> None:
    """Defines --dry_run and --calibrate."""
    flags.DEFINE_bool("dry_run", False, "Print the runs and their cost, and exit.")
    flags.DEFINE_bool(
        "calibrate",
        False,
        "With --dry_run: time some of the runs' steps on this machine, for about a minute, and "
        "print minutes.",
    )


def host_settings() -> None:
    """Defines --tune_host and --compiled, which `tune_host` and `keep_compiled` read."""
    flags.DEFINE_bool(
        "tune_host",
        True,
        "On a CPU, let malloc keep its memory and XLA use 512-bit vectors: 1.4 to 2 times as fast.",
    )
    flags.DEFINE_string(
        "compiled",
        None,
        "Folder in which compiled programs are kept for later runs, or off. Default: .compiled "
        "next to the workdir on a GPU or TPU; on a CPU ~/.cache/randmix/compiled-KEY, of 512 MiB "
        "at most, with a KEY for each kind of processor.",
    )


def processes() -> None:
    """Defines the flags of a run on several hosts: the arguments of ``distributed.start``."""
    flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT of process 0. With --num_processes and --process_id, this process is one of "
        "several. Default: detected on Cloud TPU, GKE (TPUs), SLURM and Open MPI 4; a single "
        "process elsewhere.",
    )
    flags.DEFINE_integer("num_processes", None, "Number of processes.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "Number of this process, from 0.", lower_bound=0)
    flags.DEFINE_integer(
        "heartbeat_timeout",
        60,
        "Seconds without a heartbeat after which a process counts as dead and the others exit.",
        lower_bound=1,
    )


def require(options: Any, flag: str, example: str) -> None:
    """Raises a UserError if a flag is missing or empty."""
    if not getattr(options, flag):
        raise UserError(f"--{flag} is missing; give one, for example --{flag}={example}")


def require_config(options: Any) -> None:
    """Raises a UserError if --config is missing."""
    require(options, "config", "configs/digits.py")


def check_local(options: Any) -> None:
    """Raises a UserError if the --workdir of a sweep, which locks files, is in an object store."""
    if "://" in (options.workdir or ""):
        raise UserError(
            f"--workdir: got {options.workdir}, allowed is a folder of a file system, as the "
            "processes of a sweep lock files there; randmix train takes a bucket"
        )


def check_calibrate(options: Any) -> None:
    """Raises a UserError if --calibrate is given without --dry_run."""
    if options.calibrate and not options.dry_run:
        raise UserError("--calibrate: got it alone, allowed with --dry_run; add --dry_run")


def tune_host(options: Any) -> str:
    """Makes the host settings unless --notune_host is given; returns what was done, for the log."""
    return host.tune() if options.tune_host else "left as they are: --notune_host"


def keep_compiled(options: Any) -> None:
    """Has JAX keep compiled programs, and notes in the options where."""
    parent = os.path.dirname((options.workdir or "runs/default").rstrip("/"))
    default = os.path.join(parent, ".compiled")
    options.compiled = host.keep_compiled(options.compiled, default=default)


def check_processes(options: Any) -> None:
    """Raises a UserError if the flags of several hosts contradict each other."""
    given = {
        name: getattr(options, name) for name in ("coordinator", "num_processes", "process_id")
    }
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return
    if missing:
        raise UserError(
            f"--{missing[0]} is missing; give all of --coordinator, --num_processes and "
            "--process_id, or none"
        )
    if not _ADDRESS.fullmatch(options.coordinator):
        raise UserError(
            f"--coordinator: got {options.coordinator!r}, allowed HOST:PORT, for example "
            "10.0.0.2:8476"
        )
    if options.process_id >= options.num_processes:
        raise UserError(
            f"--process_id: got {options.process_id}, allowed 0 to {options.num_processes - 1}"
        )
