"""Guarantees of the sweep, with a trainer that only writes files.

Each run is trained once, through failures, signals, locks and shards. All cases share the trainer
and the small sweep below, hence the length.
"""

import concurrent.futures
import dataclasses
import errno
import itertools
import json
import os
import shutil
import signal
import types

import pytest
from etils import epath

from randmix import config as configs
from randmix.errors import UserError
from randmix.experiments import command, grid, measured, records, sweep, training
from randmix.experiments.plan import shard
from randmix.reproduce import measurements, plan, presets, report, under_attack
from randmix.runtime import durable, locks
from randmix.runtime.preemption import Preempted, StopSignals
from randmix.training import runs
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

    def train(config, workdir, *, programs, context):
        calls.append(workdir.name)
        with artifacts.open_workdir(workdir, runs.resolve(config)[0], ""):
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


def test_every_run_is_trained_once_and_measured(groups, tmp_path, trained, capsys, monkeypatch):
    calls, _ = trained
    measured = []
    # A clock by which each run takes a second.
    monkeypatch.setattr(sweep, "time", types.SimpleNamespace(monotonic=itertools.count().__next__))
    said = execute(groups, tmp_path, measure=lambda run, *rest: measured.append(run.name))
    assert calls == measured == names(groups)
    assert f"run 1-2 of {len(calls)}" in said
    assert f"    1 of {len(calls)} runs done, about 0:00:{len(calls) - 1} left" in said
    assert f"    {len(calls)} of {len(calls)} runs done" in said
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


def test_a_failure_that_no_disk_takes_is_one_line(groups, tmp_path, trained, monkeypatch):
    _, errors = trained
    first = groups[0][0]
    errors[first.name] = UserError("the loss isn't finite")
    inner = durable.write

    def write(path, content):
        (no_space if path.name == sweep.FAILED else inner)(path, content)

    monkeypatch.setattr(durable, "write", write)
    with pytest.raises(UserError) as error:
        execute(groups, tmp_path)
    assert str(error.value) == (
        f"{first.folder(tmp_path)}/failed.json: can't be written (No space left on device); the "
        "run failed (the loss isn't finite); make room or give a --workdir that you may write to"
    )


def no_space(path, *content):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


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
        execute(shard(groups, i, 3), tmp_path)
    assert sorted(calls) == sorted(names(groups))


def test_seeds_are_handed_over_together(groups, tmp_path, trained, monkeypatch):
    handed = []
    inner = training.train_seeds

    def train_seeds(configs, workdirs, together, programs, context):
        handed.append([config.seed for config in configs])
        return inner(configs, workdirs, together, programs, context)

    monkeypatch.setattr(sweep, "train_seeds", train_seeds)
    execute(groups, tmp_path)
    assert handed == [[0, 1]] * len(groups)


def test_a_log_that_does_not_fit_on_the_disk_is_one_line(groups, tmp_path, monkeypatch):
    def refuse(config, workdir, **rest):
        raise UserError("refused")

    monkeypatch.setattr(training, "train", refuse)
    folder = epath.Path(tmp_path) / "run"
    folder.mkdir()
    (tmp_path / "run" / training.LOG).symlink_to("/dev/full")
    with pytest.raises(UserError) as error:
        list(training.train_seeds([groups[0][0].config], [folder]))
    assert str(error.value) == (
        f"{folder / training.LOG}: can't be written (No space left on device); "
        "make room, and start the same command again"
    )


def test_what_was_measured_and_failed_is_named(tmp_path, groups, trained, monkeypatch):
    execute(groups, tmp_path)
    run = groups[0][0]
    attacked = dataclasses.replace(run, experiments=("E6",))

    def broken(*arguments):
        raise RuntimeError("no memory")

    monkeypatch.setattr(under_attack, "attacks", broken)
    with StopSignals() as stop:
        with monkeypatch.context() as patched:
            patched.setattr(durable, "write", no_space)
            with pytest.raises(UserError) as error:
                measurements.measure(attacked, tmp_path, presets.get("smoke"), stop)
        assert str(error.value) == (
            f"{run.folder(tmp_path)}/measurements/failed.json: can't be written (No space left on "
            "device); accuracy under attack failed (RuntimeError: no memory); make room, and start "
            "the same command again"
        )
        measurements.measure(attacked, tmp_path, presets.get("smoke"), stop)
        assert measurements.failures(run, tmp_path) == {
            "accuracy under attack": "RuntimeError: no memory"
        }
        monkeypatch.setattr(under_attack, "attacks", lambda *arguments: {})
        measurements.measure(attacked, tmp_path, presets.get("smoke"), stop)
        assert measurements.failures(run, tmp_path) == {}


