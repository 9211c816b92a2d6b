"""Verdicts on claims follow planted numbers both ways; those on robustness have their own file."""

import itertools

import numpy as np
import pytest
import simulated_families
from planted import gate, held_out, judgement, numbers, verdict

from randmix.reproduce import effects, gates, sentences, verdicts
from randmix.reproduce.claims import CLAIMS
from randmix.reproduce.numbers import Number, Numbers
from randmix.reproduce.titles import MODELS
from randmix.reproduce.verdicts import CONTRADICTED, EQUAL, NOT_ASSESSABLE, NOT_DECIDED, SUPPORTED


def near(gap, *, floor=0.4, space=0.5, slow=0.0, model="resnet", experiment="E2"):
    def accuracy(seed, mode, model__depth):
        # Only differences count, even where seeds differ far more than modes.
        left = {"floor": floor, "space": space, "chans": 0.8 - gap, "full": 0.8}[mode]
        return left + 0.02 * seed + 0.05 * model__depth

    over = {"mode": ("full", "chans", "space", "floor"), "model__depth": (1, 2)}
    trained = numbers(experiment, "accuracy", accuracy, over=over, model__name=model)

    def longer(mode, total_steps):
        return held_out(mode, total_steps) + (slow if mode == "full" and total_steps == 20 else 0)

    return trained, gate(longer, model)


@pytest.mark.parametrize(
    ("id", "experiment", "model"), [("1a", "E2", "resnet"), ("1b", "E5", "convmixer")]
)
@pytest.mark.parametrize(
    ("gap", "expected"),
    [(0.02, SUPPORTED), (0.005, f"{SUPPORTED} and {EQUAL}"), (0.06, CONTRADICTED)],
)
def test_claims_1a_and_1b_follow_the_gap(id, experiment, model, gap, expected):
    assert verdict(id, *near(gap, experiment=experiment, model=model)) == expected


def test_practical_equality_is_told_as_a_sentence():
    told = sentences.sentence(judgement("1a", *near(0.005)))
    assert ", lies within \N{PLUS-MINUS SIGN}1 points" in told
    assert "the 90 % interval of Full - Chans, [" in told


def test_the_share_that_is_recovered_stands_beside():
    _, share = judgement("1a", *near(0.1)).results
    assert share.words == "share recovered by Chans of the way from Floor to Full"
    assert share.interval.mean == pytest.approx(75, abs=0.2)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"floor": 0.77}, "Full - Floor is at least 5 points: 3.00 points"),
        ({"space": 0.79}, "the control fails: (Space - Floor) - 0.9 (Full - Floor)"),
        ({"slow": 0.006}, "changes by 0.54 points; half of its distance is 0.49"),
    ],
)
def test_a_failed_gate_leaves_nothing_to_assess(changed, reason):
    one = judgement("1a", *near(0.02, **changed))
    assert one.verdict == NOT_ASSESSABLE
    assert reason in one.reason
    assert one.p == 1


def test_a_gate_that_was_not_measured_fails():
    trained, _ = near(0.02)
    one = judgement("1a", trained)
    assert one.verdict == NOT_ASSESSABLE
    assert "half of its distance from 0: not measured" in one.reason


@pytest.mark.parametrize(("slow", "passed"), [(0.03, True), (0.04, False)])
def test_an_effect_far_from_its_threshold_may_change_by_half_of_its_distance(slow, passed):
    def far(mode, total_steps):
        accuracy = held_out(mode, total_steps) - (0.05 if mode == "chans" else 0)
        return accuracy + (slow if mode == "full" and total_steps == 20 else 0)

    effect = effects.recovered("chans", 0.9)  # -6 points
    found = gates.converged(effect)(gate(), gate(far))
    assert found.passed is passed
    assert found.detail == f"changes by {90 * slow:.2f} points; half of its distance is 2.99"
    # How far an effect that stands for the claim's is from 0 says nothing of the claim's own.
    gap = effects.points("full", "chans")  # 10 points
    for more, stands in ((0.004, True), (0.006, False)):
        changed = gate(
            lambda mode, total_steps, more=more: (
                far(mode, 10) + (more if mode == "full" and total_steps == 20 else 0)
            )
        )
        assert gates.converged(gap, None)(gate(), changed).passed is stands


