"""The report's comparison with the paper's settings, from the configs of the runs."""

import dataclasses

import pytest

from randmix.experiments.plan import PlannedRun
from randmix.experiments.records import Record
from randmix.reproduce import departures, plan, presets
from randmix.reproduce.departures import ALL, ATTACKS, CONVMIXER, RESNET, UNSHUFFLING

PAPERS = {
    "model.name": "convmixer",
    "model.width": 128,
    "model.kernel_size": 8,
    "model.patch_size": 1,
    "data.name": "cifar10",
}
PRESET = dataclasses.replace(
    presets.get("smoke"), attack={**presets.get("smoke").attack, "epsilons": (0.0, 4.0)}
)


def group(*experiments, seeds=2, **changes):
    """A group of planned runs, the paper's ConvMixers for CIFAR but for the changes."""
    settings = {**PAPERS, **{key.replace("__", "."): value for key, value in changes.items()}}
    if settings["model.name"] == "resnet":
        del settings["model.patch_size"]
    runs = []
    for seed in range(seeds):
        config = plan.make_config({**settings, "seed": seed})
        name = f"{len(experiments)}{sorted(changes.items())}{seed}"
        runs.append(
            PlannedRun(name, config, None, {**settings, "seed": seed}, "", experiments, 0.0, 0)
        )
    return tuple(runs)


def rows(family, *groups, found=None):
    table = departures.table(groups, found or {}, PRESET)
    return {row.setting: row for row in table.get(family, ())}


def test_the_papers_own_settings_are_the_same():
    own = rows(CONVMIXER, group("E5"))
    same = {name for name, row in own.items() if row.same}
    assert same == {
        *("data", "training images", "test images", "pixels"),
        *("width", "kernel size", "patch size"),
    }
    assert own["width"].paper == "128 (CIFAR), 512 (ImageNet); section 4.2"
    assert own["epochs"].paper == own["seeds"].paper == "not stated"


def test_what_one_run_does_otherwise_is_a_departure():
    found = rows(CONVMIXER, group("E5"), group("E5", model__width=64, epochs=3.0, seeds=3))
    assert found["width"][2:] == ("64, 128", False)
    assert found["epochs"].runs == "3, 10"
    assert found["seeds"].runs == "2, 3"
    assert found["kernel size"].same


def test_a_width_is_held_against_that_of_its_data_set():
    assert not rows(CONVMIXER, group("E5", model__width=512))["width"].same
    large = group("E5", model__width=512, data__name="imagenet2012", model__patch_size=7)
    assert rows(CONVMIXER, large)["width"].same
    # The paper has no digits, so either of its widths is.
    assert rows(CONVMIXER, group("E5", data__name="digits"))["width"].same


def test_steps_are_told_in_epochs_of_the_images_that_are_learned_from():
    found = rows(
        CONVMIXER,
        group("E5", data__subset=0.5, data__validation=0.2, steps=100, batch_size=400),
    )
    assert found["epochs"].runs == "2"  # 100 x 400 images, of 0.4 x 50,000
    assert found["share of the training images"].runs == "40 %"


def test_an_unprepared_set_is_known_by_its_records():
    folder = group("E5", data__name="imagefolder/cifar10", data__data_dir="/nowhere")
    assert "training images" not in rows(CONVMIXER, folder)
    data = {"image_shape": [30, 20, 3], "train_examples": 600, "test_examples": 40}
    known = {run.name: Record({}, {}, data, [], {}) for run in folder}
    found = rows(CONVMIXER, folder, found=known)
    assert found["data"][2:] == ("CIFAR-10 (JPEG)", False)
    assert [found[name].runs for name in ("training images", "pixels")] == ["600", "30 x 20"]


def test_runs_are_told_apart_by_family_and_ours_are_left_out():
    resnet = group("E2", model__name="resnet", model__kernel_size=3)
    moved = group("E10", task="unshuffling", data__name="mnist", model__width=32)
    ours = group("E12", "convergence", epochs=99.0)
    table = departures.table([resnet, moved, ours], {}, PRESET)
    assert [*table] == [ALL, RESNET, UNSHUFFLING]
    names = [{row.setting for row in of_family} for of_family in table.values()]
    assert names[0] >= {"seeds", "epochs", "batch size"}
    assert names[1] >= {"data", "kernel size"}
    assert not names[0] & (names[1] | names[2])
    assert rows(RESNET, resnet)["filters per channel"][1:] == ("9; section 4.1.1", "9", True)
    assert rows(UNSHUFFLING, moved)["depth"].paper.startswith("not stated; 16")


def test_attacks_are_those_of_the_preset_after_overrides():
    found = rows(ATTACKS, group("E5", "E6"), group("E6", defense__epsilon=16.0))
    assert found["epsilon (1/255)"].runs == "0, 4"
    assert found["epsilon of training on FGSM samples (1/255)"].runs == "16"
    assert found["attacked test images"].runs == str(PRESET.attack["examples"])
    assert "smoothing indices" not in found
    assert not rows(ATTACKS, group("E5"))


def test_an_optimizer_of_optax_is_named():
    found = rows(CONVMIXER, group("E5", optimizer__name="lion"))
    assert found["optimizer"].runs.startswith("lion")


@pytest.mark.parametrize("count", [3, 12])
def test_many_values_are_told_by_their_ends(count):
    groups = [group("E5", model__depth=depth) for depth in range(1, count + 1)]
    told = {3: "1, 2, 3", 12: "1 to 12 (12 values)"}
    assert rows(CONVMIXER, *groups)["depth"].runs == told[count]
