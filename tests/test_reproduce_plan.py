"""Runs of a sweep: each once, in groups of seeds, split into shards, with overrides."""

import itertools

import pytest

from randmix import config as configs
from randmix.errors import UserError
from randmix.models import counts
from randmix.reproduce import plan, presets
from randmix.training import runs

SMOKE = presets.get("smoke")


@pytest.fixture(scope="module")
def groups():
    return plan.build(SMOKE, tuple(SMOKE.runs), range(2))


def test_a_shared_run_appears_once_with_its_experiments(groups):
    names = [run.name for group in groups for run in group]
    assert len(names) == len(set(names))
    asked = sum(len(runs) for runs in SMOKE.runs.values())
    assert len(groups) < asked
    assert sum(len(group[0].experiments) for group in groups) == asked
    (shared,) = [
        group[0]
        for group in groups
        if {"E2", "E3", "E4"} <= {*group[0].experiments} and "full" in group[0].title
    ]
    assert shared.config.mode == "full"


def test_a_run_is_named_by_its_content_and_a_group_differs_in_the_seed_only(groups):
    for group in groups:
        given = [plan.make_config(run.settings) for run in group]
        assert [run.name for run in group] == [configs.fingerprint(config) for config in given]
        assert [run.config.seed for run in group] == [0, 1]
        assert configs.differences(group[0].config, group[1].config) == ["seed: 0 -> 1"]


def test_costs_are_multiply_adds_times_images_times_epochs(groups):
    run = groups[0][0]
    parts = runs.assemble(run.config)
    per_image = sum(counts.multiply_adds(parts.step.model, (8, 8, 1)).values())
    assert run.cost == per_image * 3 * 32  # three steps of 32 images


@pytest.mark.parametrize("n", [1, 2, 3, 7, 100])
def test_shards_partition_the_groups(groups, n):
    parts = [plan.shard(groups, i, n) for i in range(1, n + 1)]
    together = [group for part in parts for group in part]
    assert sorted(g[0].name for g in together) == sorted(g[0].name for g in groups)
    # The same in a job that lists the groups in another order.
    assert plan.shard(groups[::-1], 1, n) == parts[0]
    loads = [sum(len(group) * group[0].cost for group in part) for part in parts]
    largest = max(len(group) * group[0].cost for group in groups)
    assert max(loads) - min(loads) <= largest


@pytest.mark.parametrize("text", ["3/2", "0/2", "1/0", "a/b", "1", "-1/2", "1/2/3", ""])
def test_an_impossible_shard_is_refused(text):
    with pytest.raises(UserError, match=r"--shard: got .* allowed is i/n with i from 1 to n"):
        plan.parse_shard(text)


def test_a_shard_is_parsed():
    assert plan.parse_shard("3/8") == (3, 8)


def test_overrides_reach_the_runs_that_have_the_key_and_the_attack():
    texts = ["data.subset=0.5", "steps=2", "model.between=relu", "attack.examples=7"]
    preset, overrides = plan.split_overrides(SMOKE, plan.parse_overrides(texts))
    assert preset.attack["examples"] == 7
    assert SMOKE.attack["examples"] == 32
    assert overrides == {"data.subset": 0.5, "steps": 2, "model.between": "relu"}
    groups = plan.build(preset, ("E2", "E5"), (0,), overrides=overrides)
    for (run,) in groups:
        assert (run.config.data.subset, run.config.steps) == (0.5, 2)
        assert run.config.model.get("between", "relu") == "relu"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs", "allowed is KEY=VALUE"),
        ("epoch=2", "no config has the key 'epoch'; did you mean 'epochs'"),
        ("model.depth=2", "model.depth is varied by the experiments"),
        ("seed=2", "seed is varied by the experiments"),
        ("attack.example=2", "allowed are attack.epsilons"),
        ("attack.examples=all", "allowed are attack.epsilons"),
    ],
)
def test_impossible_overrides_are_refused(text, message):
    preset = presets.get("digits")
    with pytest.raises(UserError, match=message):
        plan.split_overrides(preset, plan.parse_overrides([text]))


def test_an_override_of_another_type_is_a_mistake():
    with pytest.raises(UserError, match="epochs"):
        plan.build(SMOKE, ("E2",), (0,), overrides={"epochs": "many"})


def test_a_data_set_that_is_not_prepared_is_a_mistake():
    with pytest.raises(UserError, match="cifar10 is not prepared"):
        plan.build(presets.get("cifar"), ("E9",), (0,), data_dir="/nowhere")


@pytest.mark.parametrize("name", presets.NAMES)
def test_every_run_of_a_preset_is_a_valid_config_with_a_name(name):
    preset = presets.get(name)
    for settings in itertools.chain.from_iterable(preset.runs.values()):
        config = plan.make_config({**settings, "seed": 1})
        configs.check(config)
        assert plan.describe({**settings, "seed": 1}).endswith("seed 1")
    assert preset.departures


def test_fractions_are_of_the_spatial_filters():
    shares = [plan.learned_share(run) for run in SMOKE.runs["E12"]]
    assert shares == [0, 0.5, 1]
    parts = [runs.assemble(plan.make_config({**run, "seed": 0})) for run in SMOKE.runs["E12"]]
    trainable = [part.record.summary.trainable for part in parts]
    assert trainable[0] < trainable[1] < trainable[2]


def test_the_table_names_every_run(groups, tmp_path):
    text = plan.table(groups, tmp_path)
    assert all(run.name in text and run.title in text for group in groups for run in group)
    assert f"{sum(map(len, groups))} runs" in text
