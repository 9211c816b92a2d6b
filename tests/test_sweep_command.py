"""``python -m randmix sweep``, as a user runs it: killed, divided, resumed; and its mistakes."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import command
import pytest

from randmix.experiments import records

pytestmark = pytest.mark.slow

MODULE = "randmix sweep"
GRID = ["--config=configs/digits.py:tiny", "--grid=mode=full,chans", "--grid=model.depth=1,2"]
RUNS = 8


def run(*flags, limit=300):
    return command.run(MODULE, *GRID, "--seeds=2", *flags, limit=limit)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A sweep that was killed in its first run and finished by two jobs at once."""
    root = tmp_path_factory.mktemp("sweep") / "grid"
    program = [sys.executable, "-m", *MODULE.split(), *GRID, "--seeds=2", f"--workdir={root}"]
    killed = subprocess.Popen(program, cwd=command.REPOSITORY, stdout=subprocess.DEVNULL)
    while not [*root.glob("runs/*/log.txt")]:
        assert killed.poll() is None
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    shards = [
        subprocess.Popen(
            [*program, f"--shard={i}/2"], cwd=command.REPOSITORY, stdout=subprocess.PIPE, text=True
        )
        for i in (1, 2)
    ]
    said = [shard.communicate()[0] for shard in shards]
    assert [shard.returncode for shard in shards] == [0, 0], said
    return root


def test_shards_finish_what_was_killed_and_every_run_is_recorded_once(root):
    lines = [json.loads(line) for line in (root / records.FILE).read_text().splitlines()]
    assert {line["run"] for line in lines} == {path.name for path in root.glob("runs/*")}
    assert len(lines) == RUNS
    changed = [line["result"]["config"]["changed"] for line in lines]
    assert {(one.get("mode", "chans"), one["model.depth"]) for one in changed} == {
        (mode, depth) for mode in ("full", "chans") for depth in (1, 2)
    }


def test_a_finished_sweep_does_nothing_and_shows_its_table(root):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    done = run(f"--workdir={root}")
    assert done.status == 0, done.err
    assert f"{RUNS} of {RUNS} runs were finished before" in done.out
    assert re.search(r"^depth +mode +seeds +accuracy", done.out, re.MULTILINE)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_another_grid_adds_its_runs(root, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(root / records.FILE, copy)
    done = run("--grid=seed=1", f"--workdir={copy}")
    assert done.status == 2
    done = command.run(
        MODULE, GRID[0], "--grid=mode=full,space", "--set=model.depth=1", f"--workdir={copy}"
    )
    assert done.status == 0, done.err
    assert "1 of 2 runs were finished before" in done.out
    assert len([*copy.glob("runs/*")]) == 1
    assert len(records.read(copy)) == RUNS + 1


def test_a_run_that_fails_is_named_and_the_others_are_trained(tmp_path):
    flags = [GRID[0], "--grid=optimizer.learning_rate=1e30,0.01", "--set=steps=8"]
    done = command.run(MODULE, *flags, "--set=log_every=1", f"--workdir={tmp_path}")
    assert done.status == 1
    assert "FAILED  optimizer.learning_rate=1e+30, seed 0: " in done.err
    assert "isn't finite" in done.err
    assert len(records.read(tmp_path)) == 1


def test_a_dry_run_says_what_there_is_to_do(root, tmp_path):
    done = run("--grid=batch_size=8,16", f"--records={root}", "--dry_run", f"--workdir={tmp_path}")
    assert done.status == 0, done.err
    assert done.out.count("(finished)") == RUNS
    assert f"{2 * RUNS} runs, " in done.out
    assert not [*tmp_path.iterdir()]


def test_a_dry_run_that_calibrates_says_minutes(tmp_path):
    flags = ["--config=configs/digits.py:tiny", "--dry_run", "--calibrate", f"--workdir={tmp_path}"]
    done = command.run(MODULE, *flags)
    assert done.status == 0, done.err
    assert "timed 1 of 1 settings in " in done.out
    name, minutes = re.search(r"^([0-9a-f]{8}) +\S+ +2 +([\d.]+)  ", done.out, re.M).groups()
    assert name
    (said,) = re.findall(r"about ([\d.]+) minutes remaining on this machine", done.out)
    assert float(said) == pytest.approx(float(minutes), abs=0.06)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--config is missing; give one, for example --config=configs/digits.py"),
        ([GRID[0], "--grid=mode=full,chan"], "config.mode: got 'chan', allowed full, chans"),
        ([GRID[0], "--grid=model.dept=1"], "config.model.dept: no such key"),
        ([GRID[0], "--calibrate"], "--calibrate: got it alone, allowed with --dry_run"),
        ([GRID[0], "--shard=3/2"], "--shard: got '3/2', allowed is i/n"),
        ([GRID[0], "--set=data.name=cifar10"], "cifar10 is not prepared in"),
        ([GRID[0], "--records=none.jsonl"], "none.jsonl: can't be read (No such file"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(flags, message, tmp_path):
    done = command.run(MODULE, *flags, f"--workdir={tmp_path / 'sweep'}")
    assert done.status == 2
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "sweep" / "runs").exists()


def test_a_folder_of_something_else_is_refused(tmp_path):
    for content, message in (
        ({"letter.txt": ""}, "isn't a sweep"),
        ({"sweep.json": '{"preset": "digits"}'}, "a sweep of the preset digits, got a sweep "),
    ):
        folder = tmp_path / next(iter(content))[:5]
        folder.mkdir()
        for name, text in content.items():
            (folder / name).write_text(text)
        done = run(f"--workdir={folder}")
        assert done.status == 2
        assert message in done.err
