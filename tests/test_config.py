"""Configs: fingerprints, round trips, and invalid values."""

import json

import pytest
import small

from randmix import config as configs
from randmix.errors import UserError
from randmix.training import optim, runs


def test_a_config_survives_json():
    config = small.config(train="role('head')", model__mean=(0.5,), model__std=(0.25,))
    again = configs.from_values(json.loads(configs.to_json(config)))
    assert again.to_dict() == config.to_dict()
    assert again.is_locked


def test_the_fingerprint_is_of_what_is_learned_not_of_what_is_shown():
    name = configs.fingerprint(small.config())
    assert len(name) == 8
    assert int(name, 16) >= 0
    assert configs.fingerprint(small.config(log_every=7, data__data_dir="/elsewhere")) == name
    assert configs.fingerprint(small.config(seed=1)) != name
    assert configs.fingerprint(small.config(model__depth=3)) != name


def test_what_a_config_changes_is_what_was_asked_for_not_what_the_data_decided():
    config = small.config(mode="full", log_every=7)
    config.data.interpolation = "antialias"  # for photographs; the digits are in memory
    record = runs.assemble(config).record
    assert record.config["model"]["mean"] == ()  # the digits' own
    assert record.config["data"]["interpolation"] == "fast"
    assert record.changed == {
        "batch_size": 32,
        "data.crop_padding": 1,
        "data.interpolation": "antialias",
        "mode": "full",
        "model.depth": 2,
        "model.kernel_size": 3,
        "model.patch_size": 2,
        "model.width": 16,
        "optimizer.clip_norm": 1.0,
        "optimizer.weight_decay": 0.01,
        "steps": 6,
    }
    assert {"data.in_memory", "model.mean"} < configs.changed(record.config).keys()
    config.model.update(mean=(0.5,), std=(0.25,))
    own = runs.assemble(config).record.changed
    assert own == record.changed | {"model.mean": [0.5], "model.std": [0.25]}


def test_steps_override_epochs():
    assert configs.total_steps(small.config(), 1437) == 6
    config = small.config()
    config.steps = None
    config.epochs = 2.5
    assert configs.total_steps(config, 1437) == round(2.5 * (1437 // 32))


def test_a_key_that_is_not_there_cannot_be_set():
    with pytest.raises(AttributeError, match="width"):
        configs.default().model.widht = 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            {"mode": "chan"},
            "config.mode: got 'chan', allowed full, chans, space, floor; did you mean 'chans'?",
        ),
        (
            {"optimizer__name": "adamv"},
            "config.optimizer.name: got 'adamv', allowed adamw, sgd, an optimizer of optax "
            "or MODULE:FUNCTION; did you mean 'adamw'?",
        ),
        (
            {"schedule__name": "cosin"},
            "config.schedule.name: got 'cosin', allowed linear, step, cosine, constant, a "
            "schedule of optax or MODULE:FUNCTION; did you mean 'cosine'?",
        ),
        ({"task": "clasification"}, "did you mean 'classification'?"),
        ({"precision": "float16"}, "config.precision: got 'float16', allowed float32, bfloat16"),
        ({"batch_size": 0}, "config.batch_size: got 0, allowed 1 to 2147483647"),
        (
            {"batch_size": 2048},
            "config.batch_size: got 2048, allowed up to the 1437 training examples",
        ),
        ({"steps": 0}, "config.steps: got 0, allowed 1 to 2147483647, or None"),
        ({"seed": -1}, "config.seed: got -1, allowed 0 to 4294967295"),
        ({"data__subset": 0.0}, "config.data.subset: got 0.0, allowed more than 0, up to 1"),
        ({"data__crop_padding": -1}, "config.data.crop_padding: got -1, allowed 0 to 1024"),
        ({"data__randaugment": "rand-m9-w0"}, "config.data.randaugment: got 'w0' in 'rand-m9-w0'"),
        (
            {"data__mixup": 0.5, "task": "unshuffling"},
            "config.data.mixup: got 0.5, allowed 0 with the task unshuffling",
        ),
        (
            {"data__random_erasing": 0.25, "defense__epsilon": 8.0},
            "config.data.random_erasing: got 0.25, allowed 0 with config.defense.epsilon",
        ),
        ({"label_smoothing": 1.0}, "config.label_smoothing: got 1.0"),
        ({"data__name": "digit"}, "did you mean 'digits'?"),
        (
            {"model__patch_size": 3},
            "patch_size: got 3, which doesn't divide the image's 8 x 8 pixels",
        ),
        ({"model__mean": (0.1, 0.2), "model__std": (1.0, 1.0)}, "mean: got 2 numbers, allowed 1"),
        ({"train": "role('spacial')"}, "config.train: "),
        ({"train": "__import__('os')"}, "config.train: "),
        ({"schedule__points": ((0.5, 0.0), (0.1, 1.0))}, "config.schedule.points: got fractions"),
    ],
)
def test_an_invalid_value_is_refused(override, message):
    with pytest.raises(UserError) as error:
        runs.assemble(small.config(**override))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_selector_text_is_what_is_trained():
    summary = runs.assemble(small.config(train="role('head') | depth(1, None)")).record.summary
    trained = {row.path for row in summary.rows if row.label == "train"}
    assert trained == {
        row.path for row in summary.rows if row.role == "head" or "block_01" in row.path
    }


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schedule__name": "constant"}, {0: 1.0, 99: 1.0}),
        ({"schedule__name": "linear"}, {0: 0.0, 20: 0.5, 40: 1.0, 60: 0.525, 80: 0.05, 90: 0.025}),
        ({"schedule__name": "step"}, {0: 1.0, 49: 1.0, 51: 0.1, 74: 0.1, 76: 0.01}),
        (
            {"schedule__name": "cosine", "schedule__warmup": 0.1},
            {0: 0.0, 5: 0.5, 10: 1.0, 55: 0.5, 100: 0.0},
        ),
        ({"schedule__name": "cosine"}, {0: 1.0, 50: 0.5}),
        ({"schedule__name": "cosine", "schedule__warmup": 1.0}, {0: 0.0, 98: 98 / 99, 99: 1.0}),
        ({"schedule__name": "step", "schedule__boundaries": ()}, {0: 1.0, 99: 1.0}),
        # both at step 50
        ({"schedule__name": "step", "schedule__boundaries": (0.5, 0.501)}, {49: 1.0, 51: 0.01}),
    ],
)
def test_schedules_by_their_definitions(settings, expected):
    schedule = optim.build_schedule(small.config(**settings).schedule, 100, 1.0)
    for step, rate in expected.items():
        assert float(schedule(step)) == pytest.approx(rate, abs=1e-6), step
