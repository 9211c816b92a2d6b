"""Seeds have 32 bits, all of them, and small ones give the numbers that they always gave."""

import json

import command
import jax
import numpy as np
import pytest
import small

from randmix.data import arrays, loader
from randmix.reproduce import plan, presets
from randmix.runtime import sharding
from randmix.training import ensemble, runs
from randmix.training import loop as train
from randmix.training.compiled import Programs

pytestmark = pytest.mark.slow

LARGE = (2**31, 2**32 - 1)
ONE_DEVICE = jax.devices()[:1]


def order(seed):
    mesh = sharding.make_mesh(ONE_DEVICE)
    data = {"image": np.zeros((1437, 1, 1, 1), np.uint8), "label": np.zeros(1437, np.int32)}
    return arrays.TrainArrays(data, seed=seed, batch_size=32, mesh=mesh)


@pytest.mark.parametrize(
    ("seed", "first", "later"),
    [
        (0, [259, 774, 1370, 470], [652, 199, 21, 29]),
        (7, [904, 1421, 491, 371], [1116, 275, 1084, 1091]),
        (2**31 - 1, [1024, 563, 154, 792], [161, 60, 484, 1055]),
        (2**31, [1211, 583, 700, 440], [897, 1135, 484, 29]),
        (2**32 - 1, [1169, 1134, 120, 510], [733, 1409, 1366, 885]),
    ],
)
def test_every_seed_orders_the_examples_and_no_order_changes(seed, first, later):
    feed = order(seed)
    assert feed.rows(0)[:4].tolist() == first
    assert feed.rows(3 * 44)[:4].tolist() == later  # in the fourth epoch
    expected = loader.epoch_order(np.uint32(seed), 3, examples=1437)
    np.testing.assert_array_equal(feed.arguments(3 * 44)[1], expected)
    together = order(np.array([0, seed]))  # as an ensemble has it
    np.testing.assert_array_equal(together.arguments(3 * 44)[1][1], expected)
    assert together.rows(0)[1, :4].tolist() == first


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two finished runs with large seeds, by seed."""
    programs = Programs()
    folders = {seed: tmp_path_factory.mktemp(str(seed)) for seed in LARGE}
    for seed, folder in folders.items():
        config = small.config(seed=seed, steps=3, data__flip=True)
        train.train(config, folder, devices=ONE_DEVICE, programs=programs)
    return folders


def test_runs_with_large_seeds(trained):
    results = [json.loads((folder / "result.json").read_text()) for folder in trained.values()]
    assert [result["seed"] for result in results] == [*LARGE]
    assert results[0]["metrics"] != results[1]["metrics"]


def test_large_seeds_on_the_command_line(trained, tmp_path):
    done = command.run(
        "randmix evaluate",
        *(f"--workdir={trained[2**31]}", "--attacks=noise", "--epsilons=8", "--examples=20"),
        *("--seed=4294967295", f"--out={tmp_path}"),
    )
    assert done.status == 0, done.err
    about = json.loads((tmp_path / "attacks.json").read_text())
    assert about["settings"]["seed"] == 2**32 - 1


def test_large_seeds_of_a_sweep():
    preset = presets.get("smoke")
    for seed in LARGE:
        (group, *_) = plan.build(preset, ["E3"], [seed])
        assert group[0].config.seed == group[0].settings["seed"] == seed
        assert str(group[0]).endswith(f"seed {seed}")


def test_large_seeds_of_an_ensemble_and_of_a_permutation(tmp_path):
    configs = [
        small.config(
            seed=seed,
            permutation_seed=2**32 - 1,
            task="unshuffling",
            model__patch_size=1,
            data__crop_padding=0,
            steps=2,
        )
        for seed in LARGE
    ]
    folders = [tmp_path / str(seed) for seed in LARGE]
    assert ensemble.train(
        [runs.assemble(config) for config in configs], folders, devices=ONE_DEVICE
    ) == [None, None]
    permutations = [np.load(folder / "permutation.npy") for folder in folders]
    np.testing.assert_array_equal(*permutations)
    assert sorted(permutations[0]) == [*range(64)]
