"""Verdicts on robustness, claims 4a to 4e, follow planted numbers both ways."""

import dataclasses

import pytest
from planted import judgement, numbers, verdict

from randmix.reproduce import effects, sentences
from randmix.reproduce.titles import MODELS
from randmix.reproduce.verdicts import CONTRADICTED, EQUAL, NOT_ASSESSABLE, SUPPORTED

EPSILONS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


def attacked(
    gain, *, experiment="E6", metric="{}", middle=4.0, passes=lambda seed: 1.0, **settings
):
    """Curves that halve at ``middle`` for Full and ``gain`` octaves later for Chans."""

    def left(seed, mode, epsilon, **_):
        halves = middle * 2 ** (gain if mode == "chans" else 0)
        return 0.9 / (1 + (epsilon / halves) ** 2)

    over = {"mode": ("full", "chans"), "epsilon": EPSILONS, "model__depth": (1, 2)}
    for attack in effects.ATTACKS:
        yield from numbers(experiment, metric.format(attack), left, over=over, **settings)
    over = {"mode": ("full", "chans"), "check": ("it holds", "it falls")}
    checks = numbers(experiment, "check", lambda seed, **_: 0, over=over, **settings)
    yield from (dataclasses.replace(check, value=passes(check.seed)) for check in checks)


@pytest.mark.parametrize(
    ("id", "model", "defense"),
    [
        ("4a", "resnet", 0.0),
        ("4b", "resnet", 8.0),
        ("4c", "convmixer", 0.0),
        ("4d", "convmixer", 8.0),
    ],
)
@pytest.mark.parametrize(
    ("gain", "expected"),
    [(0.5, SUPPORTED), (-0.5, CONTRADICTED), (0.1, f"{SUPPORTED} and {EQUAL}")],
)
def test_robustness(id, model, defense, gain, expected):
    found = [*attacked(gain, model__name=model, **{"defense.epsilon": defense})]
    assert verdict(id, found) == expected
    for other in {"4a", "4b", "4c", "4d"} - {id}:
        assert SUPPORTED not in verdict(other, found)


def test_a_radius_outside_the_grid_is_not_assessable():
    one = judgement("4a", [*attacked(0.5, middle=100.0)])
    assert one.verdict == NOT_ASSESSABLE
    assert one.reason.startswith("outside what was measured: Chans - Full, halving radius")


@pytest.mark.parametrize("outside", ["resnet", "convmixer"])
def test_a_family_outside_the_grid_leaves_the_other_assessable(outside):
    inside = {"resnet", "convmixer"} - {outside}
    found = []
    for model in ("resnet", "convmixer"):
        steps = {"mode": ("full", "chans"), "step": (20,)}
        own = attacked(
            0.5,
            metric="step_{}",
            middle=4.0 if model in inside else 100.0,
            model__name=model,
            step=20,
        )
        found += own
        found += numbers(
            "E6",
            "step_accuracy",
            lambda seed, **_: 0.8,
            over={**steps, "model__depth": (1, 2)},
            model__name=model,
        )
    one = judgement("4e", found)
    assert sorted(one.verdict.split(", ")) == [f"1 {NOT_ASSESSABLE}", f"1 {SUPPORTED}"]
    assert len(sentences.obstacles(one)) == 1  # for the report's banner
    assert "or a radius is outside the grid: Chans - Full at clean" in one.reason
    assert one.reason.endswith(f"under FGSM ({MODELS[outside]})")


@pytest.mark.parametrize(("failing", "expected"), [(1, SUPPORTED), (2, NOT_ASSESSABLE)])
def test_one_seed_may_fail_a_check_by_chance(failing, expected):
    found = [*attacked(0.5, passes=lambda seed: float(seed >= failing))]
    assert verdict("4a", found) == expected


def test_masked_gradients_of_defended_models_leave_undefended_ones_assessable():
    masked = [*attacked(0.5, passes=lambda seed: 0.0, **{"defense.epsilon": 8.0})]
    found = [*attacked(0.5)], masked
    assert verdict("4a", *found) == SUPPORTED
    assert verdict("4b", *found) == NOT_ASSESSABLE


def test_a_check_that_fails_once_in_each_of_several_models_fails_by_chance():
    found = smoothed({1.0: 0.0, 2.0: 0.005})
    checks = [
        dataclasses.replace(
            check,
            settings={**check.settings, "model.smoothing_index": float(index)},
            value=float(check.seed != index),
        )
        for check in attacked(0.0, experiment="E7")
        if check.metric == "check"
        for index in (0, 1, 2)
    ]
    assert verdict("5", found, checks) == SUPPORTED


@pytest.mark.parametrize(
    ("full_steps", "expected"),
    # Checkpoint 10 of Full is as accurate as Chans is at its end, and halves at 3.
    [({10: 0.8, 20: 0.85}, SUPPORTED), ({10: 0.7, 20: 0.85}, NOT_ASSESSABLE)],
)
def test_robustness_at_matched_accuracy(full_steps, expected):
    clean = {"chans": {10: 0.6, 20: 0.8}, "full": full_steps}
    halves = {("chans", 20): 4.0, ("full", 10): 3.0, ("full", 20): 8.0, ("chans", 10): 1.0}
    over = {"mode": ("full", "chans"), "step": (10, 20)}
    found = numbers("E6", "step_accuracy", lambda seed, mode, step: clean[mode][step], over=over)
    found += numbers(
        "E6",
        "step_fgsm",
        lambda seed, mode, step, epsilon: 0.8 / (1 + (epsilon / halves[mode, step]) ** 2),
        over={**over, "epsilon": EPSILONS},
    )
    assert verdict("4e", found, [*attacked(0.5)]) == expected


def smoothed(losses):
    """Index 2 halves two octaves later than index 0, index 1 a tenth of one."""
    octaves, losses = {0.0: 0.0, 1.0: 0.1, 2.0: 2.0}, {0.0: 0.0, **losses}
    indices = {"model__smoothing_index": tuple(octaves)}

    def fgsm(seed, model__smoothing_index, epsilon):
        return 0.9 / (1 + (epsilon / 4 / 2 ** octaves[model__smoothing_index]) ** 2)

    def clean(seed, model__smoothing_index):
        return 0.9 - losses[model__smoothing_index]

    found = numbers("E7", "fgsm", fgsm, over={**indices, "epsilon": EPSILONS}, mode="chans")
    return found + numbers("E7", "validation_accuracy", clean, over=indices, mode="chans")


@pytest.mark.parametrize(
    ("losses", "expected"),
    [({1.0: 0.0, 2.0: 0.005}, SUPPORTED), ({1.0: 0.0, 2.0: 0.02}, f"{SUPPORTED} and {EQUAL}")],
)
def test_smoothing_at_the_largest_index_that_is_free(losses, expected):
    checks = [r for r in attacked(0.0, experiment="E7") if r.metric == "check"]
    assert verdict("5", smoothed(losses), checks) == expected


def test_smoothing_that_always_costs_accuracy_is_not_assessable():
    checks = [r for r in attacked(0.0, experiment="E7") if r.metric == "check"]
    one = judgement("5", smoothed({1.0: 0.03, 2.0: 0.02}), checks)
    assert one.verdict == NOT_ASSESSABLE
    assert "costs less than 1 point of accuracy on held-out images: 2.00 points" in one.reason