def test_the_gate_of_a_ratio_is_a_ratio():
    def longer(mode, total_steps):
        return held_out(mode, total_steps) - (0.1 if mode == "chans" and total_steps == 20 else 0)

    (_, converged) = CLAIMS["1c"].gates
    found = converged(gate(), gate(longer))
    # log(0.5 / 0.25) = 0.693 becomes log(0.5 / 0.35) = 0.357; the threshold is log 1.25 = 0.223.
    assert not found.passed
    assert found.detail == "changes by 0.34; half of its distance is 0.24"
    assert converged(gate(), gate()).passed


def test_a_claim_is_looked_at_once():
    one = judgement("1a", *near(0.02), unfinished=3)
    assert (one.verdict, one.reason) == (NOT_DECIDED, "3 of 10 runs aren't finished")


def test_a_gate_with_a_family_that_was_not_measured_has_no_number():
    effect = effects.points("full", "chans")
    own = Numbers([*gate(), *gate(model="convmixer")])
    found = gates.converged(effect)(own, gate(model="convmixer"))
    assert (found.passed, found.detail) == (False, "not measured")


def test_the_effect_is_the_mean_over_sizes_of_the_seeds_that_have_all():
    trained, _ = near(0.02)
    part = Numbers(r for r in trained if r.seed < 4 or r.settings["model.depth"] == 1)
    values = effects.recovered("chans", 0.9).of(part)
    assert list(values) == [0, 1, 2, 3]
    np.testing.assert_allclose([*values.values()], 2, atol=0.1)


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [(1.4, SUPPORTED), (1.15, CONTRADICTED), (1.0, f"{CONTRADICTED} and {EQUAL}")],
)
def test_claim_1c_follows_the_error_ratio(ratio, expected):
    assert verdict("1c", far_worse(ratio), gate()) == expected


def test_models_that_learned_nothing_decide_nothing():
    assert verdict("1c", far_worse(1.0, floor=0.8), gate()) == NOT_ASSESSABLE


def far_worse(ratio, floor=0.4):
    left = {"full": 0.8, "chans": 0.8, "space": 1 - 0.2 * ratio, "floor": floor}
    return numbers("E2", "accuracy", lambda seed, mode: left[mode], over={"mode": tuple(left)})


def test_the_least_favourable_effect_is_the_one_that_contradicts():
    one = judgement("2'", ranked((0.8, 0.8, 0.79), by_coverage=0.04), gate())
    weakest = sentences.weakest(one)
    assert (weakest.words, weakest.verdict) == (
        "widest - narrowest coverage, at one rank",
        CONTRADICTED,
    )
    unmeasured = verdicts.judge(Numbers(), {("2'", "digits"): (0, 1)})[0].results
    assert {(r.p_supported, r.p_contradicted) for r in unmeasured} == {(1.0, 1.0)}


def test_each_step_between_banks_has_its_verdict():
    accuracies = {"random": 0.9, "same": 0.8, "box": 0.801, "identity": 0.85}
    found = numbers(
        "E3",
        "accuracy",
        lambda seed, **at: accuracies[at["model__filters"]],
        over={"model__filters": tuple(accuracies), "model__multiplier": (9, 1)},
        mode="chans",
    )
    one = judgement("2", found, gate())
    assert [(r.words, r.condition, r.verdict) for r in one.results] == [
        ("Different - Same", "separable ResNet, m = 9", SUPPORTED),
        ("Different - Same", "separable ResNet, m = 1", SUPPORTED),
        ("Same - Box", "separable ResNet, m = 9", f"{CONTRADICTED} and {EQUAL}"),
        ("Same - Box", "separable ResNet, m = 1", f"{CONTRADICTED} and {EQUAL}"),
        ("Box - Identity", "separable ResNet, m = 9", CONTRADICTED),
        ("Box - Identity", "separable ResNet, m = 1", CONTRADICTED),
    ]
    assert one.verdict == f"2 {SUPPORTED}, 2 {CONTRADICTED} and {EQUAL}, 2 {CONTRADICTED}"


