"""launch/ as a whole: scripts and examples parse, the jobset's rules, and what the image holds."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import command
import pytest
import yaml
from launchers import LAUNCH, assert_parses

SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
JOBSET = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())


def headers():
    """The commands in the header comments of all files, continued lines joined."""
    for path in sorted(LAUNCH.iterdir()):
        lines = re.findall(r"^#(     .*)$", path.read_text(), re.MULTILINE)
        for line in "\n".join(lines).replace("\\\n", " ").splitlines():
            if line.split()[0].startswith(("launch/", "sbatch", "docker", "kubectl")):
                yield path, shlex.split(line)


@pytest.mark.slow
def test_shellcheck_finds_nothing():
    assert len(SCRIPTS) == 3
    shellcheck = shutil.which(
        "shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    done = subprocess.run([shellcheck, *SCRIPTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_scripts_are_executable_where_they_are_run_by_name():
    assert all(os.access(path, os.X_OK) for path in LAUNCH.glob("*.sh"))


@pytest.mark.slow
def test_the_commands_in_the_headers_parse():
    ran = []
    for path, words in headers():
        flags = [word for word in words if word.startswith(("--config", "--workdir"))]
        assert all(
            (command.REPOSITORY / word).exists() for word in words if word.startswith("launch/")
        )
        if any(flag.startswith("--config") for flag in flags):
            assert_parses(flags)
            ran.append(path.name)
    assert ran == ["local_processes.sh", "slurm.sbatch", "tpu_pod.sh"]


@pytest.mark.slow
def test_the_jobset_fails_on_a_mistake_and_restarts_on_the_rest():
    (job,) = JOBSET["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule == {
        "action": "FailJob",
        "onExitCodes": {"containerName": container["name"], "operator": "In", "values": [2]},
    }
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["backoffLimit"] == 0
    assert spec["parallelism"] == spec["completions"]
    policy = JOBSET["spec"]["failurePolicy"]
    assert policy["rules"] == [
        {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]
    assert policy["maxRestarts"] > 1
    assert_parses(container["args"])


@pytest.mark.slow
def test_the_image_holds_what_it_copies_and_runs_main():
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    for line in lines:
        if line.startswith("COPY"):
            assert all((command.REPOSITORY / name).exists() for name in line.split()[1:-1]), line
    assert lines[-1] == 'ENTRYPOINT ["python", "-u", "-m", "randmix.main"]'
