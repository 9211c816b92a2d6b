"""Runs with parts of the user's own, from a config file outside the repository."""

import gzip
import importlib
import json
import shutil
import sys
from pathlib import Path

import command
import jax
import numpy as np
import own_parts
import pytest

import randmix
from randmix import config as configs
from randmix.experiments import records
from randmix.runtime import sharding
from randmix.training import loop, runs
from randmix.workdir.checkpoints import Checkpoints

RESULTS = Path(__file__).parents[1] / "results"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A user's folder."""
    path = tmp_path_factory.mktemp("user")
    own_parts.write(path)
    return path


@pytest.fixture
def forgotten():
    """Python's path and the user's module are afterwards as before."""
    before = [*sys.path]
    yield
    sys.path[:] = before
    sys.modules.pop("my_parts", None)


def saved(workdir):
    """The variables and the whole optimizer state of a workdir's newest checkpoint."""
    parts = runs.assemble(runs.read_config(workdir))
    abstract = parts.abstract_state(sharding.make_mesh(jax.devices()[:1]))
    with Checkpoints(workdir, about=parts.record.identity) as checkpoints:
        return checkpoints.restore_latest(abstract)


def cut(workdir, step):
    """Leaves of a finished run what a power cut after the checkpoint of a step would."""
    (workdir / "result.json").unlink()
    later = [
        p for p in (workdir / "checkpoints").iterdir() if p.name.isdigit() and int(p.name) > step
    ]
    assert later
    for path in later:
        shutil.rmtree(path)


@pytest.mark.slow
def test_records_keep_their_names():
    files = sorted(RESULTS.glob("*/records.jsonl.gz"))
    assert files
    for file in files:
        written = [
            json.loads(line)["run"] for line in gzip.decompress(file.read_bytes()).splitlines()
        ]
        assert written
        assert {*records.read(file)} == {*written}


def test_empty_keys_leave_a_name_as_it_was():
    config = configs.default()
    assert {"roles", "user"} <= {*config}
    assert not {
        key for key in configs.identity(config) if key.startswith(("roles", "user", "code"))
    }
    assert configs.fingerprint(configs.recipe("digits")) == "5b4e60a5"


@pytest.mark.slow
def test_a_config_outside_the_repository(folder, tmp_path, forgotten):
    """Train, stop, resume, evaluate under attack, compare, load: each in its own process."""
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    flags = [f"--config={folder / 'mine.py'}"]

    def done(program, *arguments):
        ended = command.run(program, *arguments, cwd=tmp_path, limit=300)
        assert ended.status == 0, ended.err
        return ended.out

    table = done("randmix train", *flags, "--summary")
    assert "spatial/attention_0/query/kernel" in table
    assert table.count("  spatial  freeze  ") == 4
    done("randmix train", *flags, f"--workdir={whole}")
    halves_flags = [*flags, f"--workdir={halves}", "--config.keep_checkpoints=4"]
    done("randmix train", *halves_flags)
    cut(halves, 5)
    assert "resuming from step 5" in done("randmix train", *halves_flags)
    jax.tree.map(np.testing.assert_array_equal, saved(whole), saved(halves))
    logs = [(path / "metrics.jsonl").read_text().splitlines() for path in (whole, halves)]
    for one, other in zip(*(map(json.loads, log) for log in logs), strict=True):
        assert one.keys() == other.keys()
        assert {"images_per_second"} >= {key for key in one if one[key] != other[key]}

    # From the current folder, which isn't that of the module.
    assert "entropy" in done("randmix evaluate", f"--workdir={whole}")
    attacked = done(
        "randmix evaluate", f"--workdir={whole}", "--attacks=fgsm,pgd", "--epsilons=0,8",
        "--examples=16", "--pgd_steps=2",
    )  # fmt: skip
    assert "pass  epsilon 0 reproduces the clean accuracy" in attacked
    assert "vit" in done("randmix compare", whole, halves).lower()

    run = randmix.load(whole)
    metrics = json.loads((whole / "result.json").read_text())["metrics"]
    split = importlib.import_module("my_parts").blobs()["test"]
    logits = run.model.apply(run.variables, np.float32(split[0]) / 255)
    assert float(np.mean(logits.argmax(-1) == split[1])) == pytest.approx(metrics["test_accuracy"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Small", "Normed"])
def test_nnx_and_running_statistics_resume_bit_for_bit(name, folder, tmp_path, forgotten):
    config = configs.default()
    config.code_dir = str(folder)
    config.model = {"name": f"my_parts:{name}", "width": 8}
    config.data.name = "my_parts:blobs"
    config.data.flip = True
    config.update(mode="full", batch_size=16, steps=6, log_every=2, eval_every=6)
    config.update(checkpoint_every=3, tensorboard=False, accumulate=2, ema=0.9)
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    loop.train(config, whole)
    loop.train(config, halves)
    cut(halves, 3)
    loop.train(config, halves)
    jax.tree.map(np.testing.assert_array_equal, saved(whole), saved(halves))
    initial = runs.assemble(config).init_state(0)
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), initial.params, saved(whole).params)
    assert all(jax.tree.leaves(moved))
    statistics = randmix.load(whole).variables["batch_stats"]
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(statistics))
    assert randmix.load(whole, ema=True).ema


@pytest.mark.slow
def test_a_sweep_varies_the_keys_of_ones_own_parts(folder, tmp_path):
    flags = [
        f"--config={folder / 'mine.py'}", f"--workdir={tmp_path / 'sweep'}", "--set=steps=2",
        "--set=eval_every=2", "--grid=optimizer.name=lion,sgd", "--set=model.depth=2",
    ]  # fmt: skip
    done = command.run("randmix sweep", *flags, cwd=tmp_path, limit=300)
    assert done.status == 0, done.err
    assert "2 of 2 runs are finished" in done.out
    again = command.run("randmix sweep", *flags, cwd=tmp_path, limit=300)
    assert "2 of 2 runs were finished before" in again.out
    config = configs.from_values(next(iter(records.read(tmp_path / "sweep").values())).config)
    assert config.code_dir is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('config.model = {"name": "my_part:ViT"}', "there is no module 'my_part' in "),
        ('config.model = {"name": "my_parts:ViT", "widht": 3}', "did you mean 'width'?"),
        ('config.optimizer = {"name": "sgd", "momentun": 3}', "did you mean 'momentum'?"),
        ('config.task = "my_parts:facal"', "did you mean 'focal'?"),
        ("config.mdoe = 3", "did you mean 'mode'?"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_and_status_2(line, message, folder, tmp_path):
    text = (
        (folder / "mine.py")
        .read_text()
        .replace("    return config", f"    {line}\n    return config")
    )
    file = folder / "mistaken.py"
    file.write_text(text)
    done = command.run("randmix train", f"--config={file}", cwd=tmp_path)
    assert done.status == 2
    assert message in done.err
    assert done.err.startswith("randmix: ")
    assert done.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()
