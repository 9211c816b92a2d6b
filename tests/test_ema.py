"""Moving averages of a run's weights: in its log, its checkpoints and what is loaded from it."""

import json

import command
import jax
import numpy as np
import pytest
import small
from logs import lines

import randmix
from randmix import config as configs
from randmix import masks
from randmix.errors import UserError
from randmix.runtime.preemption import Preempted
from randmix.training import ensemble, evaluation, runs
from randmix.training import loop as train

ONE_DEVICE = jax.devices()[:1]
LATE = (("late", "role('spatial')", {"start_step": 4}), ("train", "~role('spatial')", {}))
KEYS = {"ema": 0.5, "accumulate": 2, "checkpoint_every": 3, "keep_checkpoints": 3}
COMMON = {"optimizer__learning_rate": 0.02, "schedule__name": "constant", **KEYS}
# In the first phase, the spatial filters are yet to be trained.
PHASED = {**COMMON, "groups": LATE, "data__validation": 0.1, "model__depth": 1}


def fit(workdir, **overrides):
    return train.train(small.config(**overrides), workdir, devices=ONE_DEVICE)


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """A run that keeps an average, and its result."""
    workdir = tmp_path_factory.mktemp("averaged")
    return workdir, fit(workdir, **PHASED)


@pytest.mark.slow
def test_the_average_is_evaluated_beside_the_weights(averaged):
    workdir, result = averaged
    names = {
        f"{split}_{kind}{metric}"
        for split in ("test", "validation")
        for kind in ("", "ema_")
        for metric in ("loss", "accuracy")
    }
    assert result["metrics"].keys() == names
    evaluations = [row for row in lines(workdir) if "test_loss" in row]
    assert [row["step"] for row in evaluations] == [3, 6]
    assert all(row.keys() == {"step", *names} for row in evaluations)
    for ema in (False, True):
        run = randmix.load(workdir, ema=ema)
        split = evaluation.open_split(run, "test")
        got = evaluation.evaluate_run(run, split, batch_size=16)
        kind = "ema_" if ema else ""
        assert got["loss"] == pytest.approx(result["metrics"][f"test_{kind}loss"], rel=1e-6)
        assert got["accuracy"] == result["metrics"][f"test_{kind}accuracy"]
        shown = f"test {kind}accuracy".replace("_", " ")
        assert f"  {shown}  {got['accuracy']:.4f}" in repr(run).splitlines()
    assert result["metrics"]["test_loss"] != result["metrics"]["test_ema_loss"]


@pytest.mark.slow
def test_weights_that_are_yet_to_be_trained_are_bit_equal_in_the_average(averaged):
    workdir, _ = averaged
    for step in (3, 6):
        own, average = (
            randmix.load(workdir, step=step, ema=ema).variables for ema in (False, True)
        )
        moved = {path.split("/")[0] for path in masks.diff(own, average).moved}
        started = {"spatial"} if step > 4 else set()
        assert moved == {"batch_stats", "channel", "head", "norm"} | started
    best = randmix.load(workdir, best=True, ema=True)
    own = randmix.load(workdir, step=best.step, ema=True)
    assert not masks.diff(best.variables, own.variables).moved


@pytest.mark.slow
def test_a_stopped_run_resumes_with_its_average_bit_for_bit(averaged, tmp_path, monkeypatch):
    workdir, result = averaged
    with monkeypatch.context() as patch:
        small.stop_after(patch, 5)
        with pytest.raises(Preempted, match="stopped and saved at step 5 of 6"):
            fit(tmp_path, **PHASED)
    assert fit(tmp_path, **PHASED)["metrics"] == result["metrics"]
    for ema in (False, True):
        one, other = (randmix.load(folder, ema=ema).variables for folder in (workdir, tmp_path))
        assert not masks.diff(one, other).moved
    assert lines(tmp_path) == lines(workdir)


@pytest.mark.slow
def test_a_member_of_an_ensemble_has_the_average_of_its_lone_run(tmp_path):
    folders = [tmp_path / "0", tmp_path / "1"]
    both = [runs.assemble(small.config(seed=seed, **COMMON)) for seed in (0, 1)]
    assert ensemble.train(both, folders, devices=ONE_DEVICE) == [None, None]
    result = fit(tmp_path / "lone", seed=1, **COMMON)
    member = json.loads((folders[1] / "result.json").read_text())["metrics"]
    assert member == pytest.approx(result["metrics"], rel=1e-4)
    one, other = (randmix.load(f, ema=True).variables for f in (folders[1], tmp_path / "lone"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), one, other)


@pytest.mark.slow
def test_the_command_evaluates_the_average(averaged, tmp_path):
    workdir, result = averaged
    done = command.run("randmix evaluate", f"--workdir={workdir}", "--ema")
    assert (done.status, done.err) == (0, "")
    assert (
        f" average │ digits, test │  all 360 │   {result['metrics']['test_ema_accuracy']:.4f} │"
        in (done.out)
    )
    flags = ("--ema", "--step=3", "--attacks=fgsm", "--epsilons=0,2", "--examples=32")
    done = command.run("randmix evaluate", f"--workdir={workdir}", *flags)
    assert (done.status, done.err) == (0, "")
    assert (workdir / "step_3" / "ema" / "attacks.csv").exists()


def test_a_run_without_an_average_has_the_state_that_it_always_had(tmp_path):
    # A further field, even None, and Orbax refuses all older checkpoints.
    state = jax.eval_shape(small.parts("chans").init_state, 0)
    names = {"step", "params", "batch_stats", "opt_state", "totals", "failed_step"}
    assert vars(state).keys() == names
    (tmp_path / "config.json").write_text(configs.to_json(small.config()))
    with pytest.raises(UserError) as error:
        randmix.load(tmp_path, ema=True)
    assert str(error.value) == (
        f"{tmp_path}: no average of the weights was kept; train with config.ema"
    )