def test_what_is_kept_is_read_and_not_computed_again(tmp_path):
    file = tmp_path / "measurements" / "a.json"
    assert measured.kept(file, lambda: {"x": 1}) == {"x": 1}
    assert measured.kept(file, lambda: pytest.fail("computed again")) == {"x": 1}
    assert json.loads(file.read_text()) == {"x": 1}
    assert measured.key({"examples": 1}) != measured.key({"examples": 2})


def test_no_result_of_another_config_is_taken(groups, tmp_path, trained):
    execute(groups, tmp_path)
    (tmp_path / records.FILE).unlink()
    assert sweep.collect(groups, tmp_path).keys() == set(names(groups))
    folder = groups[0][0].folder(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"batch_size": 7}))
    with pytest.raises(UserError, match=rf"^{folder}: holds a run with another config \(batch_siz"):
        sweep.collect(groups, tmp_path)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "result.json").write_text("{}")
    assert sweep.state(groups[0][0], tmp_path).name == "begun"  # it is trained again
    with pytest.raises(UserError, match=r"result.json: damaged \(mode is missing\); train this"):
        sweep.collect(groups, tmp_path)


def test_damaged_files_of_a_finished_run_are_mended_by_the_same_call(groups, tmp_path, trained):
    calls, _ = trained
    execute(groups, tmp_path)
    (tmp_path / records.FILE).unlink()
    first, second = (groups[0][i].folder(tmp_path) for i in (0, 1))
    (first / "config.json").write_text("{")
    (second / "result.json").unlink()
    (second / sweep.FAILED).write_text("{")
    calls.clear()
    execute(groups, tmp_path)
    assert calls == [first.name, second.name]
    assert sweep.collect(groups, tmp_path).keys() == set(names(groups))


def test_jobs_that_start_together_share_a_new_folder(tmp_path):
    root = tmp_path / "new" / "sweep"
    with concurrent.futures.ThreadPoolExecutor(8) as jobs:
        for _ in range(10):
            assert [*jobs.map(lambda _: sweep.open_folder(root, "digits"), range(8))] == [None] * 8
            shutil.rmtree(root)
    root.mkdir()
    (root / "sweep.json.0123abcd.tmp").touch()  # of a job that was killed
    sweep.open_folder(root, "digits")
    with pytest.raises(UserError, match="holds a sweep of the preset digits, got a sweep of a"):
        sweep.open_folder(root, None)


def test_a_run_in_the_records_is_finished_on_another_machine(groups, tmp_path, trained):
    calls, _ = trained
    here, there, elsewhere = tmp_path / "here", tmp_path / "there", tmp_path / "elsewhere"
    execute(groups[:2], here)
    there.mkdir()
    shutil.copy(here / records.FILE, there)
    said = execute(groups, there)
    assert f"{len(names(groups[:2]))} of {len(names(groups))} runs were finished before" in said
    assert calls == names(groups)
    assert sweep.collect(groups, there).keys() == set(names(groups))
    # The same from a file that lies elsewhere.
    execute(groups, elsewhere, more=[there])
    assert calls == names(groups)
    assert sweep.collect(groups, elsewhere, more=[there]).keys() == set(names(groups))
    assert not (elsewhere / "runs").exists()


def test_a_run_is_recorded_before_the_next_seed_is_trained(groups, tmp_path, trained):
    _, errors = trained
    first, second = groups[0]
    errors[second.name] = Preempted("stopped")
    with pytest.raises(Preempted):
        execute(groups, tmp_path)
    assert [*records.read(tmp_path)] == [first.name]


def test_a_run_without_its_measurements_is_not_finished_elsewhere(groups, tmp_path, trained):
    calls, _ = trained
    group, here, there = groups[0], tmp_path / "here", tmp_path / "there"

    def complete(run, record):
        return "depth" in record.measurements

    def measure(run, stop, programs):
        measured.kept(measured.path(run.folder(there), "depth"), lambda: 3)

    execute([group], here, complete=complete)
    assert not (here / records.FILE).exists()  # it has nothing to record
    execute([group], here)
    there.mkdir()
    shutil.copy(here / records.FILE, there)
    execute([group], there, measure=measure, complete=complete)
    assert calls == [*names([group]), *names([group])]
    found = sweep.collect([group], there, complete)
    assert [record.measurements for record in found.values()] == [{"depth": 3}] * len(group)


