"""Seeds trained as one program: each matches its lone run, resumes exactly, and fails alone."""

import json
import shutil

import jax
import numpy as np
import pytest
import small
from logs import lines

import randmix
from randmix import masks
from randmix.data import loader
from randmix.errors import UserError
from randmix.experiments import training
from randmix.runtime import sharding
from randmix.runtime.preemption import Preempted
from randmix.training import ensemble, runs
from randmix.training import loop as train

SEEDS = (0, 3, 7)
STEPS = {"steps": 10, "eval_every": 5, "data__flip": True, "optimizer__learning_rate": 0.003}
ONE_DEVICE = jax.devices()[:1]


def configs(**overrides):
    return [small.config(seed=seed, **STEPS, **overrides) for seed in SEEDS]


def all_parts(**overrides):
    return [runs.assemble(config) for config in configs(**overrides)]


def folders(root):
    return [root / str(seed) for seed in SEEDS]


def together(root, **overrides):
    return ensemble.train(all_parts(**overrides), folders(root), devices=ONE_DEVICE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed ensemble."""
    root = tmp_path_factory.mktemp("whole")
    assert together(root) == [None] * 3
    return root


def assert_same(one, other, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), one, other)


@pytest.mark.slow
@pytest.mark.parametrize("member", [0, 2])
def test_a_member_follows_its_lone_run_and_writes_the_same_files(member, whole, tmp_path):
    workdir = folders(whole)[member]
    lone = train.train(configs()[member], tmp_path, devices=ONE_DEVICE)
    # Adam divides by the gradient's size, which shows rounding near zero: the losses are the
    # sharper test.
    assert_same(
        randmix.load(tmp_path).variables, randmix.load(workdir).variables, rtol=1e-4, atol=3e-5
    )
    assert [row.keys() for row in lines(tmp_path)] == [row.keys() for row in lines(workdir)]
    assert_same(lines(tmp_path), lines(workdir), rtol=1e-5, atol=1e-6)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in workdir.iterdir()}
    for name in ("config.json", "data.json", "masks.txt"):
        assert (tmp_path / name).read_text() == (workdir / name).read_text()
    result = json.loads((workdir / "result.json").read_text())
    assert result.pop("ensemble") == 3
    assert result.keys() == lone.keys()
    assert result["seed"] == SEEDS[member]
    assert_same(result["metrics"], lone["metrics"], rtol=1e-5)
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["10", "8"]
    # Like any workdir it can be resumed alone; here only the evaluation is left.
    shutil.copytree(workdir, tmp_path / "copy")
    (tmp_path / "copy" / "result.json").unlink()
    assert_same(
        train.train(configs()[member], tmp_path / "copy", devices=ONE_DEVICE)["metrics"],
        lone["metrics"],
        rtol=1e-5,
    )


@pytest.mark.slow
def test_members_are_runs_of_their_own(whole):
    losses = {
        tuple(row["train_loss"] for row in lines(folder) if "train_loss" in row)
        for folder in folders(whole)
    }
    assert len(losses) == 3


@pytest.mark.slow
def test_a_stopped_ensemble_resumes_bit_for_bit(whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        small.stop_after(patch, 7)
        with pytest.raises(Preempted, match="stopped and saved at step 7 of 10"):
            together(tmp_path)
    assert [randmix.load(folder).step for folder in folders(tmp_path)] == [7, 7, 7]
    # As if one was killed before its save finished: all return to step 6.
    shutil.rmtree(folders(tmp_path)[1] / "checkpoints" / "7")
    assert ensemble.cohorts(all_parts(), folders(tmp_path), 3) == [[0, 1, 2]]
    assert together(tmp_path) == [None] * 3
    for resumed, reference in zip(folders(tmp_path), folders(whole), strict=True):
        assert not masks.diff(
            randmix.load(reference).variables, randmix.load(resumed).variables
        ).moved
        assert lines(resumed) == lines(reference)
        assert "7" not in {path.name for path in (resumed / "checkpoints").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("where", ["loss", "parameters"])
def test_a_member_that_is_not_finite_fails_alone(where, whole, tmp_path, monkeypatch, capsys):
    inner = train.first_state

    def poisoned(members, session):
        state = inner(members, session)
        if where == "loss":
            bias = state.params["head"]["classifier"]["bias"].at[1].set(np.nan)
            head = {
                **state.params["head"],
                "classifier": {**state.params["head"]["classifier"], "bias": bias},
            }
            return state.replace(params={**state.params, "head": head})
        stats = jax.tree.map(lambda x: x.at[1].set(np.inf), state.batch_stats)
        return state.replace(batch_stats=stats)

    monkeypatch.setattr(train, "first_state", poisoned)
    first, second, third = together(tmp_path)
    assert first is third is None
    folder = folders(tmp_path)[1]
    assert f"seed 3: {second}" in capsys.readouterr().out
    assert not (folder / "result.json").exists()
    assert not (folder / "checkpoints").exists()
    if where == "loss":
        assert second.startswith(
            "step 1: the loss or a gradient isn't finite; not_finite.json lists its examples"
        )
        assert lines(folder) == []
        rows = np.asarray(loader.epoch_order(3, 0, examples=1437))[:32].tolist()
        assert json.loads((folder / "not_finite.json").read_text()) == {"step": 1, "examples": rows}
    else:
        assert second.startswith("step 2: the parameters aren't finite")
        assert [row["step"] for row in lines(folder)] == [2]
    for i in (0, 2):
        assert lines(folders(tmp_path)[i]) == lines(folders(whole)[i])
        assert (folders(tmp_path)[i] / "result.json").exists()


def touch_checkpoint(workdir, source, *steps):
    """Copies a finished run's last checkpoint there, under the given steps."""
    for step in steps:
        shutil.copytree(source / "checkpoints" / "10", workdir / "checkpoints" / str(step))


@pytest.mark.slow
def test_which_seeds_are_trained_together(whole, tmp_path):
    source = folders(whole)[0]
    parted = lambda at_most=9: ensemble.cohorts(five, dirs, at_most)  # noqa: E731
    five = [small.parts(seed=seed) for seed in range(5)]
    dirs = [tmp_path / str(seed) for seed in range(5)]
    assert parted() == [[0, 1, 2, 3, 4]]
    assert parted(2) == [[0, 1], [2, 3], [4]]
    assert parted(1) == [[0], [1], [2], [3], [4]]
    assert not list(tmp_path.iterdir())
    touch_checkpoint(dirs[0], source, 4, 6)
    touch_checkpoint(dirs[1], source, 4)
    touch_checkpoint(dirs[2], source, 2)
    (dirs[2] / "checkpoints" / "2" / "manifest.json").unlink()
    assert sorted(parted()) == [[0, 1], [2, 3, 4]]
    touch_checkpoint(dirs[4], source, 6)
    dirs[3].mkdir()
    for name in ("config.json", "result.json"):
        shutil.copy(source / name, dirs[3])
    assert sorted(parted()) == [[0, 4], [1], [2], [3]]
    (dirs[3] / "result.json").write_text("{}")  # damaged: it is trained again
    assert sorted(parted()) == [[0, 4], [1], [2, 3]]
    with pytest.raises(ValueError, match="no step is intact in all workdirs"):
        ensemble._delete_after_common_step([dirs[1], dirs[4]])


def test_a_composed_resnet_trains_alone(tmp_path):
    from randmix.config import default

    resnets = [runs.assemble(default("resnet")), runs.assemble(default("resnet"))]
    assert ensemble.cohorts(resnets, [tmp_path / "0", tmp_path / "1"], 8) == [[0], [1]]


def test_the_largest_ensemble_that_fits_in_memory(monkeypatch):
    asked = []

    def lower_steps(parts, mesh, members):
        asked.append(members)
        return {"eval": members - 1, "train": members}

    monkeypatch.setattr(ensemble, "lower_steps", lower_steps)
    monkeypatch.setattr(ensemble, "_needs", lambda lowered: 100 * max(lowered))
    fitting = [
        ensemble.largest_that_fits(small.parts(), 7, limit_bytes=limit)
        for limit in (778, 777, 400, 10)
    ]
    assert fitting == [7, 4, 2, 1]
    assert asked == [7, 7, 4, 7, 4, 2, 7, 4, 2]
    assert ensemble.largest_that_fits(small.parts(), 7) == 7  # a CPU doesn't report its memory


@pytest.mark.slow
def test_what_an_ensemble_needs_is_what_its_programs_hold(whole):
    mesh = sharding.make_mesh(ONE_DEVICE)
    parts = runs.assemble(configs()[0])
    lowered = ensemble.lower_steps(parts, mesh, 3).values()
    state = sum(
        np.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(parts.abstract_state(mesh))
    )
    data = small.data()["image"].nbytes + small.data()["label"].nbytes
    assert 3 * state + data < ensemble._needs(lowered) < 3 * state + data + 100e6


def reasons(root, together):
    """Why each run failed, in the order of the runs."""
    found = dict(training.train_seeds(configs(), folders(root), together))
    return [found[i] for i in range(len(found))]


@pytest.mark.slow
def test_a_sweep_hands_seeds_over(tmp_path, monkeypatch):
    calls = []

    def train_together(all_parts, workdirs, **rest):
        calls.append([parts.seed for parts in all_parts])
        print("said by all")
        if error:
            raise error
        return ["bad", *[None] * (len(all_parts) - 1)]

    error = None
    monkeypatch.setattr(ensemble, "train", train_together)
    monkeypatch.setattr(
        training, "train", lambda config, workdir, **rest: calls.append(config.seed)
    )
    assert reasons(tmp_path, 2) == ["bad", None, None]
    assert calls == [[0, 3], 7]
    assert [(folder / "log.txt").read_text() for folder in folders(tmp_path)] == [
        *["said by all\n"] * 2,
        "",
    ]
    calls.clear()
    assert reasons(tmp_path, "auto") == [None] * 3
    assert calls == [0, 3, 7]  # alone on a CPU
    calls.clear()
    error = MemoryError("all of it")
    assert reasons(tmp_path, 3) == [None] * 3
    assert calls == [[0, 3, 7], 0, 3, 7]
    assert (
        "MemoryError: all of it\ntraining the seeds together failed"
        in (folders(tmp_path)[2] / "log.txt").read_text()
    )
    error = Preempted("stopped")
    with pytest.raises(Preempted):
        reasons(tmp_path, 3)


@pytest.mark.slow
def test_on_an_accelerator_auto_takes_what_fits(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(
        ensemble, "largest_that_fits", lambda config, count: asked.append(count) or 2
    )
    monkeypatch.setattr(ensemble, "train", lambda configs, workdirs, **rest: [None] * len(configs))
    monkeypatch.setattr(training, "train", lambda config, workdir, **rest: None)
    assert training._cohorts(configs(), folders(tmp_path), "auto") == [[0, 1], [2]]
    assert asked == [3]


def test_the_flag_reads_auto_off_and_a_number():
    assert [training.parse_ensemble(text) for text in ("auto", "off", "1", "8")] == [
        "auto",
        1,
        1,
        8,
    ]
    for text in ("0", "-1", "2.5", "all", "", "²"):
        message = f"^--ensemble: got '{text}', allowed are auto, off and a number of seeds, at"
        with pytest.raises(UserError, match=message):
            training.parse_ensemble(text)
