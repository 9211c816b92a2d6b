"""launch/slurm.sbatch under a SLURM of shell scripts: which runs it queues again."""

import os
import subprocess

import pytest
from launchers import LAUNCH, SCANCEL, SRUN

PYTHON = """#!/usr/bin/env bash
if [[ $STATUS == wait ]]; then trap 'sleep 0.5; echo saved >> "$LOG"; exit 75' TERM; fi
echo "$*" >> "$LOG"
while [[ $STATUS == wait ]]; do sleep 0.1; done
exit "$STATUS"
"""
SCONTROL = """#!/usr/bin/env bash
echo "$*" >> "$LOG"
! grep -q . "$LOG.unreachable" 2>/dev/null || { sed -i 1d "$LOG.unreachable"; exit 1; }
"""


def slurm(tmp_path, tasks, restarts=0, **more):
    """Starts the batch script under a SLURM made of shell scripts."""
    commands = {"srun": SRUN, "scancel": SCANCEL, "python": PYTHON, "scontrol": SCONTROL}
    for name, text in commands.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "LOG": str(tmp_path / "log"),
        "TASKS": tasks,
        "POLL": "0",
        "SLURM_JOB_ID": "7",
        "SLURM_RESTART_COUNT": str(restarts),
        "SLURM_NTASKS": "1",
        "SLURM_ARRAY_JOB_ID": "5",
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_ARRAY_TASK_MIN": "1",
        "SLURM_ARRAY_TASK_COUNT": "8",
    }
    with (tmp_path / "errors").open("w") as errors:
        return subprocess.Popen(
            ["bash", LAUNCH / "slurm.sbatch", "randmix", "reproduce", "--seeds=0, 1"],
            cwd=tmp_path,
            env={**os.environ, **environment, **more},
            stderr=errors,
        )


RAN = "-u -m randmix reproduce --seeds=0, 1 --shard=3/8"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tasks", "restarts", "status", "requeued"),
    [
        ("0 0", 0, 0, False),
        ("75 75", 0, 0, True),
        ("75 75", 50, 1, False),
        ("1 137", 0, 0, True),
        ("2 143", 0, 2, False),
        ("1 1", 0, 1, False),
    ],
)
def test_slurm_queues_again_after_preemption_and_never_after_a_mistake(
    tasks, restarts, status, requeued, tmp_path
):
    assert slurm(tmp_path, tasks, restarts).wait(60) == status
    assert (tmp_path / "log").read_text().splitlines() == [RAN] * 2 + ["requeue 5_3"] * requeued
    assert not list(tmp_path.glob(".randmix-*"))


@pytest.mark.slow
def test_slurms_controller_is_asked_again(tmp_path):
    (tmp_path / "log.unreachable").write_text("slurmctld is down\n" * 2)
    assert slurm(tmp_path, "75").wait(60) == 0
    assert (tmp_path / "log").read_text().splitlines() == [RAN, *["requeue 5_3"] * 3]


@pytest.mark.slow
def test_the_batch_script_says_that_it_needs_sbatch():
    done = subprocess.run(
        ["bash", LAUNCH / "slurm.sbatch", "--config=x"],
        capture_output=True,
        text=True,
        env={**os.environ, "SLURM_JOB_ID": ""},
    )
    assert (done.returncode, done.stderr) == (
        2,
        "slurm.sbatch: not in a SLURM job; start this script with sbatch\n",
    )


@pytest.mark.slow
def test_slurms_warning_reaches_the_run_which_may_save_before_it_is_queued_again(tmp_path):
    process = slurm(tmp_path, "wait")
    while not (tmp_path / "log").exists():
        assert process.poll() is None
    process.terminate()
    assert process.wait(60) == 0
    assert (tmp_path / "log").read_text().splitlines() == [RAN, "saved", "requeue 5_3"]


@pytest.mark.slow
def test_a_job_of_an_array_is_one_process(tmp_path):
    assert slurm(tmp_path, "0", SLURM_NTASKS="4").wait(60) == 2
    assert (tmp_path / "errors").read_text() == (
        "slurm.sbatch: got 4 tasks for each job of an array, allowed is one; give "
        "--ntasks-per-node=1 --gpus-per-node=1\n"
    )
    assert not (tmp_path / "log").exists()
