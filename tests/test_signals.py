"""Signals: one line, the right status and no traceback at any moment of a program.

tests/interrupted.py is the long form, at random moments.
"""

import os
import subprocess
import sys

import command
import interrupted
import pytest

from randmix.runtime import signals

pytestmark = pytest.mark.slow

# Python imports it at its start. It sends this process a signal when the module is first imported.
SITE = """
import os, signal, sys

class Signal:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["SIGNAL_AT"]:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), getattr(signal, os.environ["SIGNAL"]))

sys.meta_path.insert(0, Signal())
"""
ENDS = {
    "SIGINT": (130, "randmix: interrupted\n"),
    "SIGTERM": (75, "randmix: stopped by SIGTERM; start the same command again\n"),
    "SIGHUP": (75, "randmix: stopped by SIGHUP; start the same command again\n"),
}
PROGRAM = """
import atexit, ctypes, os, signal, sys, threading, time
import randmix
from randmix.runtime import cli, signals

def send(name="SIGINT"):
    os.kill(os.getpid(), getattr(signal, name))

class AtShutdown:
    def __del__(self, send=send):
        send()

def native():
    signals.watch()
    # In the main thread signals are blocked, so that they don't interrupt the C function.
    signal.pthread_sigmask(signal.SIG_BLOCK, signals.NUMBERS)
    threading.Timer(0.2, send).start()
    ctypes.CDLL(None).sleep(60)

def cleaning():
    with signals.clean_up(lambda: print("cleaned", flush=True)):
        send()

def cleaning_again():
    with signals.clean_up(lambda: print("not", flush=True)), signals.clean_up(send):
        send()

def send_after_a_line():
    print("buffered")
    send()

def main():
    print("began", flush=True)
    match sys.argv[1]:
        case "atexit":
            atexit.register(send)
        case "shutdown":
            sys.modules["kept"] = AtShutdown()
        case "mistake":
            atexit.register(send)
            raise randmix.errors.UserError("no such thing")
        case "saved":
            signals.saved()
            send()
        case "hangup" | "hangup_ignored":
            send("SIGHUP")
            print("alive")
        case name:
            globals()[name]()

if __name__ == "__main__":
    import randmix.errors
    cli.run(main)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder whose sitecustomize sends the signal."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(SITE)
    return folder


def signalled_at(site, module, name, *words):
    """The status, stdout and stderr of a program signalled when it first imports the module."""
    environment = {
        "PYTHONPATH": f"{site}:{command.REPOSITORY}",
        "SIGNAL_AT": module,
        "SIGNAL": name,
    }
    process = interrupted.start(words, environment)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("module", ["importlib.metadata", "absl", "ml_collections", "jax"])
def test_a_signal_while_a_program_starts_ends_it_in_one_line(site, module, name):
    words = ("randmix.main", "--config=configs/digits.py:tiny", "--summary")
    status, out, err = signalled_at(site, module, name, *words)
    assert (status, err) == ENDS[name]
    assert out == ""


def test_a_signal_while_the_installed_script_starts_ends_it_in_one_line(site, tmp_path):
    script = tmp_path / "randmix"
    script.write_text("from randmix.__main__ import main\n\nmain()\n")  # as installers write it
    environment = {
        **os.environ,
        "PYTHONPATH": f"{site}:{command.REPOSITORY}",
        "SIGNAL_AT": "absl",
        "SIGNAL": "SIGTERM",
    }
    done = subprocess.run(
        ["env", "--default-signal=INT,TERM,HUP", sys.executable, script, "verify", "run"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == ENDS["SIGTERM"]


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("module", ["jaxlib.xla_client", "flax.linen", "orbax.checkpoint"])
def test_a_signal_while_jax_is_imported_ends_a_program_in_one_line(site, module, name):
    words = ("randmix.main", "--config=configs/digits.py:tiny", "--summary")
    status, _, err = signalled_at(site, module, name, *words)
    assert (status, err) == ENDS[name]


@pytest.mark.parametrize("name", ENDS)
def test_an_interrupted_preparation_leaves_nothing(site, name, tmp_path):
    # TFDS imports it while the data set is written.
    words = ("randmix", "prepare", "digits", f"--data_dir={tmp_path}")
    status, _, err = signalled_at(site, "array_record.python.array_record_module", name, *words)
    assert (status, err) == ENDS[name]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".lock"]
    assert not list(tmp_path.rglob("incomplete*"))


def run(tmp_path, *arguments, ignoring=()):
    (tmp_path / "program.py").write_text(PROGRAM)

    handling = ("--default-signal=INT,TERM,HUP", *(f"--ignore-signal={name}" for name in ignoring))
    done = subprocess.run(
        ["env", *handling, sys.executable, tmp_path / "program.py", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("moment", "status", "out", "err"),
    [
        ("send_after_a_line", 130, "began\nbuffered\n", "randmix: interrupted\n"),
        (
            "saved",
            75,
            "began\n",
            "randmix: interrupted; all is saved, and the same command resumes\n",
        ),
        ("hangup", 75, "began\n", ENDS["SIGHUP"][1]),
        ("native", 130, "began\n", "randmix: interrupted\n"),
        ("cleaning", 130, "began\ncleaned\n", "randmix: interrupted\n"),
        ("cleaning_again", 130, "began\n", "randmix: interrupted\n"),
        ("atexit", 0, "began\n", ""),
        ("shutdown", 0, "began\n", ""),
        ("mistake", 2, "began\n", "randmix: no such thing\n"),
    ],
)
def test_a_signal_at_any_other_moment(tmp_path, moment, status, out, err):
    assert run(tmp_path, moment) == (status, out, err)


def test_a_signal_that_was_ignored_before_stays_ignored(tmp_path):
    done = run(tmp_path, "hangup_ignored", ignoring=["HUP"])
    assert done == (0, "began\nalive\n", "")
    assert run(tmp_path, "send", ignoring=["INT"]) == (0, "began\n", "")


def test_a_library_leaves_signals_alone(tmp_path):
    code = (
        "import signal; numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP);"
        "before = [*map(signal.getsignal, numbers)];"
        "import randmix, randmix.runtime.cli, randmix.main, randmix.runtime.signals;"
        "assert [*map(signal.getsignal, numbers)] == before; print(signal.set_wakeup_fd(-1))"
    )
    (tmp_path / "mine.py").write_text(code)
    for words in (("-c", code), ("-m", "mine"), ("-m", "mine", "-m", "randmix.main")):
        done = subprocess.run(
            [sys.executable, *words],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": f"{tmp_path}:{command.REPOSITORY}"},
        )
        assert (done.stdout, done.stderr) == ("-1\n", "")


@pytest.mark.parametrize(
    ("argv", "orig_argv", "ours"),
    [
        (["-m", "--x"], ["python", "-m", "randmix.main", "--x"], True),
        (["-m", "prepare"], ["python", "-um", "randmix", "prepare"], True),
        (["bin/randmix", "prepare"], ["python", "bin/randmix", "prepare"], True),
        (["pytest", "randmix"], ["python", "bin/pytest", "randmix"], False),
        (["-m"], ["python", "-mrandmix.main"], True),
        (["-m"], ["python", "-m", "randmix"], True),
        (["-m", "randmix.main"], ["python", "-m", "mine", "randmix.main"], False),
        (["-m"], ["python", "-m", "randmixer"], False),
        (["mine.py", "-m", "randmix"], ["python", "mine.py", "-m", "randmix"], False),
        ([""], ["python"], False),
    ],
)
def test_a_program_of_ours_is_recognized(monkeypatch, argv, orig_argv, ours):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", orig_argv)
    assert signals.is_program() == ours


def test_a_run_outlives_its_terminal():
    code = """
