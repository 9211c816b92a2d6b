"""Runs of a sweep: each once, in groups of seeds, split into shards, with overrides."""

import dataclasses
import itertools

import pytest

from randmix import config as configs
from randmix.errors import UserError
from randmix.experiments import records
from randmix.experiments.grid import parse_fixed
from randmix.experiments.plan import parse_shard, shard, table
from randmix.models import counts
from randmix.reproduce import order, plan, presets
from randmix.reproduce.claims import CLAIMS
from randmix.reproduce.experiments import EXPERIMENTS
from randmix.reproduce.titles import title_of
from randmix.training import runs

pytestmark = pytest.mark.slow

SMOKE = presets.get("smoke")
EVERY = [(name, tier) for name in presets.NAMES for tier in presets.tiers(name)]


@pytest.fixture(scope="module")
def groups():
    return plan.build(SMOKE, tuple(SMOKE.runs), range(2))


def test_a_shared_run_appears_once_with_its_experiments(groups):
    names = [run.name for group in groups for run in group]
    assert len(names) == len(set(names))
    asked = sum(
        len({configs.fingerprint(plan.make_config(run)) + str("transplant" in run) for run in runs})
        for runs in SMOKE.runs.values()
    )
    assert len(groups) < asked
    assert sum(len(group[0].experiments) for group in groups) == asked
    (shared,) = [
        group[0]
        for group in groups
        if {"E2", "E3", "E4"} <= {*group[0].experiments} and "Full" in group[0].title
    ]
    assert shared.config.mode == "full"


@pytest.mark.parametrize("first", ["E3", "E5"])
def test_of_experiments_that_share_a_run_the_one_that_keeps_most_checkpoints_decides(first):
    one = dict(SMOKE.runs["E2"][0])
    few = {"E3": 2, "E5": 100}
    order = [first, *(few.keys() - {first})]
    more = {
        name: ({**one, "keep_checkpoints": few[name], "checkpoint_every": few[name]},)
        for name in order
    }
    (group,) = plan.build(dataclasses.replace(SMOKE, runs=more), order, range(1))
    assert group[0].experiments == tuple(order)
    for key in ("keep_checkpoints", "checkpoint_every"):
        assert (group[0].settings[key], group[0].config[key]) == (100, 100)


def test_a_run_is_named_by_its_content_and_a_group_differs_in_the_seed_only(groups):
    for group in (group for group in groups if not plan.starts_elsewhere(group)):
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
    parts = [shard(groups, i, n) for i in range(1, n + 1)]
    together = [group for part in parts for group in part]
    assert sorted(g[0].name for g in together) == sorted(g[0].name for g in groups)
    # The same in a job that lists the groups in another order.
    assert shard(groups[::-1], 1, n) == parts[0]
    loads = [sum(len(group) * group[0].cost for group in part) for part in parts]
    largest = max(len(group) * group[0].cost for group in groups)
    assert max(loads) - min(loads) <= largest


@pytest.mark.parametrize("text", ["3/2", "0/2", "1/0", "a/b", "1", "-1/2", "1/2/3", ""])
def test_an_impossible_shard_is_refused(text):
    with pytest.raises(UserError, match=r"--shard: got .* allowed is i/n with i from 1 to n"):
        parse_shard(text)


def test_a_shard_is_parsed():
    assert parse_shard("3/8") == (3, 8)


def test_overrides_reach_the_runs_that_have_the_key_and_the_attack():
    texts = ["data.subset=0.5", "steps=2", "model.between=relu", "attack.examples=7"]
    preset, overrides = plan.split_overrides(SMOKE, parse_fixed(texts, "override"))
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
        ("attack.epsilons=(8.0, 64.0)", "allowed are radii in 1/255 that ascend from 0"),
        ("attack.epsilons=(0.0, 64.0, 8.0)", "allowed are radii in 1/255 that ascend from 0"),
    ],
)
def test_impossible_overrides_are_refused(text, message):
    preset = presets.get("digits")
    with pytest.raises(UserError, match=message):
        plan.split_overrides(preset, parse_fixed([text], "override"))


def test_an_override_of_another_type_is_a_mistake():
    with pytest.raises(UserError, match="epochs"):
        plan.build(SMOKE, ("E2",), (0,), overrides={"epochs": "many"})


def test_a_data_set_that_is_not_prepared_is_a_mistake():
    with pytest.raises(UserError, match="cifar10 is not prepared"):
        plan.build(presets.get("cifar10"), ("E9",), (0,), data_dir="/nowhere")


@pytest.mark.parametrize(("name", "tier"), EVERY)
def test_every_run_of_a_preset_is_a_valid_config_with_a_name(name, tier):
    preset = presets.get(name, tier)
    assert (preset.name, preset.tier) == (name, tier)
    assert preset.runs.keys() <= EXPERIMENTS.keys()
    for settings in itertools.chain.from_iterable(preset.runs.values()):
        config = plan.make_config({**settings, "seed": 1})
        configs.check(config)
        title = plan.describe(settings)
        assert title.startswith(title_of(settings["data.name"]))
        assert len(title) <= 90


def test_a_preset_has_the_tier_that_was_asked_for_or_its_first():
    assert presets.get("cifar10").tier == "laptop"
    assert presets.get("cifar100").tier == "paper"
    assert presets.get("cifar10", "paper").label == "cifar10-paper"
    with pytest.raises(UserError, match="--tier: got 'laptop', allowed with --preset=imagenet: p"):
        presets.get("imagenet", "laptop")


