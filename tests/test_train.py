"""Complete runs: exact resumption, finished runs, refused configs, non-finite numbers.

Over 400 lines: most of it is held against one undisturbed run, which takes seconds to make.
"""

import json
import math
import os
import shutil
import signal
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
import small
from logs import lines
from test_metrics import hyperparameters

import randmix
from randmix import masks
from randmix.data import loader
from randmix.errors import UserError
from randmix.runtime import distributed, durable
from randmix.runtime.preemption import Preempted
from randmix.training import evaluation, runs
from randmix.training import loop as train
from randmix.workdir import artifacts
from randmix.workdir.metrics import MetricsLog

CONTEXT = artifacts.Context("digits", "widths", ("model.width", "model.absent"))


def run(workdir, devices=1, **overrides):
    devices = jax.devices()[:devices]
    return train.train(small.config(**overrides), workdir, devices=devices, context=CONTEXT)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, run(workdir)


@pytest.mark.parametrize(
    "stop", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(4, marks=pytest.mark.slow)]
)
def test_a_stopped_run_resumes_bit_for_bit(stop, whole, tmp_path, monkeypatch, capsys):
    reference, result = whole
    with monkeypatch.context() as patch:
        small.stop_after(patch, stop)
        with pytest.raises(Preempted, match=f"stopped and saved at step {stop} of 6"):
            run(tmp_path)
    assert not (tmp_path / "result.json").exists()
    assert randmix.load(tmp_path).step == stop
    resumed = run(tmp_path)
    assert f"resuming from step {stop}" in capsys.readouterr().out
    one, other = randmix.load(reference).variables, randmix.load(tmp_path).variables
    assert not masks.diff(one, other).moved
    assert lines(tmp_path) == lines(reference)
    assert resumed["metrics"] == result["metrics"]


@pytest.mark.slow
def test_programs_of_one_seed_serve_another(whole, tmp_path, capsys):
    _, result = whole
    programs = train.Programs()
    of_another = train.train(
        small.config(seed=5), tmp_path / "5", devices=jax.devices()[:1], programs=programs
    )
    own = train.train(
        small.config(), tmp_path / "own", devices=jax.devices()[:1], programs=programs
    )
    assert own["metrics"] == result["metrics"] != of_another["metrics"]
    assert lines(tmp_path / "own") == lines(whole[0])
    out = capsys.readouterr().out
    assert out.count("compiled the train step in") == 1
    assert out.count("reusing the train step compiled for another seed") == 1
    with pytest.raises(
        ValueError, match=r"of another run \(model.width: 16 -> 8; devices\); share them"
    ):
        train.train(
            small.config(model__width=8),
            tmp_path / "8",
            devices=jax.devices()[:2],
            programs=programs,
        )


