"""launch/local_processes.sh with a stand-in for Python; test_several_processes has real runs."""

import os
import subprocess

import pytest
from launchers import LAUNCH, launch

LOCAL = """#!/usr/bin/env bash
if [[ $1 == -c ]]; then echo 9999; exit; fi
id=${*: -1}; id=${id#*=}
trap 'echo stopping; echo saved >> "$LOG.saved"; exit 75' TERM
echo "$*" >> "$LOG.$id"
starts=$(wc -l < "$LOG.$id")
status=$(sed -n "${starts}p" "$STATUSES" | cut -d' ' -f$((id + 1)))
if [[ $status == wait ]]; then while :; do sleep 0.1; done; fi
exit "$status"
"""


def local(tmp_path, statuses, *, before=(), **streams):
    (tmp_path / "python").write_text(LOCAL)
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "statuses").write_text("\n".join(statuses) + "\n")
    environment = {"LOG": str(tmp_path / "log"), "STATUSES": str(tmp_path / "statuses")}
    environment |= {"PYTHON": str(tmp_path / "python"), "RESTARTS": "2", "GRACE": "1"}
    return subprocess.Popen(
        [*before, LAUNCH / "local_processes.sh", "2", "--config=a b.py"],
        text=True,
        env={**os.environ, **environment},
        **{"stderr": subprocess.PIPE, **streams},
    )


@pytest.mark.slow
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


@pytest.mark.slow
def test_sigterm_is_handed_on_and_is_final(tmp_path):
    process = local(tmp_path, ["wait wait", "0 0"])
    while not all((tmp_path / f"log.{i}").exists() for i in range(2)):
        assert process.poll() is None
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "again" not in err


def test_a_closed_terminal_stops_local_processes_which_may_still_print(tmp_path):
    terminal, theirs = os.openpty()
    process = local(
        tmp_path,
        ["wait wait"],
        before=["setsid", "--ctty"],
        **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
    )
    os.close(theirs)
    while not all((tmp_path / f"log.{i}").exists() for i in range(2)):
        assert process.poll() is None
    os.close(terminal)
    assert process.wait(60) == 75
    assert (tmp_path / "log.saved").read_text() == "saved\n" * 2


@pytest.mark.slow
def test_local_processes_need_python():
    done = launch("local_processes.sh", "2", "--config=x", PYTHON="/missing/python")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "local_processes: can't run /missing/python; name another one, for example PYTHON=python3"
    )


@pytest.mark.slow
def test_local_processes_print_their_usage():
    for arguments in ((), ("two", "--config=x"), ("2",)):
        done = launch("local_processes.sh", *arguments)
        assert done.returncode == 2
        assert "launch/local_processes.sh 2 --config=configs/digits.py" in done.stderr
