"""What is read of a finished run: learning curves, baselines, and measurements."""

import json

import pytest

from randmix.reproduce import curves, plan, presets, records
from randmix.reproduce.records import Record, Records
from randmix.workdir import artifacts

SMOKE = presets.get("smoke")
LOG = (
    {"step": 22, "train_accuracy": 0.5, "train_loss": 2.0},
    {"step": 22, "test_accuracy": 0.6},
    {"step": 44, "train_accuracy": 0.8, "learning_rate": 0.0},
    {"step": 44, "test_accuracy": 0.7},
)


@pytest.fixture
def group(tmp_path):
    """A finished run of E2, whose epochs have 44 steps."""
    run = plan.build(SMOKE, ("E2",), (0,))[0][0]
    folder = run.folder(tmp_path)
    folder.mkdir(parents=True)
    (folder / artifacts.CONFIG).write_text(run.config.to_json())
    result = {
        **{"mode": "full", "step": 3, "seed": 0, "wall_seconds": 1.0, "versions": {}},
        "device": {"kind": "cpu", "platform": "cpu", "count": 1},
        "metrics": {"test_accuracy": 0.7, "validation_accuracy": 0.65},
        "parameters": {"trainable": 10, "frozen": 20},
        "unshuffling": {"reach": 0.95, "mean_image_psnr": 11.4},
    }
    (folder / artifacts.RESULT).write_text(json.dumps(result))
    (folder / artifacts.METRICS).write_text("".join(json.dumps(row) + "\n" for row in LOG))
    return (run,)


def values(found, metric, key="epoch"):
    return {record.settings.get(key): record.value for record in found.where(metric=metric)}


def test_curves_and_their_ends_are_read(group, tmp_path):
    found = records.collect([group], tmp_path, SMOKE)
    epochs = [22 / group[0].steps_per_epoch, 44 / group[0].steps_per_epoch]
    assert values(found, "curve_train_accuracy") == dict(zip(epochs, (0.5, 0.8), strict=True))
    assert values(found, "curve_test_accuracy") == dict(zip(epochs, (0.6, 0.7), strict=True))
    assert values(found, "train_accuracy") == {None: 0.8}
    assert values(found, "accuracy") == {None: 0.7}
    assert values(found, "validation_accuracy") == {None: 0.65}
    assert values(found, "reach") == {None: 0.95}


def test_every_key_of_the_config_selects(group, tmp_path):
    found = records.collect([group], tmp_path, SMOKE)
    assert found.where(metric="accuracy", model__filters="random", data__name="digits")
    assert not found.where(metric="accuracy", model__filters="dct")
    assert found[0].settings["total_steps"] == 3


def line(mode, seed, metric="curve_test_accuracy", **settings):
    keys = {"data.name": "digits", "model.name": "resnet", "mode": mode, "epoch": 1.0}
    return Record("E2", mode, {**keys, **settings}, seed, metric, 0.5, f"{mode}{seed}")


def test_lines_are_named_by_what_differs():
    found = Records(
        [
            line("full", 0, share=1.0),
            line("chans", 0, share=0.0),
            line("chans", 1, share=0.0),
            line("chans", 0, share=0.0, **{"model.filter_rank": 3}),
            line("chans", 0, share=0.5),
        ]
    )
    names = [name for name, _ in curves.lines(found)]
    assert names == ["Digits, Full", "Digits, Chans", "Digits, Chans, rank 3", "Digits, share 0.5"]


def test_curves_are_means_over_seeds_with_training_first():
    found = Records([line("full", 0), line("full", 1), line("full", 0, "curve_train_accuracy")])
    picture = curves.draw(found, "E2")
    assert [(row["metric"], row["mean"]) for row in picture.rows] == [
        ("train_accuracy", 50.0),
        ("test_accuracy", 50.0),
    ]
    assert curves.draw(Records(), "E2") is None
