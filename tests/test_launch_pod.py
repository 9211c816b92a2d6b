"""launch/tpu_pod.sh with a stand-in for gcloud: what it refuses, starts again and deletes."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import time

import pytest
from launchers import GCLOUD, RUN, assert_parses, commit_launchers, git, launch

POD = ("--name=mine", "--zone=us-west4-a", "--accelerator=v5litepod-16", "--spot")


@pytest.fixture
def checkout(tmp_path):
    """A checkout of which everything is committed."""
    folder = tmp_path / "checkout"
    (folder / "randmix").mkdir(parents=True)
    (folder / "randmix" / "train.py").write_text("")
    commit_launchers(folder)
    return folder


@pytest.mark.slow
def test_the_pods_dry_run_prints_gcloud_commands_whose_run_parses(checkout):
    done = launch(checkout / "launch" / "tpu_pod.sh", *POD, "--dry_run", "--", *RUN)
    assert (done.returncode, done.stderr) == (0, "")
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


@pytest.mark.slow
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


OWN_DISK = "each worker would write to its own disk; give"
LOCAL_FOLDER = (
    f"--workdir=runs/a: {OWN_DISK} gs://BUCKET/FOLDER, or a folder of a file system that "
    "--setup=COMMAND mounts on all workers"
)
GET = "in commit COMMIT of ROOT, which is what workers get;"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (RUN[:1], f"--workdir is missing, and {OWN_DISK} --workdir=gs://BUCKET/FOLDER after --"),
        (("randmix", "reproduce", "--preset=cifar10"), f"--workdir is missing, and {OWN_DISK}"),
        ((RUN[0], "--workdir=runs/a"), LOCAL_FOLDER),
        ((RUN[0], "--workdir", "runs/a"), LOCAL_FOLDER),
        ((*RUN, "-workdir=runs/a"), LOCAL_FOLDER),
        ((RUN[0], "--workdir=gs://"), "--workdir=gs://: each worker would write to its own disk"),
        (
            ("--config=configs/mine.py:tiny", RUN[2]),
            f"--config=configs/mine.py:tiny: configs/mine.py isn't {GET} "
            "commit it there, and give its path from there",
        ),
        (("--config", "missing.py", RUN[2]), f"--config=missing.py: missing.py isn't {GET}"),
        (("--config=ROOT/configs/digits.py", RUN[2]), f"ROOT/configs/digits.py isn't {GET}"),
        (("--config=../digits.py", RUN[2]), f"../digits.py isn't {GET}"),
    ],
)
@pytest.mark.parametrize("flags", [(), ("--dry_run",)])
def test_what_would_fail_on_the_slice_is_refused_before_it_is_requested(
    checkout, tmp_path, flags, arguments, message
):
    (checkout / "configs" / "mine.py").write_text("")
    arguments = [argument.replace("ROOT", str(checkout)) for argument in arguments]
    done = pod(checkout, tmp_path, [], *flags, run=arguments)
    found = subprocess.check_output(
        ["git", "rev-parse", "--short", "HEAD"], cwd=checkout, text=True
    )
    message = message.replace("ROOT", str(checkout)).replace("COMMIT", found.strip())
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert done.stderr.startswith("tpu_pod: ")
    assert message in done.stderr
    assert log(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "configs" / "digits.py").write_text("changed"),
        lambda folder: (folder / "randmix" / "new.py").write_text(""),
        lambda folder: (folder / "randmix" / "train.py").unlink(),
        lambda folder: git(folder, "rm", "--quiet", "--cached", "launch/Dockerfile"),
    ],
)
def test_a_pod_is_refused_what_is_not_committed(checkout, tmp_path, change):
    change(checkout)
    done = pod(checkout, tmp_path, [], "--dry_run")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert re.fullmatch(
        rf"tpu_pod: {checkout} has changes that aren't in commit \w+, which is what workers get "
        r"\([\w/.]+\); commit them, or run git stash -u\n",
        done.stderr,
    )


@pytest.mark.slow
def test_a_pod_needs_a_git_repository_and_gcloud(checkout, tmp_path):
    (tmp_path / "bin").mkdir()
    for name in ("bash", "git", "dirname", "cut", "grep", "sed", "paste"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    script = checkout / "launch" / "tpu_pod.sh"
    done = launch(script, *POD, "--", *RUN, PATH=str(tmp_path / "bin"))
    assert (done.returncode, done.stderr) == (
        2,
        "tpu_pod: gcloud isn't installed; see https://cloud.google.com/sdk/docs/install\n",
    )
    shutil.rmtree(checkout / ".git")
    done = pod(checkout, tmp_path, [], GIT_CEILING_DIRECTORIES=str(tmp_path))
    assert (done.returncode, done.stderr) == (
        2,
        f"tpu_pod: workers get a commit of {checkout}, but git says fatal: not a git repository "
        "(or any of the parent directories): .git; clone randmix with git\n",
    )


@pytest.mark.slow
def test_a_local_workdir_is_allowed_with_a_setup(checkout, tmp_path):
    local = (RUN[0], "--workdir=/shared/a")
    done = pod(checkout, tmp_path, ["0"], "--setup=mount /shared", run=local)
    assert done.returncode == 0, done.stderr


def cloud(tmp_path, outcomes, **files):
    """Makes a stand-in for gcloud; returns the environment that finds it."""
    (tmp_path / "gcloud").write_text(GCLOUD)
    (tmp_path / "gcloud").chmod(0o755)
    for name, lines in {"outcomes": outcomes, **files}.items():
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    return {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "CLOUD": str(tmp_path),
        "POLL": "0",
        "RESTARTS": "2",
        "TRIES": "4",
    }


def pod(checkout, tmp_path, outcomes, *flags, run=RUN, files=None, **environment):
    environment = cloud(tmp_path, outcomes, **(files or {})) | environment
    return launch(checkout / "launch" / "tpu_pod.sh", *POD, *flags, "--", *run, **environment)


def log(tmp_path):
    file = tmp_path / "log"
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("outcomes", "status", "expected"),
    [
        (["0 0"], 0, ["create", "run 0 0", "delete"]),
        (["75 75", "0 0"], 0, ["create", "run 75 75", "run 0 0", "delete"]),
        (["134 137", "0 0"], 0, ["create", "run 134 137", "run 0 0", "delete"]),
        (["1 137", "0 0"], 0, ["create", "run 1 137", "run 0 0", "delete"]),
        (["lost", "0 0"], 0, ["create", "run lost", "delete", "create", "run 0 0", "delete"]),
        (["1 -", "0 0"], 0, ["create", "run 1 -", "run 0 0", "delete"]),
        (["2 -"], 2, ["create", "run 2 -", "delete"]),
        (["2 2"], 2, ["create", "run 2 2", "delete"]),
        (["2 137"], 2, ["create", "run 2 137", "delete"]),
        (["1 1"], 1, ["create", "run 1 1", "delete"]),
        (["75 75", "75 75", "75 75"], 1, ["create", *["run 75 75"] * 3, "delete"]),
    ],
)
def test_the_pod_is_started_again_after_preemption_and_never_after_a_mistake(
    checkout, outcomes, status, expected, tmp_path
):
    done = pod(checkout, tmp_path, outcomes)
    assert done.returncode == status, done.stderr
    assert log(tmp_path) == expected


NO_ANSWERS = [
    "Unable to find the server at tpu.googleapis.com",
    "Reauthentication failed. cannot prompt during non-interactive execution.",
    "UNAUTHENTICATED: Request had invalid authentication credentials",
    "RESOURCE_EXHAUSTED: Quota exceeded for quota metric 'Read requests'",
    "UNAVAILABLE: The service is currently unavailable",
    "HTTPError 503: Service Unavailable",
]
DEFAULT_SIGNALS = ("env", "--default-signal=INT,TERM,HUP")
ONCE = ["create", "run 0 0", "delete"]
DELETE = "gcloud compute tpus queued-resources delete mine --zone=us-west4-a --force --quiet"
LEFT = f"tpu_pod: leaving mine, which was there before; to delete it: {DELETE}"
SUSPENDED = (
    "tpu_pod: mine is suspended, and this script didn't request it; give another --name, or delete "
    "it first"
)


@pytest.mark.slow
@pytest.mark.parametrize("error", NO_ANSWERS)
def test_no_answer_about_the_slice_is_not_taken_for_its_absence(checkout, tmp_path, error):
    # Before it is requested, while it is waited for, and after a bug.
    asked = {"describe": [error, "ok", error, error, "ok", error, "ok"]}
    done = pod(checkout, tmp_path, ["1 1"], files=asked)
    assert (done.returncode, log(tmp_path)) == (1, ["create", "run 1 1", "delete"])
    assert done.stderr.count("tpu_pod: gcloud can't describe mine: ERROR: ") == 4
    assert done.stderr.count(error) == 4


def test_a_slice_about_which_gcloud_never_answers_is_left_alone(checkout, tmp_path):
    done = pod(checkout, tmp_path, [], files={"state": ["ACTIVE"], "describe": NO_ANSWERS})
    assert (done.returncode, log(tmp_path)) == (1, [])
    assert done.stderr.splitlines()[-1] == "tpu_pod: gave up after asking 4 times"
    assert (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("files", "expected", "said"),
    [
        # The answer to the request was lost: the slice is ours.
        ({"create": ["lost, UNAVAILABLE: 503"]}, ONCE, "can't create mine: ERROR: (gcloud"),
        # It was refused for now.
        ({"create": [NO_ANSWERS[2], NO_ANSWERS[3]]}, ONCE, "can't create mine: ERROR: (gcloud"),
        # Somebody else has it, since a moment ago or from before.
        ({"state": ["ACTIVE"]}, ["run 0 0"], LEFT),
        ({"state": ["ACTIVE"], "describe": ["NOT_FOUND: no"]}, ["run 0 0"], LEFT),
        ({"describe": ["NOT_FOUND: no", "NOT_FOUND: no"]}, ONCE, "ALREADY_EXISTS"),
        # Deleting it fails at first.
        ({"delete": [NO_ANSWERS[4], NO_ANSWERS[0]]}, ONCE, "can't delete mine: ERROR: (gcloud"),
        ({"delete": ["NOT_FOUND: no"]}, ONCE[:2], "tpu_pod: deleting mine"),
        ({"install": [NO_ANSWERS[0]] * 2}, ONCE, "Unable to find the server"),
    ],
)
def test_only_a_slice_that_the_script_requested_is_deleted(
    checkout, tmp_path, files, expected, said
):
    done = pod(checkout, tmp_path, ["0 0"], files=files)
    assert (done.returncode, log(tmp_path)) == (0, expected), done.stderr
    assert said in done.stderr
    before = "tpu_pod: mine is there already (ACTIVE): using it, and leaving it there at the end\n"
    assert (before in done.stderr) == ("state" in files)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("outcomes", "files", "expected", "said"),
    [
        ([], {"state": ["SUSPENDED"]}, [], SUSPENDED),
        (["lost"], {"state": ["ACTIVE"]}, ["run lost"], SUSPENDED),
        ([], {"state": ["FAILED"]}, [], "tpu_pod: the request failed; see above"),
        ([], {"create": ["INVALID_ARGUMENT: no such type"]}, [], "INVALID_ARGUMENT: no such type"),
        ([], {"create": ["UNAVAILABLE: 503"] * 4}, [], "tpu_pod: gave up after 4 failures"),
        (["1 1"], {"delete": NO_ANSWERS}, ["create", "run 1 1"], f"to delete it: {DELETE}"),
        ([], {"install": ["no"] * 3}, ["create", "delete"], "the installation failed three times"),
    ],
)
def test_the_script_gives_up_without_deleting_what_it_did_not_request(
    checkout, tmp_path, outcomes, files, expected, said
):
    done = pod(checkout, tmp_path, outcomes, files=files)
    assert (done.returncode, log(tmp_path)) == (1, expected), done.stderr
    assert said in done.stderr


@pytest.mark.slow
def test_a_slice_can_be_kept(checkout, tmp_path):
    done = pod(checkout, tmp_path, ["0 0"], "--keep")
    assert (done.returncode, log(tmp_path)) == (0, ["create", "run 0 0"])
    assert done.stderr == f"tpu_pod: keeping mine; to delete it: {DELETE}\n"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_run_and_deletes_the_slice(checkout, tmp_path, number):
    environment = cloud(tmp_path, ["wait"])
    process = subprocess.Popen(
        [
            "env",
            "--default-signal=INT,TERM,HUP",
            checkout / "launch" / "tpu_pod.sh",
            *POD,
            "--",
            *RUN,
        ],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    while "run wait" not in log(tmp_path):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    process.communicate(timeout=20)  # its output ends when nothing that it started is left
    assert process.returncode == 128 + number
    assert log(tmp_path) == ["create", "run wait", "save", "delete"]


@pytest.mark.slow
def test_workers_get_the_commit_that_was_checked(checkout, tmp_path):
    git_archive = tmp_path / "git"
    git_archive.write_text(
        f'#!/usr/bin/env bash\necho "$*" >> {tmp_path}/asked\nexec {shutil.which("git")} "$@"\n'
    )
    git_archive.chmod(0o755)
    assert pod(checkout, tmp_path, ["75 75", "0 0"]).returncode == 0
    archives = [line for line in (tmp_path / "asked").read_text().splitlines() if "archive" in line]
    assert len(archives) == 2
    assert not [line for line in archives if line.endswith("HEAD")]