def signal_before(function):
    """The function, preceded by a real SIGTERM to this process."""

    def signalled(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return function(*arguments, **options)

    return signalled


@pytest.mark.slow
def test_a_run_stopped_in_an_evaluation_repeats_it(whole, tmp_path, monkeypatch):
    reference, result = whole
    for message in (
        "stopped and saved at step 3 of 6",
        "stopped in the evaluation after step 3 of 6",
    ):
        with monkeypatch.context() as patch:
            patch.setattr(evaluation, "evaluate_split", signal_before(evaluation.evaluate_split))
            with pytest.raises(Preempted, match=message):
                run(tmp_path)
        assert "test_loss" not in lines(tmp_path)[-1]
        assert randmix.load(tmp_path).step == 3
    assert run(tmp_path)["metrics"] == result["metrics"]
    assert lines(tmp_path) == lines(reference)


def test_a_signal_does_not_wait_for_a_compilation(whole, tmp_path, monkeypatch):
    started = threading.Event()

    class Endless:
        def lower(self, *arguments):
            return self

        def compile(self):
            os.kill(os.getpid(), signal.SIGTERM)
            started.set()
            threading.Event().wait(600)

    with monkeypatch.context() as patch:
        patch.setattr(train, "jit_train_step", lambda *arguments: Endless())
        with pytest.raises(Preempted, match="stopped while compiling, with nothing new to save"):
            run(tmp_path)
    assert started.is_set()
    reference, _ = whole
    run(tmp_path)
    assert lines(tmp_path) == lines(reference)


@pytest.mark.slow
def test_a_signal_while_the_data_is_read(whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        opening = signal_before(runs.DataOptions.open)
        patch.setattr(runs.DataOptions, "open", opening)
        with pytest.raises(
            Preempted, match="stopped before the first step, with nothing new to save"
        ):
            run(tmp_path)
    reference, _ = whole
    run(tmp_path)
    assert lines(tmp_path) == lines(reference)


def test_a_run_killed_before_its_result_only_evaluates_again(whole, tmp_path):
    reference, result = whole
    shutil.copytree(reference, tmp_path, dirs_exist_ok=True)
    (tmp_path / "result.json").unlink()
    assert run(tmp_path)["metrics"] == result["metrics"]
    assert lines(tmp_path) == lines(reference)
    assert len(hyperparameters(tmp_path / "tensorboard")) == 3  # as before


def test_a_run_of_a_sweep_says_in_tensorboard_what_is_varied(whole):
    workdir, result = whole
    experiment, start, _ = hyperparameters(workdir / "tensorboard")
    given = {k: v.number_value for k, v in start.session_start_info.hparams.items()}
    assert given == {"model.width": 16, "seed": 0}
    tags = {info.name.tag for info in experiment.experiment.metric_infos}
    assert tags == {name.replace("_", "/") for name in result["metrics"]}


def test_any_process_but_the_first_writes_nothing_itself(whole, tmp_path, monkeypatch):
    reference, result = whole
    shutil.copytree(reference, tmp_path, dirs_exist_ok=True)
    (tmp_path / "result.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    # What process 0 decides and tells it: that the run isn't finished, the saved steps, what is
    # logged at the last of them.
    rows = map(json.loads, (reference / "metrics.jsonl").read_text().splitlines())
    logged = sorted({name for row in rows if row["step"] == 6 for name in row})
    told = iter([None, ([], -math.inf), [6, 4], logged])
    monkeypatch.setattr(distributed, "decided_by_primary", lambda decide: next(told))
    monkeypatch.setattr(distributed, "is_primary", lambda: False)
    assert run(tmp_path)["metrics"] == result["metrics"]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_finished_run_says_so_and_does_nothing(whole, capsys):
    workdir, result = whole
    before = {path: path.stat().st_mtime_ns for path in Path(workdir).rglob("*")}
    assert run(workdir) == json.loads(json.dumps(result))
    assert capsys.readouterr().out == f"{workdir}: finished before, at step 6; nothing to do\n"
    assert {path: path.stat().st_mtime_ns for path in Path(workdir).rglob("*")} == before


def test_the_files_of_a_finished_run(whole):
    workdir, result = whole
    assert sorted(p.name for p in workdir.iterdir()) == [
        "checkpoints", "config.json", "data.json", "masks.txt", "metrics.jsonl", "result.json",
        "tensorboard",
    ]  # fmt: skip
    assert artifacts.read_data(workdir) == {
        "name": "digits",
        "version": "1.0.0",
        "image_shape": [8, 8, 1],
        "num_classes": 10,
        "classes": ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
        "train_examples": 1437,
        "test_examples": 360,
    }
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["4", "6"]
    assert result["parameters"] == {"trainable": 874, "frozen": 400}
    assert result["mode"] == "chans"
    assert result["config"] == {
        "name": "digits",
        "changed": {
            "batch_size": 32,
            "data.crop_padding": 1,
            "model.depth": 2,
            "model.kernel_size": 3,
            "model.patch_size": 2,
            "model.width": 16,
            "optimizer.clip_norm": 1.0,
            "optimizer.weight_decay": 0.01,
            "steps": 6,
        },
    }
    assert result["seed"] == 0
    assert result["device"] == {"kind": "cpu", "platform": "cpu", "count": 1}
    assert result["cores"] == len(os.sched_getaffinity(0))
    assert result["versions"]["jax"] == jax.__version__
    train_lines = [line for line in lines(workdir) if "train_loss" in line]
    test_lines = [line for line in lines(workdir) if "test_loss" in line]
    assert [line["step"] for line in train_lines] == [2, 4, 6]
    assert [line["step"] for line in test_lines] == [3, 6]
    assert set(train_lines[0]) == {"step", "epoch", "train_loss", "train_accuracy", "learning_rate"}
    assert test_lines[-1] == {
        "step": 6,
        "test_loss": result["metrics"]["test_loss"],
        "test_accuracy": result["metrics"]["test_accuracy"],
    }
    assert "spatial/block_00/depthwise/kernel" in (workdir / "masks.txt").read_text()


def test_load_returns_a_model_that_reproduces_the_result(whole):
    workdir, result = whole
    loaded = randmix.load(workdir)
    assert loaded.config.to_dict() == small.parts("chans").record.config
    assert loaded.step == 6
    test_set = small.parts("chans").data.open()[1].arrays()
    logits = jax.jit(loaded.model.apply)(
        loaded.variables, test_set["image"].astype(np.float32) / 255
    )
    accuracy = (np.asarray(logits).argmax(-1) == test_set["label"]).mean()
    assert accuracy == pytest.approx(result["metrics"]["test_accuracy"], abs=1e-7)


@pytest.fixture(scope="module")
def validated(tmp_path_factory):
    """A run with held-out examples, its validation accuracy lowest at the end."""
    workdir = tmp_path_factory.mktemp("validated")
    return workdir, run(workdir, **VALIDATED)


VALIDATED = {"data__validation": 0.2, "eval_every": 1, "optimizer__learning_rate": 0.3}


@pytest.mark.slow
def test_the_best_checkpoint_on_held_out_examples_is_kept(validated):
    workdir, result = validated
    logged = {row["step"]: row for row in lines(workdir) if "validation_accuracy" in row}
    assert sorted(logged) == [1, 2, 3, 4, 5, 6]
    best = max(logged, key=lambda step: (logged[step]["validation_accuracy"], -step))
    loaded = randmix.load(workdir, best=True)
    assert loaded.step == best < 6
    assert [path.name for path in (workdir / "best").iterdir()] == [str(best)]
    assert result["metrics"]["validation_accuracy"] == logged[6]["validation_accuracy"]
    # The last fifth of the 1,437 training examples, held out from training.
    images, labels = small.data()["image"][-287:], small.data()["label"][-287:]
    logits = jax.jit(loaded.model.apply)(loaded.variables, images.astype(np.float32) / 255)
    accuracy = (np.asarray(logits).argmax(-1) == labels).mean()
    assert accuracy == pytest.approx(logged[best]["validation_accuracy"], abs=1e-7)


@pytest.mark.slow
def test_the_best_is_the_same_after_a_stop(validated, tmp_path, monkeypatch):
    reference, _ = validated
    for stop in (2, 3):
        with monkeypatch.context() as patch:
            small.stop_after(patch, stop)
            with pytest.raises(Preempted):
                run(tmp_path, **VALIDATED)
    run(tmp_path, **VALIDATED)
    assert lines(tmp_path) == lines(reference)
    one, other = (randmix.load(workdir, best=True) for workdir in (reference, tmp_path))
    assert one.step == other.step
    assert not masks.diff(one.variables, other.variables).moved


def test_the_best_of_a_run_that_held_nothing_out(whole):
    workdir, _ = whole
    with pytest.raises(UserError) as error:
        randmix.load(workdir, best=True)
    assert str(error.value) == (
        f"{workdir}: no examples were held out to choose the best by; train with data.validation"
    )


def test_another_config_is_refused_with_the_keys_that_differ(whole):
    workdir, _ = whole
    with pytest.raises(UserError) as error:
        run(workdir, seed=1, model__depth=3)
    assert str(error.value) == (
        f"{workdir}: holds a run with another config (model.depth: 2 -> 3; seed: 0 -> 1); "
        "give another --workdir, or the old values"
    )
    run(workdir, log_every=5)  # settings of the display may change


def test_a_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    workdir = tmp_path / "file" / "run"
    with pytest.raises(UserError) as error:
        run(workdir)
    assert str(error.value) == (
        f"{workdir}: can't be written (Not a directory); give a --workdir that you may write to"
    )


def test_load_of_a_folder_without_a_run(tmp_path):
    with pytest.raises(UserError) as error:
        randmix.load(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: no run there (config.json is missing); give the --workdir of a run"
    )


@pytest.mark.parametrize(
    ("optimizer", "learning_rate", "message", "kept"),
    [
        pytest.param(
            *("adamw", 3e38, "step 4: the parameters aren't finite", 2), marks=pytest.mark.slow
        ),
        pytest.param(
            "sgd",
            1e30,
            "step 5: the loss or a gradient isn't finite; not_finite.json lists its examples",
            4,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_is_not_finite_stops_the_run_and_a_finite_checkpoint_stays(
    optimizer, learning_rate, message, kept, tmp_path
):
    bad = {
        "optimizer__name": optimizer,
        "optimizer__weight_decay": 1e3,
        "optimizer__clip_norm": 0.0,
        "optimizer__learning_rate": learning_rate,
        # the fourth step is the first to move
        "schedule__points": ((0.0, 0.0), (0.34, 0.0), (0.35, 1.0)),
    }
    with pytest.raises(
        UserError, match=f"^{message}; the last checkpoint before it is kept; lower"
    ):
        run(tmp_path, **bad)
    if "examples" in message:
        order = np.asarray(loader.epoch_order(0, 0, examples=1437))
        failed = {"step": 5, "examples": order[4 * 32 : 5 * 32].tolist()}
        assert json.loads((tmp_path / "not_finite.json").read_text()) == failed
    loaded = randmix.load(tmp_path)
    assert loaded.step == kept
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(loaded.variables))


@pytest.mark.slow
def test_a_run_that_has_failed_is_not_evaluated(tmp_path):
    bad = {"optimizer__name": "sgd", "optimizer__learning_rate": 1e30, "optimizer__clip_norm": 0.0}
    with pytest.raises(UserError, match=r"^step \d: .* finite"):
        run(tmp_path, **bad, data__validation=0.1, log_every=100, eval_every=3)
    assert not (tmp_path / "best").exists()
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_a_batch_that_the_devices_cannot_share(tmp_path):
    with pytest.raises(UserError) as error:
        run(tmp_path, devices=3)
    assert str(error.value) == (
        "config.batch_size: got 32, which 3 devices can't share evenly; allowed is a multiple of 3"
    )
    assert not list(tmp_path.iterdir())


def test_the_log_drops_what_will_run_again_and_half_a_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    with MetricsLog(path, 2) as log:
        log.write(step=3, loss=0.5)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "loss": 0.5}\n'


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    durable.write(path, "old")
    monkeypatch.setattr(type(artifacts.epath.Path(path)), "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        durable.write(path, "new")
    assert path.read_text() == "old"
