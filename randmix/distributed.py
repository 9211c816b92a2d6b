"""One run on several hosts: starting jax.distributed, and what its processes must agree on.

Every process runs the same program over the devices of all. `start` precedes any other use of JAX; where a single
process runs, everything here does nothing.
"""

import contextlib
import hashlib
import importlib.util
import os
import re
import sys
import uuid
from collections.abc import Iterator, Mapping

from absl import flags
from etils import epath

from randmix.errors import UserError

flags.disclaim_key_flags()  # they belong to the program that asks for them, and to its --help

_FLAGS = ("coordinator", "num_processes", "process_id")
_ADDRESS = re.compile(r".+:\d{1,5}")
_LONGEST = 2048  # bytes of a text that processes exchange


def define_flags() -> None:
    """Defines the flags that `start` reads."""
    flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT of process 0, with --num_processes and --process_id: this is one of several processes. Default: "
        "found out on Cloud TPU, SLURM, GKE and Open MPI; elsewhere one process.",
    )
    flags.DEFINE_integer("num_processes", None, "How many processes there are.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "Which one this is, from 0.", lower_bound=0)
    flags.DEFINE_integer(
        "heartbeat_timeout",
        60,
        "Seconds without a sign of life after which a process counts as dead, and the others end.",
        lower_bound=1,
    )


def start(*, saves_when_stopped: bool) -> None:
    """Starts jax.distributed if this is one of several processes; only process 0 then prints.

    Args:
        saves_when_stopped: whether the program asks `preemption.StopSignals`. SIGTERM then no longer ends the
            process: JAX tells all of them which step to stop at.

    Raises:
        UserError: the flags contradict each other.
    """
    arguments = _explicit(*(flags.FLAGS[name].value for name in _FLAGS))
    import jax  # after the flags: a mistake in them is told at once

    if arguments is None and _started_as_one_of_several(os.environ):
        arguments = {}  # JAX finds out
    if arguments is None:
        return
    jax.config.update("jax_enable_preemption_service", saves_when_stopped)
    jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=flags.FLAGS.heartbeat_timeout)
    if not is_primary():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (to the end of the process)


def _explicit(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> dict | None:
    """The arguments of jax.distributed.initialize that the flags give; None without them."""
    given = dict(zip(_FLAGS, (coordinator, num_processes, process_id), strict=True))
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return None
    if missing:
        raise UserError(
            f"--{missing[0]} is missing; give all of --coordinator, --num_processes and --process_id, or none"
        )
    if not _ADDRESS.fullmatch(coordinator):
        raise UserError(
            f"--coordinator: got {coordinator!r}, allowed HOST:PORT, for example 10.0.0.2:8476"
        )
    if process_id >= num_processes:
        raise UserError(f"--process_id: got {process_id}, allowed 0 to {num_processes - 1}")
    return {
        "coordinator_address": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
        "cluster_detection_method": "deactivate",  # it would choose this process's devices
    }


def _started_as_one_of_several(environment: Mapping[str, str]) -> bool:
    """Whether to let JAX find the other processes, by the variables of the launchers that it knows.

    JAX itself looks at fewer of them, and would wait for processes that never come in an interactive SLURM shell
    (whose allocation has several tasks, but whose step has one) or fail in a notebook's pod on Kubernetes.
    JAX must be imported.
    """
    if "SLURM_STEP_NODELIST" in environment and "SLURM_PROCID" in environment:
        return _number(environment, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") > 1
    if "OMPI_MCA_orte_hnp_uri" in environment:
        return _number(environment, "OMPI_COMM_WORLD_SIZE") > 1
    platforms = environment.get("JAX_PLATFORMS", "")
    # JAX sets the variable as it is imported where there is no TPU chip.
    if "TPU_SKIP_MDS_QUERY" not in environment and (not platforms or "tpu" in platforms):
        hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
        several_slices = _number(environment, "MEGASCALE_NUM_SLICES") > 1
        # GKE lists the hosts. A Cloud TPU VM asks its metadata server, and one host alone is fine there.
        return several_slices or hosts is None or "," in hosts
    return (
        "JOB_COMPLETION_INDEX" in environment and importlib.util.find_spec("kubernetes") is not None
    )


def _number(environment: Mapping[str, str], *names: str) -> int:
    """The first of the variables that is set, as a number; 1 without."""
    return next((int(environment[name]) for name in names if environment.get(name)), 1)


def is_primary() -> bool:
    """Whether this is process 0, the one that writes files and prints."""
    import jax

    return jax.process_index() == 0


@contextlib.contextmanager
def shared_errors() -> Iterator[None]:
    """A UserError in the body, on any process, is raised on all: none is left waiting for another.

    Every process must enter, and the body must not wait for other processes.
    """
    error = None
    try:
        yield
    except UserError as caught:
        error = caught
    messages = _gather("" if error is None else str(error))
    if error is not None:
        raise error
    for process, message in enumerate(messages):
        if message:
            raise UserError(f"process {process}: {message}")


def require_same(what: str, text: str) -> None:
    """Raises a UserError on all processes unless `text` is the same on all.

    Args:
        what: for the message, "config".
        text: of any length.
    """
    first, *others = _gather(hashlib.sha256(text.encode()).hexdigest())
    for process, other in enumerate(others, start=1):
        if other != first:
            raise UserError(
                f"process {process} has another {what} than process 0; give the same command on all hosts"
            )


def require_shared(folder: epath.Path) -> None:
    """Raises a UserError on all processes unless all see the same folder, which exists on process 0."""
    import jax

    if jax.process_count() == 1:
        return
    # A name that was never looked up: network file systems remember for seconds that a file wasn't there.
    mark = folder / f".seen-by-all-{uuid.uuid4().hex if is_primary() else ''}"
    if is_primary():
        mark.write_text("")
    mark = folder / _gather(mark.name)[0]
    try:
        with shared_errors():
            if not mark.exists():
                raise UserError(
                    f"{folder}: isn't the folder that process 0 sees under this name; give a --workdir that all "
                    "hosts share, on a network file system or gs://"
                )
    finally:
        if is_primary():
            mark.unlink()


def _gather(text: str) -> list[str]:
    """The text of every process, by its number; cut after `_LONGEST` bytes."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return [text]
    row = np.zeros(_LONGEST, np.uint8)
    encoded = text.encode()[:_LONGEST]
    row[: len(encoded)] = list(encoded)
    rows = multihost_utils.process_allgather(row)
    return [bytes(row[row != 0]).decode(errors="ignore") for row in rows]
