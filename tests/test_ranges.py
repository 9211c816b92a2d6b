"""Every number of a config: in the table, and refused in one line wherever it isn't sane."""

import json
import math

import numpy as np
import pytest
import small
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from randmix import config as configs
from randmix import ranges
from randmix.errors import UserError
from randmix.training import groups, runs

# The keys of tuples of numbers, with two values of which only the number varies.
TUPLES = {
    "model.stages": (lambda x: (x,), lambda x: (1, x)),
    "model.mean": (lambda x: (x,), lambda x: (0.5, x)),
    "model.std": (lambda x: (x,), lambda x: (0.5, x)),
    "schedule.points": (lambda x: ((x, 1.0),), lambda x: ((0.0, 1.0), (1.0, x))),
    "schedule.boundaries": (lambda x: (x,), lambda x: (0.5, x)),
}
NEGATIVE = {"model.mean"}  # the only numbers that may be
# Those that may be None.
OPTIONAL = {"steps", "data.image_size", "model.filter_rank", "model.position_embedding"}


def numeric_keys(config):
    """The dotted keys of a config's numbers, by their types, and whether each is an integer."""
    found = {}
    for key in configs.flatten(config):
        group, _, name = key.rpartition(".")
        kind = (config[group] if group else config).get_type(name)
        if key in TUPLES or kind in (int, float):
            found[key] = kind is int
    return found


KEYS = {model: numeric_keys(configs.default(model)) for model in configs.MODEL_KEYS}
EVERY = sorted({(key, model) for model, keys in KEYS.items() for key in keys})
ONCE = sorted(dict(EVERY).items())  # each key with one model


def changed(model, key, value):
    """A model's default config with another value, whatever its type."""
    config = configs.default(model)
    group, _, name = key.rpartition(".")
    with config.ignore_type():
        (config[group] if group else config)[name] = value
    return config


def refusal(config):
    """The message of `config.check`, or None."""
    try:
        configs.check(config)
    except UserError as error:
        return str(error)
    return None


def assert_sane_or_refused(model, key, number):
    """What `config.check` lets through is a number that training can use; the rest is one line."""
    for wrap in TUPLES.get(key, (lambda x: x,)):
        config = changed(model, key, wrap(number))
        if message := refusal(config):
            assert message.startswith(f"config.{key}: got "), (key, number)
            assert ", allowed " in message
            assert "\n" not in message
            continue
        held = configs.flatten(config)[key]  # ConfigDict makes 1.0 of True
        for one in np.ravel(np.asarray(held, object)):
            if one is None:
                assert key in OPTIONAL
                continue
            assert type(one) in ((int,) if KEYS[model][key] else (int, float)), (key, number)
            assert abs(one) <= np.finfo(np.float32).max  # NaN isn't
            assert one >= 0 or key in NEGATIVE
            assert not KEYS[model][key] or one < 2**32


def test_the_table_has_every_number_of_every_model_s_config_and_no_other_key():
    assert {key for key, _ in EVERY} == set(ranges.CONFIG)
    for model in configs.MODEL_KEYS:
        configs.check(configs.default(model))


@pytest.mark.slow
@pytest.mark.parametrize(("key", "model"), ONCE)
def test_an_extreme_value_is_sane_or_refused(key, model):
    for number in (
        *(math.nan, math.inf, -math.inf, -1, -1.0, -1e-300, 1e-300, 1e39, 1e308),
        *(0, 0.0, 0.5, 1, 1.0, 3.0, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63, 10**300),
        *(True, False, None, "3", "nan", "", (), (1, 2), {"a": 1, "b": 2}, np.float32(0.5)),
    ):
        assert_sane_or_refused(model, key, number)


