"""Signals while training: the run saves first, and the same command resumes it."""

import os
import signal
import subprocess
import sys

import command
import interrupted
import pytest

from randmix.runtime import signals
from randmix.runtime.preemption import Preempted, StopSignals


@pytest.fixture
def handlers(monkeypatch):
    """Stands in for the handlers of a program; a list of the signals that reach it."""
    monkeypatch.setattr(signals, "_saved", False)  # another test of this process may have saved
    got = []
    before = {n: signal.signal(n, lambda n, frame: got.append(n)) for n in signals.NUMBERS}
    yield got
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", signals.NUMBERS)
def test_a_signal_stops_a_run_and_its_repetition_does_not_end_the_save(number, handlers):
    with StopSignals() as stop:
        assert not stop.requested(1)
        for _ in range(2):
            os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.requested(1)
        assert Preempted("saved").status == 75
        nothing_saved = Preempted("nothing new", saved=False)
        assert nothing_saved.status == (130 if number == signal.SIGINT else 75)
    assert handlers == []
    os.kill(os.getpid(), number)
    assert handlers == [number]
    assert Preempted("of another process", saved=False).status == 75


def test_ctrl_c_again_after_a_while_does_not_wait_for_the_save(handlers, monkeypatch):
    monkeypatch.setattr("randmix.runtime.preemption._AGAIN_SECONDS", 0.0)
    with StopSignals() as stop, StopSignals():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert handlers == []
        os.kill(os.getpid(), signal.SIGINT)
        assert handlers == [signal.SIGINT]
        assert stop.signalled


def test_training_leaves_a_signal_ignored_that_was_ignored_before(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.requested(1)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_preparation_within_training_ends_at_once(handlers, monkeypatch):
    ended = []
    monkeypatch.setattr(signals, "end", lambda number, frame: ended.append(number))
    with StopSignals() as stop:
        with signals.clean_up(lambda: None):  # a library's caller keeps its process
            os.kill(os.getpid(), signal.SIGTERM)
        assert (stop.signalled, ended) == (True, [])
    monkeypatch.setattr(signals, "_listening", True)
    with StopSignals() as stop:
        with signals.clean_up(lambda: None):
            os.kill(os.getpid(), signal.SIGTERM)
        assert (stop.signalled, ended) == (False, [signal.SIGTERM])
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signalled


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The arguments of a small run, and how it ends undisturbed."""
    folder = tmp_path_factory.mktemp("trained")
    flags = (
        *("--config=configs/digits.py:tiny", "--config.steps=6", "--config.checkpoint_every=2"),
        *("--config.eval_every=3", "--config.log_every=1", "--config.tensorboard=False"),
    )
    assert command.run("randmix.main", *flags, f"--workdir={folder}").status == 0
    return flags, interrupted.end_of(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_while_training_saves_and_the_run_resumes(trained, name, tmp_path):
    flags, expected = trained
    workdir, marks = tmp_path / "run", tmp_path / "marks"
    marks.mkdir()
    disturb = {"DISTURB": f"{name}:3", "DISTURB_MARKS": str(marks)}
    done = command.run("disturbed", *flags, f"--workdir={workdir}", env=disturb)
    assert (done.status, done.err) == (
        75,
        "randmix: stopped and saved at step 3 of 6; the same command resumes from there\n",
    )
    assert command.run("randmix.main", *flags, f"--workdir={workdir}").status == 0
    assert interrupted.end_of(workdir) == expected


@pytest.mark.slow
def test_a_closed_terminal_stops_two_processes_at_one_step(trained, tmp_path):
    flags, _ = trained
    marks = tmp_path / "marks"
    marks.mkdir()
    done = subprocess.run(
        [
            command.REPOSITORY / "launch" / "local_processes.sh",
            *("2", "disturbed", *flags, f"--workdir={tmp_path / 'run'}"),
        ],
        capture_output=True,
        text=True,
        cwd=command.REPOSITORY,
        timeout=300,
        env={
            **os.environ,
            "PYTHON": sys.executable,
            "PYTHONPATH": f"{command.REPOSITORY}:{command.REPOSITORY / 'tests'}",
            "RESTARTS": "0",
            "GRACE": "20",
            "DISTURB": "SIGHUP:2",
            "DISTURB_MARKS": str(marks),
        },
    )
    said = [line for line in done.stderr.splitlines() if "stopped and saved at step" in line]
    assert len({line[4:] for line in said}) == 1, done.stderr
    assert [line[:3] for line in sorted(said)] == ["[0]", "[1]"]
    assert "process 0 ended with status 75" in done.stderr
    assert "process 1 ended with status 75" in done.stderr
