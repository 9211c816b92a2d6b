"""Real runs on 2 and 4 local processes against one: undisturbed, stopped, killed, misconfigured.

launch/local_processes.sh starts them; they communicate over gloo.
"""

import json
import os
import re
import subprocess
import sys
import time

import command
import numpy as np
import pytest
import tfds_sets
from flax.traverse_util import flatten_dict
from logs import lines

import randmix
from randmix import data

pytestmark = pytest.mark.slow

CONFIG = """
from randmix.config import default

def get_config():
    config = default("convmixer")
    config.model.width = 8
    config.model.depth = 1
    config.model.kernel_size = 3
    config.model.patch_size = 1
    config.batch_size = 32
    config.steps = 12
    config.log_every = 2
    config.eval_every = 6
    config.checkpoint_every = 4
    config.optimizer.name = "sgd"
    config.data.crop_padding = 1
    return config
"""
HEARTBEAT = 8  # seconds; a busy machine would miss shorter ones


class Runs:
    """Starts that config on any number of processes, which share compiled programs."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "config.py").write_text(CONFIG)
        self.environment = {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "XLA_FLAGS": "--xla_backend_optimization_level=0 "
            "--xla_llvm_disable_expensive_passes=true",
        }

    def flags(self, workdir, *flags):
        return f"--config={self.folder / 'config.py'}", f"--workdir={workdir}", *flags

    def disturbance(self, disturb):
        marks = self.folder / disturb
        marks.mkdir()
        return {**self.environment, "DISTURB": disturb, "DISTURB_MARKS": str(marks)}

    def one(self, workdir, *flags):
        """Runs to the end on one process."""
        done = command.run("randmix.main", *self.flags(workdir, *flags), env=self.environment)
        assert done.status == 0, done.err
        return done

    def one_disturbed(self, workdir, disturb):
        return command.run("disturbed", *self.flags(workdir), env=self.disturbance(disturb))

    def several(self, count, workdir, *flags, disturb="", restarts=0, cwd=command.REPOSITORY):
        """Runs on several through the launcher; returns the completed process and its seconds."""
        module = "disturbed" if disturb else "randmix.main"
        flags = self.flags(workdir, f"--heartbeat_timeout={HEARTBEAT}", *flags)
        return self.launch(count, module, flags, disturb=disturb, restarts=restarts, cwd=cwd)

    def launch(self, count, module, flags, disturb="", restarts=0, cwd=command.REPOSITORY):
        environment = {
            **os.environ,
            **(self.disturbance(disturb) if disturb else self.environment),
            "JAX_PLATFORMS": "cpu",
            "PYTHON": sys.executable,
            "PYTHONPATH": f"{command.REPOSITORY}:{command.REPOSITORY / 'tests'}",
            "RESTARTS": str(restarts),
            "GRACE": "10",
        }
        launcher = command.REPOSITORY / "launch" / "local_processes.sh"
        began = time.monotonic()
        done = subprocess.run(
            [launcher, str(count), *module.split(), *flags],
            capture_output=True,
            text=True,
            env=environment,
            cwd=cwd,
            timeout=400,
        )
        return done, time.monotonic() - began


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data_dir):
    return Runs(tmp_path_factory.mktemp("several"))


@pytest.fixture(scope="module")
def reference(runs, tmp_path_factory):
    """The run on one process that the others must agree with."""
    workdir = tmp_path_factory.mktemp("one")
    runs.one(workdir)
    return workdir


def assert_agree(workdir, reference):
    """Checks for the same log lines, example counts and variables, to float tolerance."""
    got, expected = lines(workdir), lines(reference)
    assert [list(row) for row in got] == [list(row) for row in expected]
    for row, other in zip(got, expected, strict=True):
        for name, value in row.items():
            exact = name in ("step", "epoch") or name.endswith("accuracy")
            assert (
                value == other[name] if exact else value == pytest.approx(other[name], rel=1e-5)
            ), name
    ours, theirs = (
        flatten_dict(randmix.load(folder).variables, sep="/") for folder in (workdir, reference)
    )
    assert ours.keys() == theirs.keys()
    for path in ours:
        np.testing.assert_allclose(ours[path], theirs[path], rtol=1e-5, atol=1e-6, err_msg=path)


def test_four_processes_agree_with_one_and_only_the_first_prints(runs, tmp_path):
    four, one = tmp_path / "four", tmp_path / "one"
    task = ("--config.task=unshuffling", "--config.steps=4", "--config.eval_every=2")
    done, _ = runs.several(4, four, *task)
    assert done.returncode == 0, done.stderr
    runs.one(one, *task)
    assert_agree(four, one)
    assert json.loads((four / "result.json").read_text())["device"]["count"] == 4
    assert sorted(p.name for p in four.iterdir()) == sorted(p.name for p in one.iterdir())
    speaking = [line[:3] for line in done.stdout.splitlines() if "Gloo" not in line]
    assert set(speaking) == {"[0]"}


def test_a_signal_to_one_of_two_stops_both_at_one_step_and_one_process_resumes(
    runs, reference, tmp_path
):
    done, _ = runs.several(2, tmp_path, disturb="SIGTERM:2")
    assert "process 0 ended with status 75" in done.stderr
    assert "process 1 ended with status 75" in done.stderr
    steps = re.findall(r"stopped and saved at step (\d+) of 12", done.stderr)
    assert len(steps) == 2
    assert len(set(steps)) == 1
    assert randmix.load(tmp_path).step == int(steps[0]) < 12
    assert f"resuming from step {steps[0]}" in runs.one(tmp_path).out
    assert_agree(tmp_path, reference)


def test_two_processes_resume_from_one_and_survive_a_death_and_a_hang(runs, reference, tmp_path):
    assert runs.one_disturbed(tmp_path, "SIGTERM:3").status == 75
    done, _ = runs.several(2, tmp_path, disturb="SIGKILL:6,SIGSTOP:10", restarts=2)
    assert done.returncode == 0, done.stderr
    ends = re.findall(r"process (\d) ended with status (\d+)", done.stderr)
    # The launcher kills the hung process after the grace period.
    assert [status for process, status in ends if process == "1"] == ["137", "137"]
    # A closed connection raises an exception in gloo; a hang is noticed by the heartbeat, which
    # aborts.
    closed, standstill = (status for process, status in ends if process == "0")
    assert closed != "0"
    assert standstill == "134"
    assert "stopped sending heartbeats" in done.stderr
    assert "starting all 2 processes again (restart 2 of 2)" in done.stderr
    first, second, third = (
        int(step) for step in re.findall(r"resuming from step (\d+)", done.stdout)
    )
    # Killed at 6; the last complete save depends on timing.
    assert first == 3 <= second <= 6
    assert second <= third <= 10
    assert_agree(tmp_path, reference)


def test_a_mistake_that_one_process_sees_ends_all(runs, tmp_path):
    done, seconds = runs.several(2, "relative", disturb="ELSEWHERE", restarts=3, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    message = (
        "relative: isn't the folder that process 0 sees under this name; "
        "give a --workdir that all hosts share, on a network file system or gs://"
    )
    lines = done.stderr.splitlines()
    assert f"[1] randmix: {message}" in lines
    assert f"[0] randmix: process 1: {message}" in lines
    assert "again" not in done.stderr
    assert seconds < 60


def test_two_evaluate_every_example_once(runs, reference):
    flags = (f"--workdir={reference}", "--batch_size=100")  # 360 examples: the last batch is padded
    done, _ = runs.launch(2, "randmix evaluate", flags)
    assert done.returncode == 0, done.stderr
    spoken = [line.removeprefix("[0] ") for line in done.stdout.splitlines() if "Gloo" not in line]
    assert spoken == command.run("randmix evaluate", *flags, env=runs.environment).out.splitlines()


@pytest.mark.parametrize(("count", "name"), [(2, "my_data:make"), (4, "tfds/oxford_flowers102")])
def test_several_see_the_batches_that_one_sees_from_any_source(count, name, runs, tmp_path):
    tfds_sets.prepare("oxford_flowers102", tmp_path, damaged={4, 7})
    rng = np.random.default_rng(0)
    pair = rng.integers(0, 256, (40, 8, 8, 3), np.uint8), np.arange(40) % 3
    data.from_arrays("mine", train=pair, test=pair, data_dir=tmp_path)
    (tmp_path / "my_data.py").write_text(
        "from randmix.data import catalog\n\ndef make():\n    splits = {}\n"
        '    for split in ("train", "test"):\n'
        f'        arrays = catalog.load("arrays/mine", split, {str(tmp_path)!r})\n'
        '        splits[split] = arrays["image"], arrays["label"]\n'
        "    return splits\n"
    )
    flags = (
        f"--config.data.name={name}",
        f"--config.data.data_dir={tmp_path}",
        "--config.steps=6",
        "--config.batch_size=8",
        "--config.data.crop_padding=0",
        "--config.data.image_size=16",
        "--config.data.corrupt=skip",
    )
    done, _ = runs.several(count, tmp_path / "several", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    command_line = runs.flags(tmp_path / "one", *flags)
    one = command.run("randmix.main", *command_line, env=runs.environment, cwd=tmp_path)
    assert one.status == 0, one.err
    assert_agree(tmp_path / "several", tmp_path / "one")
    if name.startswith("tfds"):
        skipped, expected = (
            json.loads((tmp_path / folder / "skipped.json").read_text())
            for folder in ("several", "one")
        )
        assert skipped == expected
        assert {split: len(entries) for split, entries in skipped.items()} == {
            "train": 2,
            "test": 2,
        }


def test_processes_with_other_arrays_are_refused(runs, tmp_path):
    (tmp_path / "my_data.py").write_text(
        "import os, numpy as np\n\ndef make():\n"
        "    images = np.random.default_rng(os.getpid()).integers(0, 256, (32, 8, 8), np.uint8)\n"
        '    return dict.fromkeys(("train", "test"), (images, np.arange(32) % 3))\n'
    )
    # Otherwise their statistics, which stand in the config, would tell them apart.
    flags = ("--config.data.name=my_data:make", "--config.model.mean=()", "--config.model.std=()")
    done, _ = runs.several(2, tmp_path / "run", *flags, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    message = "process 1 has another data set than process 0; give the same command on all hosts"
    assert message in done.stderr
