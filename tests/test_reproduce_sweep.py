"""Guarantees of the sweep, with a trainer that only writes files.

Each run is trained once, through failures, signals, locks and shards.
"""

import dataclasses
import json
import os
import signal

import pytest

from randmix.errors import UserError
from randmix.reproduce import (
    measurements,
    plan,
    presets,
    records,
    stored,
    sweep,
    training,
    under_attack,
)
from randmix.runtime import locks
from randmix.runtime.preemption import Preempted, StopSignals
from randmix.workdir import artifacts

RESULT = {
    "mode": "chans",
    "metrics": {},
    "parameters": {"trainable": 1, "frozen": 0},
    "step": 1,
    "wall_seconds": 1.0,
    "versions": {},
    "device": {"kind": "cpu", "platform": "cpu", "count": 1},
}


@pytest.fixture(scope="module")
def groups():
    return plan.build(presets.get("smoke"), ("E2", "E3"), range(2))


@pytest.fixture
def trained(monkeypatch):
    """Replaces the trainer; returns the list of its calls and its errors by run."""
    calls, errors = [], {}

    def train(config, workdir, *, programs):
        calls.append(workdir.name)
        with artifacts.open_workdir(workdir, config, ""):
            print("said by the run")
            if error := errors.get(workdir.name):
                raise error
            artifacts.write_result(workdir, {**RESULT, "seed": config.seed})

    monkeypatch.setattr(training, "train", train)
    return calls, errors


def names(groups):
    return [run.name for group in groups for run in group]


def execute(groups, root, **arguments):
    said = []
    sweep.execute(groups, root, say=said.append, **arguments)
    return "\n".join(said)


def test_every_run_is_trained_once_and_measured(groups, tmp_path, trained, capsys):
    calls, _ = trained
    measured = []
    said = execute(groups, tmp_path, measure=lambda run, *rest: measured.append(run.name))
    assert calls == measured == names(groups)
    assert f"run 1-2 of {len(calls)}" in said
    assert "left" in said
    execute(groups, tmp_path)
    assert calls == names(groups)
    # What runs print goes to their logs.
    assert capsys.readouterr().out == ""
    assert (groups[0][0].folder(tmp_path) / "log.txt").read_text() == "said by the run\n"


def test_a_failure_is_written_down_and_tried_again(groups, tmp_path, trained):
    calls, errors = trained
    first, second = groups[0]
    errors |= {
        first.name: UserError("the loss isn't finite"),
        second.name: MemoryError("too\nlarge"),
    }
    said = execute(groups, tmp_path)
    assert calls == names(groups)
    assert sweep.state(first, tmp_path) == ("failed", "the loss isn't finite")
    assert sweep.state(second, tmp_path) == ("failed", "MemoryError: too")
    assert "FAILED" in said
    assert "the loss isn't finite" in said
    assert "Traceback" in (second.folder(tmp_path) / "log.txt").read_text()
    errors.clear()
    execute(groups, tmp_path)
    assert calls[len(names(groups)) :] == [first.name, second.name]
    assert sweep.state(first, tmp_path).name == "finished"
    assert not (first.folder(tmp_path) / sweep.FAILED).exists()


def test_a_preempted_run_stops_the_sweep_which_resumes(groups, tmp_path, trained):
    calls, errors = trained
    errors[groups[1][0].name] = Preempted("stopped")
    with pytest.raises(Preempted):
        execute(groups, tmp_path)
    assert calls == names(groups)[:3]
    assert sweep.state(groups[1][0], tmp_path).name == "begun"
    errors.clear()
    execute(groups, tmp_path)
    assert calls[3:] == names(groups)[2:]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_between_two_runs_stops_the_sweep(groups, tmp_path, trained, number):
    calls, _ = trained

    def measure(run, stop, programs):
        if len(calls) == 4:
            os.kill(os.getpid(), number)

    with pytest.raises(Preempted, match=f"after 4 of {len(names(groups))} runs"):
        execute(groups, tmp_path, measure=measure)
    assert calls == names(groups)[:4]


def test_stop_signals_nest():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as outer:
        with StopSignals() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
            assert (inner.signalled, outer.signalled) == (True, True)
        with StopSignals() as later:
            assert later.signalled
    assert signal.getsignal(signal.SIGTERM) == before
    with StopSignals() as fresh:
        assert not fresh.signalled


def test_a_run_that_another_process_has_is_left_to_it(groups, tmp_path, trained):
    calls, _ = trained
    other = groups[0][1]
    other.folder(tmp_path).mkdir(parents=True)
    with locks.try_lock(other.folder(tmp_path) / sweep.LOCK) as mine:
        assert mine
        said = execute(groups, tmp_path)
    assert calls == [name for name in names(groups) if name != other.name]
    assert "another process" in said
    execute(groups, tmp_path)
    assert calls[-1] == other.name


def test_shards_train_everything_between_them(groups, tmp_path, trained):
    calls, _ = trained
    for i in (1, 2, 3):
        execute(plan.shard(groups, i, 3), tmp_path)
    assert sorted(calls) == sorted(names(groups))


def test_seeds_are_handed_over_together(groups, tmp_path, trained, monkeypatch):
    handed = []
    inner = training.train_seeds

    def train_seeds(configs, workdirs, together, programs):
        handed.append([config.seed for config in configs])
        return inner(configs, workdirs, together, programs)

    monkeypatch.setattr(sweep, "train_seeds", train_seeds)
    execute(groups, tmp_path)
    assert handed == [[0, 1]] * len(groups)


def test_what_was_measured_and_failed_is_named(tmp_path, groups, trained, monkeypatch):
    execute(groups, tmp_path)
    run = groups[0][0]
    attacked = dataclasses.replace(run, experiments=("E6",))

    def broken(*arguments):
        raise RuntimeError("no memory")

    monkeypatch.setattr(under_attack, "attacks", broken)
    with StopSignals() as stop:
        measurements.measure(attacked, tmp_path, presets.get("smoke"), stop)
        assert measurements.failures(run, tmp_path) == {
            "accuracy under attack": "RuntimeError: no memory"
        }
        monkeypatch.setattr(under_attack, "attacks", lambda *arguments: {})
        measurements.measure(attacked, tmp_path, presets.get("smoke"), stop)
        assert measurements.failures(run, tmp_path) == {}


def test_what_is_kept_is_read_and_not_computed_again(tmp_path):
    file = tmp_path / "measurements" / "a.json"
    assert stored.kept(file, lambda: {"x": 1}) == {"x": 1}
    assert stored.kept(file, lambda: pytest.fail("computed again")) == {"x": 1}
    assert json.loads(file.read_text()) == {"x": 1}
    assert stored.key({"examples": 1}) != stored.key({"examples": 2})


def test_a_report_takes_no_result_of_another_config(groups, tmp_path, trained):
    execute(groups, tmp_path)
    preset = presets.get("smoke")
    assert records.collect(groups, tmp_path, preset)
    folder = groups[0][0].folder(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"batch_size": 7}))
    with pytest.raises(UserError, match=rf"^{folder}: holds a run with another config \(batch_siz"):
        records.collect(groups, tmp_path, preset)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "result.json").write_text("{}")
    assert sweep.state(groups[0][0], tmp_path).name == "begun"  # it is trained again
    with pytest.raises(UserError, match=r"result.json: damaged \(mode is missing\); train this"):
        records.collect(groups, tmp_path, preset)
