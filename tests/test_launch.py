"""The scripts of launch/: they parse, their commands are valid, and they restart the right runs.

test_several_processes covers local_processes.sh with real runs.
"""

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

pytestmark = pytest.mark.slow

LAUNCH = command.REPOSITORY / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
JOBSET = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
POD = ("--name=mine", "--zone=us-west4-a", "--accelerator=v5litepod-16", "--spot")
RUN = (
    "--config=configs/digits.py",
    "--config.train=~role('spatial') | depth(2, None)",
    "--workdir=gs://bucket/a",
)


def launch(script, *arguments, **environment):
    return subprocess.run(
        [LAUNCH / script, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


def assert_parses(arguments):
    """Checks that randmix.main accepts the flags; --summary only shows what would be trained."""
    done = command.run("randmix.main", *arguments, "--summary", cwd=command.REPOSITORY)
    assert done.status == 0, (arguments, done.err)


def headers():
    """The commands in the header comments of all files, continued lines joined."""
    for path in sorted(LAUNCH.iterdir()):
        lines = re.findall(r"^#(     .*)$", path.read_text(), re.MULTILINE)
        for line in "\n".join(lines).replace("\\\n", " ").splitlines():
            if line.split()[0].startswith(("launch/", "sbatch", "docker", "kubectl")):
                yield path, shlex.split(line)


def test_shellcheck_finds_nothing():
    assert len(SCRIPTS) == 3
    shellcheck = shutil.which(
        "shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    done = subprocess.run([shellcheck, *SCRIPTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_scripts_are_executable_where_they_are_run_by_name():
    assert all(os.access(path, os.X_OK) for path in LAUNCH.glob("*.sh"))


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


def test_the_image_holds_what_it_copies_and_runs_main():
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    for line in lines:
        if line.startswith("COPY"):
            assert all((command.REPOSITORY / name).exists() for name in line.split()[1:-1]), line
    assert lines[-1] == 'ENTRYPOINT ["python", "-u", "-m", "randmix.main"]'


def test_the_pods_dry_run_prints_gcloud_commands_whose_run_parses():
    done = launch("tpu_pod.sh", *POD, "--dry_run", "--", *RUN)
    assert done.returncode == 0, done.stderr
    commands = [shlex.split(line) for line in done.stdout.splitlines()]
    assert [words[:5] for words in commands] == [
        ["gcloud", "compute", "tpus", *verb]
        for verb in (
            ("queued-resources", "create"),
            ("tpu-vm", "scp"),
            ("tpu-vm", "ssh"),
            ("tpu-vm", "ssh"),
            ("queued-resources", "delete"),
        )
    ]
    assert "--spot" in commands[0]
    (remote,) = [word for word in commands[3] if word.startswith("--command=")]
    arguments = shlex.split(re.search(r"randmix\.main (.*?) & echo", remote)[1])
    assert arguments == list(RUN)
    assert_parses(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*POD, "--dry"), "unknown flag --dry"),
        (POD[1:], "--name, --zone and --accelerator are needed"),
        ((*POD, "--"), "the run's flags are missing"),
    ],
)
def test_a_mistake_in_the_pods_flags(arguments, message):
    done = launch("tpu_pod.sh", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "launch/tpu_pod.sh --name=mine" in done.stderr


GCLOUD = """#!/usr/bin/env bash
# A cloud whose workers end as $CLOUD/outcomes says, one line per run; "lost" is a preemption.
case "$3 $4" in
  "queued-resources describe") cat "$CLOUD/state" 2>/dev/null ;;
  "queued-resources create") echo ACTIVE > "$CLOUD/state"; echo create >> "$CLOUD/log" ;;
  "queued-resources delete") rm "$CLOUD/state"; echo delete >> "$CLOUD/log" ;;
  "tpu-vm scp") ;;
  "tpu-vm ssh")
    if [[ "$*" != *randmix-status* ]]; then exit 0; fi
    read -r outcome < "$CLOUD/outcomes"; sed -i 1d "$CLOUD/outcomes"
    echo "run $outcome" >> "$CLOUD/log"
    if [[ $outcome == lost ]]; then echo SUSPENDED > "$CLOUD/state"; exit 1; fi
    for status in $outcome; do echo "randmix-status $status"; done ;;
esac
"""


@pytest.mark.parametrize(
    ("outcomes", "status", "log"),
    [
        (["0 0"], 0, ["create", "run 0 0", "delete"]),
        (["75 75", "0 0"], 0, ["create", "run 75 75", "run 0 0", "delete"]),
        (["134 137", "0 0"], 0, ["create", "run 134 137", "run 0 0", "delete"]),
        (["1 137", "0 0"], 0, ["create", "run 1 137", "run 0 0", "delete"]),
        (["lost", "0 0"], 0, ["create", "run lost", "delete", "create", "run 0 0", "delete"]),
        (["2 2"], 2, ["create", "run 2 2", "delete"]),
        (["2 137"], 2, ["create", "run 2 137", "delete"]),
        (["1 1"], 1, ["create", "run 1 1", "delete"]),
        (["75 75", "75 75", "75 75"], 1, ["create", *["run 75 75"] * 3, "delete"]),
    ],
)
def test_the_pod_is_started_again_after_preemption_and_never_after_a_mistake(
    outcomes, status, log, tmp_path
):
    (tmp_path / "gcloud").write_text(GCLOUD)
    (tmp_path / "gcloud").chmod(0o755)
    (tmp_path / "outcomes").write_text("\n".join(outcomes) + "\n")
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = launch(
        "tpu_pod.sh", *POD, "--", *RUN, PATH=path, CLOUD=str(tmp_path), POLL="0", RESTARTS="2"
    )
    assert done.returncode == status, done.stderr
    assert (tmp_path / "log").read_text().splitlines() == log


SRUN = """#!/usr/bin/env bash
# Runs the tasks sequentially, each in a process group that receives srun's signals and ends with
# its first process, as SLURM's do; $TASKS has their exit statuses.
while [[ $1 == --* ]]; do shift; done
trap 'kill -TERM -- "-$task"' TERM
largest=0
for status in $TASKS; do
  STATUS=$status setsid "$@" &
  task=$!
  while wait "$task"; got=$?; kill -0 "$task" 2>/dev/null; do :; done
  kill -KILL -- "-$task" 2>/dev/null
  ((got > largest)) && largest=$got
done
exit $largest
"""
PYTHON = """#!/usr/bin/env bash
if [[ $STATUS == wait ]]; then trap 'sleep 0.5; echo saved >> "$LOG"; exit 75' TERM; fi
echo "$*" >> "$LOG"
while [[ $STATUS == wait ]]; do sleep 0.1; done
exit "$STATUS"
"""


def slurm(tmp_path, tasks, restarts=0):
    """Starts the batch script under a SLURM made of two shell scripts."""
    scontrol = '#!/usr/bin/env bash\necho "$*" >> "$LOG"\n'
    for name, text in (("srun", SRUN), ("python", PYTHON), ("scontrol", scontrol)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "LOG": str(tmp_path / "log"),
        "TASKS": tasks,
        "SLURM_JOB_ID": "7",
        "SLURM_RESTART_COUNT": str(restarts),
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_ARRAY_TASK_MIN": "1",
        "SLURM_ARRAY_TASK_COUNT": "8",
    }
    return subprocess.Popen(
        ["bash", LAUNCH / "slurm.sbatch", "randmix.reproduce", "--seeds=0, 1"],
        cwd=tmp_path,
        env={**os.environ, **environment},
    )


RAN = "-u -m randmix.reproduce --seeds=0, 1 --shard=3/8"


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
    assert (tmp_path / "log").read_text().splitlines() == [RAN] * 2 + ["requeue 7"] * requeued
    assert not list(tmp_path.glob(".randmix-*"))


def test_slurms_warning_reaches_the_run_which_may_save_before_it_is_queued_again(tmp_path):
    process = slurm(tmp_path, "wait")
    while not (tmp_path / "log").exists():
        assert process.poll() is None
    process.terminate()
    assert process.wait(60) == 0
    assert (tmp_path / "log").read_text().splitlines() == [RAN, "saved", "requeue 7"]


LOCAL = """#!/usr/bin/env bash
if [[ $1 == -c ]]; then echo 9999; exit; fi
id=${*: -1}; id=${id#*=}
echo "$*" >> "$LOG.$id"
starts=$(wc -l < "$LOG.$id")
status=$(sed -n "${starts}p" "$STATUSES" | cut -d' ' -f$((id + 1)))
trap 'exit 75' TERM
if [[ $status == wait ]]; then while :; do sleep 0.1; done; fi
exit "$status"
"""


def local(tmp_path, statuses, **environment):
    (tmp_path / "python").write_text(LOCAL)
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "statuses").write_text("\n".join(statuses) + "\n")
    environment |= {"LOG": str(tmp_path / "log"), "STATUSES": str(tmp_path / "statuses")}
    environment |= {"PYTHON": str(tmp_path / "python"), "RESTARTS": "2", "GRACE": "1"}
    return subprocess.Popen(
        [LAUNCH / "local_processes.sh", "2", "--config=a b.py"],
        text=True,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    ("statuses", "status", "starts"),
    [
        (["0 0"], 0, 1),
        (["75 75", "0 0"], 0, 2),
        (["1 137", "0 0"], 0, 2),
        (["2 wait"], 2, 1),  # the other hangs, and is killed
        (["1 1"], 1, 1),
        (["75 75"] * 3, 1, 3),
    ],
)
def test_local_processes_start_again_together(statuses, status, starts, tmp_path):
    process = local(tmp_path, statuses)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    for i in range(2):
        ran = (tmp_path / f"log.{i}").read_text().splitlines()
        flags = f"--config=a b.py --coordinator=localhost:9999 --num_processes=2 --process_id={i}"
        assert ran == [f"-u -m randmix.main {flags}"] * starts


def test_sigterm_is_handed_on_and_is_final(tmp_path):
    process = local(tmp_path, ["wait wait", "0 0"])
    while not all((tmp_path / f"log.{i}").exists() for i in range(2)):
        assert process.poll() is None
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "again" not in err


def test_local_processes_print_their_usage():
    for arguments in ((), ("two", "--config=x"), ("2",)):
        done = launch("local_processes.sh", *arguments)
        assert done.returncode == 2
        assert "launch/local_processes.sh 2 --config=configs/digits.py" in done.stderr
