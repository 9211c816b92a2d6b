"""Grids of config keys: what is parsed, which runs there are, and the text of mistakes."""

import pytest

from randmix import config as configs
from randmix.errors import UserError
from randmix.experiments import grid


def config(recipe="digits:tiny"):
    return configs.recipe(recipe)


def build(axes=(), fixed=(), seeds=1, recipe="digits:tiny"):
    return grid.build(config(recipe), "tiny", grid.parse_axes(axes), grid.parse_fixed(fixed), seeds)


def test_every_combination_is_a_group_of_seeds():
    groups = build(["mode=full,space", "model.depth=1,3"], ["seed=7", "steps=4"], seeds=2)
    found = [
        [(run.config.mode, run.config.model.depth, run.config.seed) for run in group]
        for group in groups
    ]
    assert found == [
        [("full", 1, 7), ("full", 1, 8)],
        [("full", 3, 7), ("full", 3, 8)],
        [("space", 1, 7), ("space", 1, 8)],
        [("space", 3, 7), ("space", 3, 8)],
    ]
    assert str(groups[0][1]) == "mode=full model.depth=1, seed 8"
    assert len({run.name for group in groups for run in group}) == 8
    assert all(run.steps == 4 for group in groups for run in group)


def test_a_run_has_the_name_that_the_same_config_has_elsewhere():
    own = config()
    own.mode, own.model.depth, own.seed = "full", 3, 1
    (group,) = build(["mode=full", "model.depth=3"], seeds=2)
    assert group[1].name == configs.fingerprint(own)


def test_values_get_the_type_of_their_key():
    settings = grid.parse_fixed(
        [
            "label_smoothing=0",
            "data.flip=true",
            "wandb_project=7",
            "steps=None",
            "train=~role('spatial')",
            "schedule.boundaries=[0.25, 0.5]",
            "config.mode = space",
        ]
    )
    own = grid.changed(config(), settings)
    assert (own.label_smoothing, type(own.label_smoothing)) == (0.0, float)
    assert own.data.flip is True
    assert own.wandb_project == "7"
    assert own.steps is None
    assert own.train == "~role('spatial')"
    assert own.schedule.boundaries == (0.25, 0.5)
    assert own.mode == "space"


def test_values_with_commas_are_written_in_brackets():
    text = "fraction(role('spatial'), 0.5)"
    axes = grid.parse_axes([f'train=["{text}", "everything"]', "mode=full"])
    assert axes == {"train": [text, "everything"], "mode": ["full"]}
    groups = grid.build(config(), "tiny", axes, {}, 1)
    assert [run.config.train for (run,) in groups] == [text, "everything"]


def test_equal_values_are_trained_once():
    for axis in ("model.depth=[1, 1]", "schedule.boundaries=[(0.5,), [0.5]]", "epochs=1,1.0"):
        (group,) = build([axis])
        assert len(group) == 1


def test_another_model_brings_its_own_keys():
    groups = build(
        ["model.name=convmixer,resnet"], ["model.width=8", "model.kernel_size=3"], recipe="digits"
    )
    convmixer, resnet = (group[0].config for group in groups)
    assert (convmixer.model.patch_size, resnet.model.multiplier) == (1, 9)
    assert "patch_size" not in resnet.model
    assert convmixer.model.width == resnet.model.width == 8
    assert convmixer.optimizer == resnet.optimizer


def test_a_copy_is_changed():
    own = config()
    before = own.to_json()
    grid.changed(own, {"model.depth": 9, "model.name": "resnet", "data.flip": True})
    grid.changed(own, {"model.depth": 9})
    assert own.to_json() == before


def test_every_seed_is_checked_before_anything_is_trained():
    (group,) = build(fixed=["seed=4294967294"], seeds=2)
    assert group[1].config.seed == 2**32 - 1
    with pytest.raises(UserError, match=r"^config\.seed: got 4294967296, allowed 0 to 4294967295"):
        build(fixed=["seed=4294967295"], seeds=2)


@pytest.mark.parametrize(
    ("axes", "fixed", "message"),
    [
        (["mode"], [], "--grid: got 'mode', allowed is KEY=VALUE, for example --grid=mode=full,ch"),
        (["mode="], [], "--grid: got 'mode=', allowed is KEY=VALUE"),
        (["mode=full", "mode=chans"], [], "--grid: got the key 'mode' twice, allowed is one axis"),
        (["train=['a'"], [], "--grid: got train=\\['a', allowed in brackets are Python literals"),
        (["train=[]"], [], "--grid: got train=\\[\\], allowed in brackets are Python literals"),
        ([], ["=3"], "--set: got '=3', allowed is KEY=VALUE, for example --set=steps=400"),
        ([], ["steps=1", "config.steps=2"], "--set: got the key 'steps' twice, allowed is each"),
        ([], ["mode={[1]: 2}"], "config.mode: got '{.1.: 2}', allowed full, chans"),
        (["mode={},full"], [], "config.mode: got '{}', allowed full, chans"),
        (["mode=full"], ["mode=chans"], "--set: got 'mode', which --grid varies; give it once"),
        (["seed=1,2"], [], "--grid: got 'seed', allowed are other keys; set --seeds"),
        (["log_every=1,2"], [], "--grid: got 'log_every', which doesn't change what is learned"),
        (
            ["model.dept=1"],
            [],
            "config.model.dept: no such key with the model convmixer; did you mean 'model.depth'",
        ),
        ([], ["model.multiplier=3"], "config.model.multiplier: no such key with the model convm"),
        ([], ["model=3"], "config.model: no such key with the model convmixer"),
        (["model.depth=1,x"], [], "config.model.depth: got 'x', allowed"),
        (["mode=full,chan"], [], "config.mode: got 'chan', allowed full, chans, space"),
        (["model.width=0"], [], "config.model.width: got 0, allowed"),
        (["model.name=vit"], [], "config.model.name: got 'vit', allowed convmixer"),
    ],
)
def test_mistakes_are_one_line(axes, fixed, message):
    with pytest.raises(UserError, match=f"^{message}") as error:
        build(axes, fixed)
    assert "\n" not in str(error.value)