import signal, sys, time
from randmix.runtime import signals

def stop(number, frame):
    signals.leave_terminal()
    print("into nothing", flush=True)
    sys.exit(7)

signal.signal(signal.SIGHUP, stop)
print("ready", flush=True)
time.sleep(60)
"""
    terminal, theirs = os.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", sys.executable, "-c", code],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=command.REPOSITORY,
    )
    os.close(theirs)
    while b"ready" not in os.read(terminal, 100):
        pass
    os.close(terminal)  # the kernel sends SIGHUP
    assert process.wait(60) == 7


def test_random_moments(tmp_path):
    assert interrupted.campaign(tmp_path, tries=2, seed=1, programs=["main"], names=["SIGINT"]) == 0


def test_the_campaign_notices_what_is_wrong():
    interrupted.check_end("SIGINT", 130, "randmix: interrupted\n")
    for name, status, err in (
        ("SIGTERM", 130, "randmix: interrupted\n"),
        ("SIGINT", -2, ""),
        ("SIGINT", 130, "Traceback\nrandmix: interrupted\n"),
        ("SIGINT", 0, "randmix: interrupted\n"),
        ("SIGTERM", 75, ""),
    ):
        with pytest.raises(interrupted.Broken, match=f"status {status}"):
            interrupted.check_end(name, status, err)