def test_a_preset_moves_to_another_data_set_with_all_its_runs():
    moved = presets.get("cifar10").on("imagefolder/cifar10")
    names = {run["data.name"] for runs in moved.runs.values() for run in runs}
    assert names == {"imagefolder/cifar10"}
    assert {id: len(runs) for id, runs in moved.runs.items()} == {
        id: len(runs) for id, runs in presets.get("cifar10").runs.items()
    }


def test_titles_tell_the_runs_apart(groups):
    titles = [group[0].title for group in groups]
    assert len({*titles}) == len(titles)
    assert any(title == "Digits ResNet, width 2, depth 1, k 3, Full, held out" for title in titles)


def test_fractions_are_of_the_spatial_filters():
    shares = [plan.learned_share(run) for run in SMOKE.runs["E12"]]
    assert shares == [0, 0.5, 1]
    parts = [runs.assemble(plan.make_config({**run, "seed": 0})) for run in SMOKE.runs["E12"]]
    trainable = [part.record.summary.trainable for part in parts]
    assert trainable[0] < trainable[1] < trainable[2]


def test_the_table_names_every_run(groups):
    text = table(groups, {groups[0][0].name})
    assert all(run.name in text and str(run) in text for group in groups for run in group)
    assert text.count("(finished)") == 1
    assert f"{sum(map(len, groups))} runs" in text


def of_claim(groups, claim):
    """The names of the groups that a claim or its gates compare, found another way."""
    asked = {claim.experiment, *(gate.experiment for gate in claim.gates if gate.experiment)}
    found = []
    for run, *_ in groups:
        own = asked & {*run.experiments}
        if own == {claim.experiment}:  # no gate uses it
            own = own if "defended" not in run.title else set()
            own = own if claim.id != "2'" or "rank" in run.title else set()
            own = own if claim.id != "6a" or "Space" not in run.title else set()
        if own and (claim.model is None or f" {claim.model}," in run.title.lower()):
            found.append(run.name)
    return found


def test_what_decides_a_primary_claim_soonest_comes_first(groups):
    ordered = order.soonest_verdicts_first(groups)
    assert sorted(group[0].name for group in ordered) == sorted(group[0].name for group in groups)
    place = {group[0].name: i for i, group in enumerate(ordered)}
    cost = {group[0].name: len(group) * group[0].cost for group in groups}
    needed = {claim.id: set(of_claim(groups, claim)) for claim in CLAIMS.values() if claim.primary}
    assert [id for id, names in needed.items() if not names] == ["4a"]  # no ResNet is attacked
    del needed["4a"]
    decided = sorted(needed, key=lambda id: max(place[name] for name in needed[id]))
    done = set()
    for id in decided:  # none of the later claims would have cost less at this point
        left = {other: sum(cost[n] for n in needed[other] - done) for other in needed}
        assert left[id] == min(left[other] for other in decided[decided.index(id) :])
        done |= needed[id]
    assert max(place[name] for name in done) == len(done) - 1
    rest = [group for group in groups if group[0].name not in done]
    assert rest
    assert ordered[len(done) :] == rest


def test_a_claim_waits_for_the_runs_that_it_compares_and_for_its_gates(groups):
    every = tuple(SMOKE.runs)
    waiting = order.pending(groups, {}, every, SMOKE)
    for claim in (claim for claim in CLAIMS.values() if claim.primary and claim.id != "4a"):
        names = of_claim(groups, claim)
        assert waiting[claim.id, "digits"] == (2 * len(names), 2 * len(names)), claim.id
    assert waiting["7", ""] == waiting["8", ""] == (0, 0)
    assert ("4a", "digits") not in waiting  # no ResNet is attacked
    for id, mode in (("6a", "chans"), ("6b", "space")):
        asked = {group[0].config.mode for group in groups if CLAIMS[id].needs(group[0])}
        assert asked == {"full", mode}
    defended = [group for group in groups if "defended" in group[0].title]
    assert waiting["4d", "digits"] == (2 * len(defended), 2 * len(defended))
    # Of a run that is finished and needs no measurement, nothing is missing.
    floor = next(g for g in groups if g[0].config.mode == "floor" and "twice" in g[0].title)
    known = {run.name: records.Record({}, {}, None, (), {}) for run in floor}
    missing, total = order.pending(groups, known, every, SMOKE)["1a", "digits"]
    assert total - missing == len(floor) * ("ResNet" in floor[0].title)
    assert ("1a", "digits") not in order.pending(groups, {}, ("E5",), SMOKE)
    # A run that wasn't attacked yet is finished for a claim about accuracy alone.
    trained = {
        run.name: records.Record({}, {}, None, (), {})
        for group in groups
        for run in group
        if {"E5", "convergence"} & {*run.experiments}
    }
    waiting = order.pending(groups, trained, every, SMOKE)
    assert waiting["1b", "digits"][0] == 0 < waiting["4c", "digits"][0]


def test_a_shard_is_the_same_whatever_the_order_and_the_names(groups):
    renamed = [
        tuple(dataclasses.replace(run, name=f"x{i}{run.name}") for run in group)
        for i, group in enumerate(groups)
    ]
    for i in (1, 2, 3):
        mine = {str(group[0]) for group in shard(groups, i, 3)}
        assert {str(group[0]) for group in shard(renamed[::-1], i, 3)} == mine
