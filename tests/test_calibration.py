"""Estimates of a sweep's minutes: their arithmetic by a clock of our own, and a real timing."""

import math

import jax
import pytest

from randmix.config import default
from randmix.experiments import calibration, grid
from randmix.experiments.calibration import Timing

STEPS = 20
EVALUATIONS = 4  # after 6, 12, 18 and 20 steps


def config(**more):
    own = default("convmixer")
    own.update_from_flattened_dict(
        {
            "data.name": "digits",
            "model.width": 8,
            "model.depth": 1,
            "model.kernel_size": 3,
            "model.patch_size": 2,
            "batch_size": 8,
            "steps": STEPS,
            "eval_every": 6,
            **more,
        }
    )
    return own


def runs_of(*axes, seeds=1):
    return grid.build(config(), "toy", grid.parse_axes(axes), {}, seeds)


@pytest.fixture
def timed(monkeypatch):
    """Replaces the timing by one of 25 s of a clock; returns the configs that it is given."""
    clock, timed = 0.0, []

    def measure(config):
        nonlocal clock
        clock += 25.0
        timed.append(config)
        return Timing(
            setup=30.0 if config.model.name == "convmixer" else 90.0,
            step=0.5 if config.mode == "full" else 0.25,
            evaluation=2.0,
        )

    monkeypatch.setattr(calibration, "measure", measure)
    monkeypatch.setattr(calibration.time, "monotonic", lambda: clock)
    return timed


def test_a_run_takes_its_steps_and_evaluations_and_the_first_seed_compiles(timed):
    ((finished, first, second),) = groups = runs_of("mode=full", seeds=3)
    minutes = calibration.minutes(groups, {finished.name})
    training = STEPS * 0.5 + EVALUATIONS * 2.0
    assert minutes == pytest.approx(
        {first.name: (30 + training) / 60, second.name: training / 60}, rel=1e-12
    )


def test_nothing_is_timed_when_everything_is_finished(timed):
    groups = runs_of("mode=full,chans")
    assert calibration.minutes(groups, {run.name for group in groups for run in group}) == {}
    assert not timed


def test_the_costliest_of_each_kind_are_timed_for_a_minute_and_lend_their_rates(timed, capsys):
    groups = runs_of("mode=full,chans", "model.depth=1,4,2")
    minutes = calibration.minutes(groups, ())
    # At 0, 25 and 50 s another one begins; at 75 s none does.
    assert [(one.mode, one.model.depth) for one in timed] == [
        ("full", 4),
        ("chans", 4),
        ("full", 2),
    ]
    assert "timed 3 of 6 settings in 75 s" in capsys.readouterr().out
    runs = {(run.config.mode, run.config.model.depth): run for (run,) in groups}

    def expected(mode, depth, by):
        work = runs[mode, depth].cost / runs[mode, by].cost
        step = 0.5 if mode == "full" else 0.25
        return (30 + work * (STEPS * step + EVALUATIONS * 2.0)) / 60

    for (mode, depth), by in {
        ("full", 4): 4,
        ("full", 2): 2,
        ("full", 1): 2,  # nearer to it than depth 4
        ("chans", 4): 4,
        ("chans", 2): 4,
        ("chans", 1): 4,
    }.items():
        assert minutes[runs[mode, depth].name] == pytest.approx(expected(mode, depth, by))


def test_a_smaller_batch_makes_steps_shorter_and_evaluations_not(timed, monkeypatch):
    monkeypatch.setattr(calibration, "BUDGET", 0.0)
    (half,), (whole,) = groups = runs_of("batch_size=8,16", "mode=full")
    minutes = calibration.minutes(groups, ())
    assert [one.batch_size for one in timed] == [16]
    assert minutes[whole.name] == pytest.approx((30 + STEPS * 0.5 + EVALUATIONS * 2.0) / 60)
    assert minutes[half.name] == pytest.approx((30 + STEPS * 0.25 + EVALUATIONS * 2.0) / 60)


def test_the_same_model_counts_before_the_same_mode(timed):
    groups = runs_of("model.name=convmixer,resnet", "mode=full,chans")
    minutes = calibration.minutes(groups, ())
    assert len(timed) == 3
    known = {(one.model.name, one.mode) for one in timed}
    (left,) = (run for (run,) in groups if (run.config.model.name, run.config.mode) not in known)
    setup = 30 if left.config.model.name == "convmixer" else 90
    other = 0.25 if left.config.mode == "full" else 0.5  # the other mode, of as many multiply-adds
    expected = setup + STEPS * other + EVALUATIONS * 2.0
    assert minutes[left.name] == pytest.approx(expected / 60)


@pytest.mark.slow
def test_a_real_run_is_timed_with_every_pass_of_its_evaluations(monkeypatch):
    calls = []

    def seconds(call):
        calls.append([jax.block_until_ready(call(i)) for i in range(3)])
        return 1.0, 3.0

    monkeypatch.setattr(calibration, "_time", seconds)
    more = {"ema": 0.9, "data.validation": 0.1, "defense.epsilon": 8.0}
    own = config(**more, **{"defense.pgd_examples": 20, "defense.pgd_steps": 2})
    timing = calibration.measure(own)
    assert timing.step == 1.0
    held_out = round(0.1 * 1437)
    batches = math.ceil(360 / 8) + math.ceil(20 / 8) + math.ceil(held_out / 8)
    assert timing.evaluation == 2 * batches  # of the weights and of their average
    losses = [float(metrics["loss"]) for metrics in calls[0]]
    assert len(set(losses)) == 3  # it really trains


def test_a_call_is_timed_after_the_first(monkeypatch):
    clock, took = 0.0, {0: 100.0, 1: 0.5, 2: 0.7, 3: 0.9, 4: 0.3}

    def call(i):
        nonlocal clock
        clock += took[i]

    monkeypatch.setattr(calibration.time, "monotonic", lambda: clock)
    # The second second ends in the third call, of 2.1 s together.
    assert calibration._time(call) == pytest.approx((0.7, 2.1))
    took[1] = 50.0
    assert calibration._time(call) == pytest.approx((50.0, 50.0))