@settings(max_examples=300)
@given(st.sampled_from(EVERY), st.floats() | st.integers())
def test_any_number_is_sane_or_refused(of, number):
    key, model = of
    assert_sane_or_refused(model, key, number)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("epochs", math.nan, "config.epochs: got nan, allowed more than 0, up to 1000000"),
        ("epochs", math.inf, "config.epochs: got inf, allowed more than 0, up to 1000000"),
        ("steps", 2**31, "config.steps: got 2147483648, allowed 1 to 2147483647, or None"),
        ("steps", 3.0, "config.steps: got 3.0, allowed an integer, 1 to 2147483647, or None"),
        ("seed", True, "config.seed: got True, allowed an integer, 0 to 4294967295"),
        ("seed", 2**32, "config.seed: got 4294967296, allowed 0 to 4294967295"),
        ("batch_size", "8", "config.batch_size: got '8', allowed an integer, 1 to 2147483647"),
        (
            "optimizer.learning_rate",
            -1.0,
            "config.optimizer.learning_rate: got -1.0, allowed 0 to 3.4e+38",
        ),
        (
            "optimizer.clip_norm",
            math.nan,
            "config.optimizer.clip_norm: got nan, allowed 0 to 3.4e+38",
        ),
        ("optimizer.b1", 2.0, "config.optimizer.b1: got 2.0, allowed 0 to 0.999999"),
        ("optimizer.eps", -1.0, "config.optimizer.eps: got -1.0, allowed 1e-30 to 1"),
        (
            "defense.epsilon",
            256.0,
            "config.defense.epsilon: got 256.0, allowed 0 to 255 (in 1/255)",
        ),
        (
            "model.std",
            (1.0, 0.0),
            "config.model.std: got (1.0, 0.0), allowed a tuple of numbers, each 1e-06 to 1000",
        ),
        (
            "schedule.points",
            ((0.0, 1.0), 2),
            "config.schedule.points: got ((0.0, 1.0), 2), allowed a tuple of tuples, each of "
            "numbers 0 to 1 and 0 to 3.4e+38",
        ),
        (
            "schedule.points",
            ((0.5, 0.0), (0.1, 1.0)),
            "config.schedule.points: got fractions [0.5, 0.1], allowed one or more, rising",
        ),
        (
            "schedule.points",
            (),
            "config.schedule.points: got fractions [], allowed one or more, rising",
        ),
        ("data.flip", None, "config.data.flip: got None, allowed True or False"),
        ("task", 3, "config.task: got 3, allowed a text"),
        ("groups", "all", "config.groups: got 'all', allowed a tuple"),
        ("model", 3, "config.model.name: missing; start from randmix.config.default()"),
        ("data", 3, "config.data: got 3, allowed a group of keys"),
    ],
)
def test_the_line_says_what_is_allowed(key, value, message):
    with pytest.raises(UserError) as error:
        configs.check(changed("convmixer", key, value))
    assert str(error.value) == message


def test_a_config_that_does_not_start_from_the_default():
    for config, message in (
        (ConfigDict({"epochs": 3}), "config.model.name: missing; start from"),
        (ConfigDict({"model": {"name": "convmixer"}}), "config.seed: missing; start from"),
        (
            ConfigDict(configs.default().to_dict() | {"epoch": 3.0}),
            "config.epoch: no such key; did you mean 'epochs'?; start from",
        ),
    ):
        with pytest.raises(UserError) as error:
            configs.check(config)
        assert str(error.value) == f"{message} randmix.config.default()"


def test_a_saved_config_is_checked_when_it_is_read():
    saved = json.loads(configs.to_json(configs.default()))

    def message(**changes):
        with pytest.raises(UserError) as error:
            configs.from_values(saved | changes)
        return str(error.value)

    assert message(epochs=math.nan) == (
        "config.epochs: got nan, allowed more than 0, up to 1000000"
    )
    assert message(batch_size=True) == (
        "config.batch_size: got True, allowed an integer, 1 to 2147483647"
    )
    assert message(data=3) == "config.data: got 3, allowed a group of keys"
    assert message(model={"width": 3}) == (
        "config.model.name: missing; start from randmix.config.default()"
    )
    assert message(sede=1) == (
        "config.sede: no such key; did you mean 'seed'?; start from randmix.config.default()"
    )
    with pytest.raises(UserError, match=r"^config\.model\.name: missing"):
        configs.from_values({"model": 1})


def test_a_value_that_cannot_be_saved_is_refused_before_the_run():
    config = small.config(groups=(("a", "everything", {"lr_scale": np.float32(0.5)}),))
    with pytest.raises(UserError) as error:
        configs.fingerprint(config)
    assert str(error.value) == (
        "config: got np.float32(0.5) of type float32, allowed are Python's own numbers, texts, "
        "tuples and dicts"
    )


@pytest.mark.parametrize("name", [*ranges.GROUP, "b1", "eps", "learning_rate", "weight_decay"])
def test_the_numbers_of_a_group_are_in_range_too(name):
    for number in (math.nan, math.inf, -1, True, None, "3", 10**400):
        entries = (("a", "everything", {}), ("b", "role('head')", {name: number}))
        with pytest.raises(UserError) as error:
            groups.build(
                *("full", None, entries),
                optimizer_keys=small.config().optimizer,
                steps_per_epoch=40,
                total_steps=100,
            )
        assert str(error.value).startswith(f"config.groups, entry 2 ('b'): {name}: got {number!r}")
        assert "\n" not in str(error.value)


def test_more_steps_than_an_int32_counts_are_refused():
    config = small.config(epochs=1e6)
    config.steps = None
    assert configs.total_steps(config, 40_000) == 1_250_000_000
    with pytest.raises(UserError) as error:
        configs.total_steps(config, 80_000)
    assert str(error.value) == (
        "config.epochs: got 1000000.0, which is 2500000000 steps, allowed up to 2147483647 steps; "
        "set a smaller one, or a larger config.batch_size"
    )


@pytest.mark.parametrize(
    "overrides",
    [
        {"steps": 2**31 - 1, "schedule__name": "cosine", "schedule__warmup": 1.0},
        {"seed": 2**32 - 1, "schedule__name": "step", "schedule__boundaries": ()},
        {"model__width": 65_536, "model__mean": (-1000,), "model__std": (1e-6,)},
        {"data__crop_padding": 1024, "data__color_jitter": 100, "data__mixup": 1000.0},
    ],
)
def test_the_ends_of_the_ranges_make_runs(overrides):
    assert runs.assemble(small.config(**overrides)).loop.total_steps