def ranked(accuracies, coverages=(1.0, 1.0, 1.0), by_coverage=0.0):
    """Banks of ranks 9, 3 and 1, and two more coverages of rank 9."""
    banks = [*zip((9, 3, 1), (0.0,) * 3, coverages, accuracies, strict=True)]
    banks += [(9, i, 1 - i / 2, accuracies[0] - by_coverage * i) for i in (0.5, 1.0)]
    return Numbers(
        itertools.chain.from_iterable(
            numbers(
                "E3",
                "accuracy",
                lambda seed, value=value, **_: value,
                over={"mode": ("chans",)},
                bank_rank=rank,
                bank_coverage=coverage,
                **{"model.filter_rank": rank, "model.smoothing_index": index},
            )
            for rank, index, coverage, value in banks
        )
    )


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (ranked((0.9, 0.8, 0.7)), SUPPORTED),
        (ranked((0.9, 0.8, 0.85)), CONTRADICTED),
        (ranked((0.9, 0.8, 0.7), by_coverage=0.02), CONTRADICTED),
        # Equality is of both steps.
        (ranked((0.803, 0.8, 0.7)), SUPPORTED),
        (ranked((0.806, 0.803, 0.8)), f"{SUPPORTED} and {EQUAL}"),
        (ranked((0.9, 0.8, 0.7), coverages=(1.0, 0.9, 0.9)), NOT_ASSESSABLE),
        (ranked((0.9, 0.8, 0.7), coverages=(1.0, 0.9, 0.0)), NOT_ASSESSABLE),
    ],
)
def test_rank_or_coverage(found, expected):
    assert verdict("2'", found, gate()) == expected


def test_a_rank_that_was_not_measured_is_named():
    found = Numbers(r for r in ranked((0.9, 0.8, 0.7)) if r.settings["bank_rank"] != 3)
    one = judgement("2'", found, gate())
    assert one.verdict == NOT_ASSESSABLE
    assert "rank 3 not measured; 1, 9 were" in one.reason


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [
        ({4: 0.08, 8: 0.04, 16: 0.002}, SUPPORTED),
        ({4: 0.08, 8: 0.04, 16: 0.02}, CONTRADICTED),
        ({4: -0.001, 8: 0.003, 16: 0.001}, NOT_ASSESSABLE),
    ],
)
def test_the_gap_closes(gaps, expected):
    def accuracy(seed, mode, model__width):
        return 0.9 - (gaps[model__width] if mode == "chans" else 0)

    over = {"mode": ("full", "chans"), "model__width": tuple(gaps)}
    assert verdict("3", numbers("E4", "accuracy", accuracy, over=over)) == expected


def test_a_gap_that_one_family_lacks_leaves_the_other_assessable():
    gaps = {"resnet": {4: 0.08, 16: 0.001}, "convmixer": {16: 0.0, 128: 0.001}}
    found = [
        numbers(
            "E4",
            "accuracy",
            lambda seed, mode, model__width, own=own: 0.9 - (own[model__width] * (mode == "chans")),
            over={"mode": ("full", "chans"), "model__width": tuple(own)},
            model__name=name,
        )
        for name, own in gaps.items()
    ]
    one = judgement("3", *found)
    assert one.verdict == f"1 {SUPPORTED}, 1 {NOT_ASSESSABLE}"
    assert [(gate.part, gate.passed) for gate in one.gates] == [
        (MODELS["resnet"], True),
        (MODELS["convmixer"], False),
    ]
    assert "at the smallest width is above 0 with its whole interval (ConvMixer): " in one.reason


def unshuffled(psnr, reach, mean_image=11.0):
    over = {"mode": ("full", "chans", "space"), "model__width": (8, 16), "model__depth": (1, 4)}
    found = numbers("E10", "psnr", lambda seed, **at: psnr(**at), over=over)
    found += numbers("E10", "mean_image_psnr", lambda seed, **at: mean_image, over=over)
    return found + numbers("E10", "reach", lambda seed, **at: reach[at["model__depth"]], over=over)


@pytest.mark.parametrize(
    ("gap", "expected"),
    [(0.7, SUPPORTED), (0.3, f"{SUPPORTED} and {EQUAL}"), (1.5, CONTRADICTED)],
)
@pytest.mark.parametrize(("id", "mode"), [("6a", "chans"), ("6b", "space")])
def test_unshuffling(id, mode, gap, expected):
    def psnr(model__width, model__depth, **at):
        # The shallow models don't reach, and their gap must not count.
        worse = gap if model__depth == 4 else 9
        return 20 + model__width / 8 - (worse if at["mode"] == mode else 0)

    assert verdict(id, unshuffled(psnr, {1: 0.1, 4: 0.95})) == expected
    assert verdict(id, unshuffled(psnr, {1: 0.1, 4: 0.89})) == NOT_ASSESSABLE
    # Full is at 21 and 22 dB. A model that has learned little comes near any other.
    assert verdict(id, unshuffled(psnr, {1: 0.1, 4: 0.95}, mean_image=18.4)) == expected
    little = judgement(id, unshuffled(psnr, {1: 0.1, 4: 0.95}, mean_image=18.6))
    assert little.verdict == NOT_ASSESSABLE
    assert "Full - mean training image is at least 3 dB: 2.90 dB" in little.reason


