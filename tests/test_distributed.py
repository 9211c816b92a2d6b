"""Starting jax.distributed, and communication between processes.

test_several_processes has real runs.
"""

import os
import re
import sys

import command
import jax
import numpy as np
import pytest

from randmix.errors import UserError
from randmix.runtime import distributed

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
}
NO_TPU = {"TPU_SKIP_MDS_QUERY": "1"}  # as JAX sets it


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        (NO_TPU, False),
        (NO_TPU | SLURM, True),
        (NO_TPU | SLURM | {"SLURM_STEP_NUM_TASKS": ""}, True),  # an old SLURM
        (NO_TPU | SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, False),  # salloc's interactive step
        # srun --pty bash
        (NO_TPU | SLURM | {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}, False),
        # the batch script
        (NO_TPU | {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, False),
        (NO_TPU | {"OMPI_MCA_orte_hnp_uri": "1;tcp://a:1", "OMPI_COMM_WORLD_SIZE": "2"}, True),
        (  # mpirun's daemon on another node is one task of a SLURM step
            NO_TPU
            | SLURM
            | {"SLURM_STEP_NUM_TASKS": "1"}
            | {"OMPI_MCA_orte_hnp_uri": "1;tcp://a:1", "OMPI_COMM_WORLD_SIZE": "2"},
            True,
        ),
        (NO_TPU | {"OMPI_MCA_orte_hnp_uri": "1;tcp://a:1", "OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({}, True),  # a Cloud TPU VM
        ({"JAX_PLATFORMS": "tpu,cpu"}, True),
        ({"JAX_PLATFORMS": "cpu"}, False),  # a small job beside a pod's run
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),  # GKE
        ({"TPU_WORKER_HOSTNAMES": "a"}, False),
        ({"TPU_PROCESS_ADDRESSES": "local"}, False),  # a hosted notebook
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, True),
        (NO_TPU | {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),  # a notebook's pod
    ],
)
def test_when_jax_may_look_for_other_processes(environment, several):
    assert distributed._started_as_one_of_several(environment) == several


def test_an_indexed_job_counts_if_jax_can_ask_kubernetes(monkeypatch):
    for spec, several in ((None, False), ("found", True)):
        monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name, spec=spec: spec)
        assert (
            distributed._started_as_one_of_several(NO_TPU | {"JOB_COMPLETION_INDEX": "0"})
            == several
        )


@pytest.fixture
def started(monkeypatch):
    """The arguments to jax.distributed.initialize and to the preemption service's switch."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: calls.append(arguments))
    monkeypatch.setattr(jax.config, "update", lambda name, value: calls.append((name, value)))
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    for name in [name for name in os.environ if name.startswith(("SLURM_", "OMPI_", "TPU_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")

    def start(*arguments, saves_when_stopped=True, **options):
        distributed.start(*arguments, saves_when_stopped=saves_when_stopped, **options)
        return calls

    return start


def test_one_process_starts_nothing(started):
    assert started() == []


def test_arguments_win_over_what_jax_would_find(started, monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert started("10.0.0.2:8476", 3, 0, heartbeat_timeout=9, saves_when_stopped=False) == [
        ("jax_enable_preemption_service", False),
        {
            "coordinator_address": "10.0.0.2:8476",
            "num_processes": 3,
            "process_id": 0,
            "cluster_detection_method": "deactivate",
            "heartbeat_timeout_seconds": 9,
        },
    ]


def test_in_a_slurm_step_jax_finds_out(started, monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert started() == [("jax_enable_preemption_service", True), {"heartbeat_timeout_seconds": 60}]


def test_other_processes_are_silent(started, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # put back afterwards
    started("a:1", 2, 1)
    with sys.stdout as silent:
        assert silent.name == os.devnull


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--num_processes=2", "--process_id=0"],
            "--coordinator is missing; "
            "give all of --coordinator, --num_processes and --process_id, or none",
        ),
        (
            ["--coordinator=a:1", "--process_id=0"],
            "--num_processes is missing; "
            "give all of --coordinator, --num_processes and --process_id, or none",
        ),
        (
            ["--coordinator=10.0.0.2", "--num_processes=2", "--process_id=0"],
            "--coordinator: got '10.0.0.2', allowed HOST:PORT, for example 10.0.0.2:8476",
        ),
        (
            ["--coordinator=a:1", "--num_processes=2", "--process_id=2"],
            "--process_id: got 2, allowed 0 to 1",
        ),
    ],
)
@pytest.mark.parametrize(
    "program",
    [("randmix.main", "--config=configs/digits.py"), ("randmix evaluate", "--workdir=runs/none")],
)
def test_a_mistake_in_the_flags_is_one_line(program, flags, message, tmp_path):
    done = command.run(*program, *flags, cwd=command.REPOSITORY)
    assert (done.status, done.err) == (2, f"randmix: {message}\n")


def test_help_has_the_flags():
    for program in ("randmix.main", "randmix evaluate"):
        out = command.run(program, "--help").out
        for flag in ("coordinator", "num_processes", "process_id", "heartbeat_timeout (60)"):
            assert f"--{flag}\n" in out


@pytest.fixture
def three(monkeypatch):
    """This process as number 1 of three, with given texts from the others."""
    monkeypatch.setattr(jax, "process_count", lambda: 3)

    def others(before, after):
        def allgather(row):
            texts = [before.encode(), bytes(row[row != 0]), after.encode()]
            return np.stack(
                [np.frombuffer(text.ljust(len(row), b"\0"), np.uint8) for text in texts]
            )

        monkeypatch.setattr("jax.experimental.multihost_utils.process_allgather", allgather)

    return others


def test_an_error_on_any_process_is_raised_here(three):
    three("", "no such folder: ä")
    with (
        pytest.raises(UserError, match=r"^process 2: no such folder: ä$"),
        distributed.shared_errors(),
    ):
        pass
    three("", "")
    with distributed.shared_errors():
        pass
    with pytest.raises(UserError, match=r"^mine$"), distributed.shared_errors():
        raise UserError("mine")


def test_a_long_error_is_cut(three):
    three("", "")
    with pytest.raises(UserError, match=r"^x{3000}$"), distributed.shared_errors():
        raise UserError("x" * 3000)


def test_processes_must_have_the_same_config(three):
    ours = distributed.hashlib.sha256(b"ours").hexdigest()
    three(ours, ours)
    distributed.require_same("config", "ours")
    three(ours, "other")
    message = "process 2 has another config than process 0; give the same command on all hosts"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        distributed.require_same("config", "ours")