def test_of_two_records_the_one_with_the_measurements_asked_for_counts(groups, tmp_path, trained):
    group = groups[:1]
    execute(group, tmp_path)
    (first, _) = records.read(tmp_path).values()
    for values in ({"fast": 1}, {"slow": 2, "more": 3}):
        records.append(tmp_path, dataclasses.replace(first, measurements=values))
    shutil.rmtree(tmp_path / "runs")

    def complete(run, record):
        return "fast" in record.measurements

    assert sweep.collect(group, tmp_path, complete)[first.name].measurements == {"fast": 1}
    assert "more" in sweep.collect(group, tmp_path)[first.name].measurements
    said = execute(group, tmp_path, complete=complete)
    assert "1 of 2 runs were finished before" in said


def test_a_run_that_failed_here_and_ended_elsewhere_is_finished(tmp_path, capsys):
    config = configs.recipe("digits:tiny")
    ((run,),) = grid.build(config, "tiny", {}, {}, 1)
    sweep.open_folder(tmp_path, None)
    values = json.loads(configs.to_json(config))
    records.append(tmp_path, records.Record(values, {**RESULT, "seed": 0}, None, [], {}))
    run.folder(tmp_path).mkdir(parents=True)
    (run.folder(tmp_path) / sweep.FAILED).write_text('{"reason": "no memory"}')
    flags = {"grid": [], "set": [], "records": [], "shard": None, "dry_run": False}
    options = types.SimpleNamespace(
        config=config, config_name="tiny", workdir=tmp_path, seeds=1, ensemble="off", **flags
    )
    assert command.main(options) == 0
    said = capsys.readouterr()
    assert "1 of 1 runs are finished" in said.out
    assert "FAILED" not in said.err


def test_a_folder_that_cannot_be_written_is_one_line(groups, tmp_path, trained):
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match=f"^{tmp_path}: can't be written .*; give a --workdir that"):
        execute(groups, tmp_path)


def test_a_report_is_written_without_the_arrays_of_its_records(tmp_path):
    preset = presets.get("smoke")
    groups = plan.build(preset, ("E8",), range(1))
    plain = next(g[0] for g in groups if not g[0].settings.get("model.smoothing_index"))
    record = records.Record(
        config=json.loads(configs.to_json(plain.config)),
        result={**RESULT, "seed": 0},
        data=None,
        log=[],
        measurements={measurements.LAYERS: [{"layer": "a", "coverage": 0.5}]},
        source=epath.Path(tmp_path / "arrays" / "gone.npz"),
    )
    written = report.write(
        tmp_path, preset, ("E8",), groups, {plain.name: record}, overrides={}, command=""
    )
    assert any("gone.npz: No such file" in problem for problem in written.problems)
    assert (written.folder / "index.html").exists()


def test_a_run_that_was_not_measured_is_named(tmp_path):
    preset = presets.get("smoke")
    groups = plan.build(preset, ("E8",), range(1))
    run = next(g[0] for g in groups if not g[0].settings.get("model.smoothing_index"))
    values = json.loads(configs.to_json(run.config))
    record = records.Record(values, {**RESULT, "seed": 0}, None, [], {})
    written = report.write(
        tmp_path, preset, ("E8",), groups, {run.name: record}, overrides={}, command=""
    )
    assert f"run {run.name} ({run}): not measured" in written.problems


def test_a_report_needs_no_data_where_the_records_are(groups, tmp_path, trained, monkeypatch):
    group = groups[0]
    data = {"name": "digits", "version": "1", "image_shape": [8, 8, 1], "num_classes": 10}

    def train(config, workdir, *, programs, context):
        with artifacts.open_workdir(
            workdir, runs.resolve(config)[0], "", {**data, "classes": None}
        ):
            artifacts.write_result(workdir, {**RESULT, "seed": config.seed, "step": 3})

    monkeypatch.setattr(training, "train", train)
    execute([group], tmp_path)

    def gone(*arguments, **options):
        raise UserError("digits: not prepared")

    monkeypatch.setattr(runs, "find_dataset", gone)
    with pytest.raises(UserError, match="not prepared"):
        plan.build(presets.get("smoke"), ("E2",), range(2))
    kept = sweep.known(tmp_path)
    planned = plan.build(presets.get("smoke"), ("E2",), range(2), known=kept, report_only=True)
    (same,) = (one for one in planned if one[0].name == group[0].name)
    assert (same[0].cost, same[0].steps) == (group[0].cost, group[0].steps)
