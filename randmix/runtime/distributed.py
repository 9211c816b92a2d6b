"""Multi-host runs: starting jax.distributed, and agreement between its processes.

Every process runs the same program over the devices of all processes. Call `start` before any other
use of JAX. With a single process, nothing here has any effect.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import sys
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TypeVar

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from randmix.errors import UserError

Result = TypeVar("Result")

_LONGEST = 2048  # bytes of text that processes exchange


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat_timeout: int = 60,
    saves_when_stopped: bool,
) -> None:
    """Starts jax.distributed if this is one of several processes; then only process 0 prints.

    Args:
        coordinator: HOST:PORT of process 0.
        num_processes: number of processes.
        process_id: number of this process, from 0. Give all of these three, or none: then JAX
            finds the other processes on Cloud TPU, GKE (TPUs), SLURM and Open MPI 4; elsewhere
            there are none.
        heartbeat_timeout: seconds without a heartbeat after which a process counts as dead.
        saves_when_stopped: whether the program uses `preemption.StopSignals`. SIGTERM then no
            longer ends the process; JAX tells all processes at which step to stop.
    """
    if coordinator is not None:
        arguments = {
            "coordinator_address": coordinator,
            "num_processes": num_processes,
            "process_id": process_id,
            "cluster_detection_method": "deactivate",  # it would choose this process's devices
        }
    elif _started_as_one_of_several(os.environ):
        arguments = {}  # JAX detects them
    else:
        return
    jax.config.update("jax_enable_preemption_service", saves_when_stopped)
    jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=heartbeat_timeout)
    if not is_primary():
        # Every print in this package, in libraries and in the user's own code is the same on all
        # processes; asking each of them for the process number would miss some.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)


def _started_as_one_of_several(environment: Mapping[str, str]) -> bool:
    """Whether to let JAX find the other processes, judging by the launchers' variables.

    JAX checks fewer variables. In an interactive SLURM shell, where the allocation has several
    tasks but the step has one, it would wait for processes that never start; in a notebook's pod on
    Kubernetes it would fail. JAX must already be imported.
    """
    if "OMPI_MCA_orte_hnp_uri" in environment:  # first, as mpirun may run in a SLURM step
        return _number(environment, "OMPI_COMM_WORLD_SIZE") > 1
    if "SLURM_STEP_NODELIST" in environment and "SLURM_PROCID" in environment:
        return _number(environment, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") > 1
    platforms = environment.get("JAX_PLATFORMS", "")
    # JAX sets this variable on import if there is no TPU chip.
    if "TPU_SKIP_MDS_QUERY" not in environment and (not platforms or "tpu" in platforms):
        hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
        several_slices = _number(environment, "MEGASCALE_NUM_SLICES") > 1
        # GKE lists the hosts. A Cloud TPU VM asks its metadata server, which also works for a
        # single host.
        return several_slices or hosts is None or "," in hosts
    return (
        "JOB_COMPLETION_INDEX" in environment and importlib.util.find_spec("kubernetes") is not None
    )


def _number(environment: Mapping[str, str], *names: str) -> int:
    """Returns the first variable that is set, as an integer; 1 if none is."""
    return next((int(environment[name]) for name in names if environment.get(name)), 1)


def _alone() -> bool:
    return jax.process_count() == 1


def is_primary() -> bool:
    """Whether this is process 0, which writes files and prints."""
    return jax.process_index() == 0


@contextlib.contextmanager
def shared_errors() -> Iterator[None]:
    """Raises a UserError from any process's body on all processes, so that none waits for another.

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


def decided_by_primary(decide: Callable[[], Result]) -> Result:
    """Returns process 0's decision, a JSON value, on all processes; only process 0 decides.

    Raises:
        UserError: on all processes, if ``decide`` raised one.
    """
    if _alone():
        return decide()
    text, error = "", None
    if is_primary():
        try:
            text = f"={json.dumps(decide())}"
        except UserError as mistake:  # alone, process 0 would leave the others waiting
            text, error = f"!{mistake}", mistake
    text = _broadcast(text)
    if text.startswith("!"):
        raise error or UserError(text[1:])
    return json.loads(text[1:])


def require_same(what: str, text: str) -> None:
    """Raises a UserError on all processes unless `text` is the same on all.

    Args:
        what: the name of the text in the message, such as "config".
        text: a text of any length.
    """
    first, *others = _gather(hashlib.sha256(text.encode()).hexdigest())
    for process, other in enumerate(others, start=1):
        if other != first:
            raise UserError(
                f"process {process} has another {what} than process 0; "
                "give the same command on all hosts"
            )


def union(numbers: Collection[int]) -> set[int]:
    """Returns every process's numbers, on all processes; each must be in 0 .. 2**31 - 1."""
    if _alone():
        return set(numbers)
    most = int(multihost_utils.process_allgather(np.int32(len(numbers))).max())
    if not most:
        return set()
    row = np.full(1 << (most - 1).bit_length(), -1, np.int32)  # few lengths, few compilations
    row[: len(numbers)] = sorted(numbers)
    return set(multihost_utils.process_allgather(row).ravel().tolist()) - {-1}


def require_shared(folder: epath.Path) -> None:
    """Raises a UserError on all processes unless all see process 0's folder, which must exist."""
    if _alone():
        return
    # A fresh name: network file systems cache for seconds that a file wasn't there.
    mark = folder / f".seen-by-all-{uuid.uuid4().hex if is_primary() else ''}"
    if is_primary():
        mark.write_text("")
    mark = folder / _gather(mark.name)[0]
    try:
        with shared_errors():
            if not mark.exists():
                raise UserError(
                    f"{folder}: isn't the folder that process 0 sees under this name; give a "
                    "--workdir that all hosts share, on a network file system or gs://"
                )
    finally:
        if is_primary():
            mark.unlink()


def _broadcast(text: str) -> str:
    """Returns process 0's text on all processes."""
    encoded = text.encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(encoded))))
    row = np.zeros(-(-size // _LONGEST) * _LONGEST, np.uint8)  # few lengths, few compilations
    if is_primary():
        row[:size] = list(encoded)
    return bytes(multihost_utils.broadcast_one_to_all(row)[:size]).decode()


def _gather(text: str) -> list[str]:
    """Returns every process's text, in process order, each cut after `_LONGEST` bytes."""
    if _alone():
        return [text]
    row = np.zeros(_LONGEST, np.uint8)
    encoded = text.encode()[:_LONGEST]
    row[: len(encoded)] = list(encoded)
    rows = multihost_utils.process_allgather(row)
    return [bytes(row[row != 0]).decode(errors="ignore") for row in rows]
