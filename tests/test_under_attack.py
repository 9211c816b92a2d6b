"""Accuracy under attack of a sweep's runs: what is stored, once, and for which checkpoints."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest

from randmix.analysis import robustness
from randmix.experiments import measured, sweep
from randmix.reproduce import measurements, numbers, plan, presets, under_attack
from randmix.runtime.preemption import Preempted, StopSignals
from randmix.training import loop as train

pytestmark = pytest.mark.slow

PRESET = presets.get("smoke")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def run(root):
    """A run of three steps that has kept every checkpoint."""
    (planned,), *_ = plan.build(PRESET, ("E6",), range(1))
    config = planned.config.copy_and_resolve_references()
    config.update(steps=3, checkpoint_every=1, keep_checkpoints=3)
    config.optimizer.learning_rate = 0.5
    train.train(config, planned.folder(root), devices=jax.devices()[:1])
    return dataclasses.replace(planned, config=config)


def test_every_attack_is_stored_with_its_examples_and_bits(run, root):
    with StopSignals() as stop:
        found = under_attack.attacks(run, root, PRESET, stop)
    file = measured.path(run.folder(root), under_attack.attacks_name(PRESET))
    assert json.loads(file.read_text()) == found
    assert found["examples"] == 32
    bits = robustness.load(measured.arrays_path(file))
    for row in found["rows"]:
        outcomes = bits[row["attack"]][bits["epsilons"].tolist().index(row["epsilon"])]
        assert len(outcomes) == row["examples"]
        assert outcomes.mean() == row["accuracy"]
    assert {row["attack"]: row["examples"] for row in found["rows"]} == {
        "noise": 16,
        "fgsm": 32,
        "pgd2": 32,
        "targeted": 16,
        "square": 16,
        "strong": 16,
    }
    assert bits["clean"].mean() == found["clean"]
    assert found["seconds"] > 0
    assert (found["device"]["platform"], found["cores"]) == ("cpu", len(os.sched_getaffinity(0)))


def test_a_run_whose_radius_is_wanted_is_attacked_by_fgsm_alone(run, root, tmp_path):
    wanted = dataclasses.replace(PRESET, radii=("E13",))
    lattice = dataclasses.replace(run, experiments=("E13",), resolved=None)
    with StopSignals() as stop:
        every = under_attack.attacks(run, root, PRESET, stop)
        measurements.measure(lattice, root, wanted, stop)
    assert measurements.failures(lattice, root) == {}
    expected = [row for row in every["rows"] if row["attack"] == "fgsm"]
    (record,) = sweep.collect([(lattice,)], root).values()
    assert measurements.complete(lattice, record, wanted)
    without = dataclasses.replace(record, measurements={})
    assert not measurements.complete(lattice, without, wanted)
    assert measurements.complete(lattice, without, PRESET)
    # The same numbers from both measurements, and none where they aren't asked for.
    both = {under_attack.attacks_name(PRESET): every}
    for own in (record, dataclasses.replace(record, measurements=both)):
        found = numbers.collect([(lattice,)], {run.name: own}, wanted)
        rows = found.where("E13", "fgsm")
        assert [(row.settings["epsilon"], row.value) for row in rows] == [
            (row["epsilon"], row["accuracy"]) for row in expected
        ]
        assert not numbers.collect([(lattice,)], {run.name: own}, PRESET).where(metric="fgsm")


def test_checkpoints_are_attacked_once_each(run, root, monkeypatch):
    with StopSignals() as stop:
        under_attack.attacked_checkpoints(run, root, PRESET, stop)
        names = [under_attack.step_name(PRESET, step) for step in (1, 2, 3)]
        files = [measured.path(run.folder(root), name) for name in names]
        steps = [measured.read(file) for file in files]
        for step in steps:
            assert [(row["attack"], row["epsilon"]) for row in step["rows"]] == [
                ("fgsm", epsilon) for epsilon in (0, 8, 64)
            ]
        final = under_attack.attacks(run, root, PRESET, stop)
        assert steps[-1]["clean"] == final["clean"]
        assert steps[-1]["rows"] == [row for row in final["rows"] if row["attack"] == "fgsm"]
        first, second, _ = [robustness.load(measured.arrays_path(file))["clean"] for file in files]
        assert not np.array_equal(first, second)

        # After a stop, or a loss of one file, only what is missing is measured.
        measured.arrays_path(files[1]).unlink()
        attacked = []
        inner = robustness.measure

        def measure(*arguments, **options):
            attacked.append(1)
            return inner(*arguments, **options)

        monkeypatch.setattr(robustness, "measure", measure)
        under_attack.attacked_checkpoints(run, root, PRESET, stop)
        assert len(attacked) == 1
        assert measured.read(files[1])["rows"] == steps[1]["rows"]


def test_a_signal_stops_between_two_batches(run, root):
    class Signalled:
        signalled = True

    other = dataclasses.replace(PRESET, attack={**PRESET.attack, "examples": 31})
    with pytest.raises(Preempted, match="stopped during a measurement"):
        under_attack.attacks(run, root, other, Signalled())
    assert not measured.path(run.folder(root), under_attack.attacks_name(other)).exists()