@pytest.mark.parametrize("falls", [None, "model__width", "model__depth"])
def test_psnr_grows_with_each_size(falls):
    def psnr(mode, **sizes):
        return 20 + sum(size * (-1 if name == falls else 1) for name, size in sizes.items())

    one = judgement("6c", unshuffled(psnr, {1: 0.95, 4: 1.0}))
    for result in one.results:
        size = "model__" + result.words.removeprefix("slope over ").replace(" ", "_")
        measured = size != "model__kernel_size"  # of which there is one alone
        expected = CONTRADICTED if size == falls else SUPPORTED
        assert result.verdict == (expected if measured else NOT_ASSESSABLE), result.words
    assert one.reason.startswith("not measured: ")
    assert "slope over kernel size" in one.reason


@pytest.mark.parametrize(("sign", "expected"), [(1, SUPPORTED), (-1, CONTRADICTED)])
def test_claim_7_follows_coverage(sign, expected):
    def coverage(seed, filters):
        return 0.5 + sign * filters / 100

    assert (
        verdict("7", numbers("E1", "coverage", coverage, over={"filters": (1, 4, 16)})) == expected
    )


@pytest.mark.parametrize("wrong", [0, 1])
def test_claim_8_follows_the_equations(wrong):
    found = [Number("E11", "", {}, 0, "differs_from_equations", float(wrong), "file")]
    found += [Number("E11", "", {}, 0, "depends_on_kernel_size", 0.0, "file")]
    expected = f"1 {CONTRADICTED}, 1 {SUPPORTED}" if wrong else SUPPORTED
    assert verdict("8", found) == expected


@pytest.mark.parametrize(("early", "expected"), [(0.04, SUPPORTED), (0.01, CONTRADICTED)])
def test_the_curve_of_shares(early, expected):
    accuracies = {0.0: 0.7, 0.25: 0.7 + early, 1.0: 0.8}
    found = numbers(
        "E12", "accuracy", lambda seed, share: accuracies[share], over={"share": tuple(accuracies)}
    )
    assert verdict("9", found, gate()) == expected


def test_without_numbers_nothing_is_decided():
    planned = {(id, "digits"): (0, 1) for id in CLAIMS}
    for one in verdicts.judge(Numbers(), planned):
        assert one.verdict in (NOT_DECIDED, NOT_ASSESSABLE), one.claim.id
    judged = verdicts.judge(Numbers(), {("1c", "digits"): (0, 1), ("2", "mnist"): (0, 1)})
    assert [(one.data, one.claim.id) for one in judged] == [("digits", "1c"), ("mnist", "2")]


def test_the_primary_claims_are_corrected_as_one_family():
    random = np.random.default_rng(0)
    judged = simulated_families.judged(1.5, random)
    alone = {
        id: min(one.results[0].p_supported, one.results[0].p_contradicted)
        for id, one in judged.items()
        if one.claim.deciding == 1
    }
    smallest = min(alone, key=alone.get)
    assert judged[smallest].p == pytest.approx(7 * alone[smallest])
    assert any(one.verdict != one.results[0].verdict for one in judged.values())


def test_known_effects_get_the_right_words():
    random = np.random.default_rng(1)
    for one in simulated_families.judged(6.0, random).values():
        assert one.verdict.startswith(SUPPORTED), one.claim.id
    for one in simulated_families.judged(-6.0, random).values():
        assert one.verdict.startswith(CONTRADICTED), one.claim.id


@pytest.mark.slow
def test_a_false_verdict_in_a_family_is_rare():
    """Of 600 families in which every effect is at its threshold, 5 % and two standard errors."""
    assert simulated_families.false_families(600, seed=0) <= (0.05 + 2 * 0.0089) * 600
