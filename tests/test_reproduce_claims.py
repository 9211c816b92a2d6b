"""Claims, experiments and figures are complete, and verdicts follow planted numbers both ways."""

import itertools

import pytest

from randmix.reproduce import claims, figures, presets
from randmix.reproduce.claims import CLAIMS
from randmix.reproduce.experiments import EXPERIMENTS
from randmix.reproduce.records import Record, Records
from randmix.reproduce.statistics import CONFIRMED, REFUTED, UNDECIDED

SEEDS = (0, 1, 2)
# The paper's claims in the project's numbering, and the experiments that decide each.
EXPECTED = {
    **{"1a": "E2", "1b": "E5", "1c": "E2", "2": "E3", "3": "E4", "5": "E7", "7": "E1", "8": "E11"},
    **{"4a": "E6", "4b": "E6", "4c": "E6", "4d": "E6", "6a": "E10", "6b": "E10", "6c": "E10"},
}
# What the paper draws, by experiment; E11 is a table.
FIGURES = {
    "E1": ["E1"],
    "E2": ["E2"],
    "E3": ["E3"],
    "E4": ["E4"],
    "E5": ["E5"],
    "E6": ["E6-depth", "E6-epsilon"],
    "E7": ["E7", "E7-filters"],
    "E8": ["E8", "E8-profile"],
    "E9": ["E9-envelopes", "E9-filters"],
    "E10": ["E10", "E10-reconstructions"],
    "E11": [],
    "E12": ["E12"],
}
KEPT = {"E1", "E7-filters", "E8", "E8-profile", "E9-envelopes", "E9-filters", "E10-reconstructions"}


def records(experiment, metric, value, *, over, **settings):
    """One record per seed and combination of ``over``: ``value(seed, **combination)``.

    Names have "__" for dots.
    """
    found = Records()
    for values in itertools.product(*over.values()):
        at = dict(zip(over, values, strict=True))
        for seed in SEEDS:
            keys = {name.replace("__", "."): v for name, v in {**settings, **at}.items()}
            keys = {"data.name": "digits", "model.name": "resnet", **keys}
            number = value(seed, **at) + 0.0001 * ((seed * 7 + len(found)) % 5)
            found.append(
                Record(
                    experiment, keys.get("mode", ""), keys, seed, metric, number, f"run{len(found)}"
                )
            )
    return found


def verdict(id, found):
    return CLAIMS[id].verdict(CLAIMS[id].judge(found))


def test_every_claim_experiment_and_figure_has_its_entry():
    assert {id: claim.experiment for id, claim in CLAIMS.items()} == EXPECTED
    assert {id: [*e.figures] for id, e in EXPERIMENTS.items()} == FIGURES
    drawn = {name for names in FIGURES.values() for name in names} - KEPT
    assert drawn == set(figures.DRAWN)
    for claim in CLAIMS.values():
        assert len(claim.definition) > 40, claim.id
    for name in ("smoke", "digits", "fashion_mnist", "cifar"):
        assert set(presets.get(name).runs) == set(EXPERIMENTS), name
    assert set(presets.get("imagenet").runs) == {"E1", "E2", "E5", "E9", "E11"}


@pytest.mark.parametrize(("id", "experiment"), [("1a", "E2"), ("1b", "E5")])
@pytest.mark.parametrize(
    ("gap", "expected"), [(0.02, CONFIRMED), (0.049, CONFIRMED), (0.05, UNDECIDED), (0.06, REFUTED)]
)
def test_near(id, experiment, gap, expected):
    def accuracy(seed, mode, model__depth):
        # Only the gap counts, even where seeds differ far more than modes.
        return 0.8 + 0.05 * seed - (gap if mode == "chans" and model__depth == 2 else 0)

    over = {"mode": ("full", "chans"), "model__depth": (1, 2)}
    assert verdict(id, records(experiment, "accuracy", accuracy, over=over)) == expected


@pytest.mark.parametrize(("gap", "expected"), [(0.11, CONFIRMED), (0.09, REFUTED)])
def test_far_worse(gap, expected):
    def accuracy(seed, mode):
        return {"chans": 0.8, "space": 0.8 - gap}[mode]

    over = {"mode": ("chans", "space")}
    assert verdict("1c", records("E2", "accuracy", accuracy, over=over, model__depth=1)) == expected


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ((0.9, 0.8, 0.7, 0.1), CONFIRMED),
        ((0.9, 0.7, 0.8, 0.1), REFUTED),
        ((0.9, 0.8, 0.8, 0.1), UNDECIDED),
    ],
)
def test_order_of_banks(accuracies, expected):
    banks = dict(zip(("random", "same", "box", "identity"), accuracies, strict=True))

    def accuracy(seed, model__filters):
        return banks[model__filters]

    over = {"model__filters": tuple(banks)}
    found = records("E3", "accuracy", accuracy, over=over, mode="chans", model__depth=2)
    assert verdict("2", found) == expected


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [
        ({4: 0.08, 8: 0.04, 16: 0.002}, CONFIRMED),
        ({4: 0.08, 8: 0.04, 16: 0.02}, REFUTED),
        ({4: 0.001, 8: 0.003, 16: 0.007}, REFUTED),
    ],
)
def test_shrinks_to_nothing(gaps, expected):
    def accuracy(seed, mode, model__width):
        return 0.9 - (gaps[model__width] if mode == "chans" else 0)

    over = {"mode": ("full", "chans"), "model__width": tuple(gaps)}
    assert verdict("3", records("E4", "accuracy", accuracy, over=over)) == expected


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
    ("gain", "expected"), [(0.05, CONFIRMED), (-0.05, REFUTED), (0.0, UNDECIDED)]
)
def test_robustness(id, model, defense, gain, expected):
    def accuracy(seed, mode, epsilon, **_):
        # At epsilon 0 it's reversed, which must not count.
        return 0.5 + (gain if mode == "chans" else 0) * (1 if epsilon else -9)

    over = {"mode": ("full", "chans"), "epsilon": (0.0, 8.0, 16.0), "model__depth": (1, 2)}
    settings = {"over": over, "model__name": model, "defense.epsilon": defense}
    found = records("E6", "fgsm", accuracy, **settings) + records(
        "E6", "pgd2", accuracy, **settings
    )
    assert verdict(id, Records(found)) == expected
    for other in {"4a", "4b", "4c", "4d"} - {id}:
        assert verdict(other, Records(found)) == UNDECIDED


@pytest.mark.parametrize(
    ("gain", "loss", "expected"),
    [
        ({1.0: 0.1, 2.0: 0.4}, {1.0: 0.0, 2.0: 0.0}, CONFIRMED),
        ({1.0: 0.1, 2.0: 0.4}, {1.0: 0.0, 2.0: 0.02}, REFUTED),
        ({1.0: 0.1, 2.0: 0.2}, {1.0: 0.0, 2.0: 0.0}, REFUTED),
        ({1.0: 0.1, 2.0: 0.25}, {1.0: 0.0, 2.0: 0.0}, UNDECIDED),
    ],
)
def test_smoothing(gain, loss, expected):
    gain, loss = {0.0: 0.0, **gain}, {0.0: 0.0, **loss}

    def fgsm(seed, model__smoothing_index, epsilon):
        # At 64 hardly any accuracy is left, so 16 is the largest epsilon that counts.
        left = {8.0: 0.8, 16.0: 0.4, 64.0: 0.01}[epsilon]
        return left * (1 + (gain[model__smoothing_index] if epsilon == 16 else 0))

    def clean(seed, model__smoothing_index):
        return 0.9 - loss[model__smoothing_index]

    indices = {"model__smoothing_index": tuple(gain)}
    found = records(
        "E7", "fgsm", fgsm, over={**indices, "epsilon": (8.0, 16.0, 64.0)}, mode="chans"
    )
    found += records("E7", "accuracy", clean, over=indices, mode="chans")
    assert verdict("5", Records(found)) == expected


@pytest.mark.parametrize(("gap", "expected"), [(0.5, CONFIRMED), (1.5, REFUTED)])
@pytest.mark.parametrize(("id", "mode"), [("6a", "chans"), ("6b", "space")])
def test_unshuffling(id, mode, gap, expected):
    def psnr(seed, model__width, **at):
        return 20 + model__width / 8 - (gap if at["mode"] == mode else 0)

    over = {"mode": ("full", "chans", "space"), "model__width": (8, 16)}
    found = records("E10", "psnr", psnr, over=over, model__depth=1, model__kernel_size=3)
    assert verdict(id, found) == expected


@pytest.mark.parametrize("falls", [None, "model__width", "model__depth", "model__kernel_size"])
def test_psnr_grows_with_each_size(falls):
    def psnr(seed, mode, **sizes):
        return 20 + sum(size * (-1 if name == falls else 1) for name, size in sizes.items())

    over = {
        "mode": ("full", "chans"),
        "model__width": (8, 16),
        "model__depth": (1, 2),
        "model__kernel_size": (3, 5),
    }
    assert verdict("6c", records("E10", "psnr", psnr, over=over)) == (
        REFUTED if falls else CONFIRMED
    )


@pytest.mark.parametrize(("sign", "expected"), [(1, CONFIRMED), (-1, REFUTED)])
def test_coverage(sign, expected):
    def coverage(seed, filters):
        return 0.5 + sign * filters / 100

    assert (
        verdict("7", records("E1", "coverage", coverage, over={"filters": (1, 4, 16)})) == expected
    )


@pytest.mark.parametrize("wrong", [0, 1])
def test_equations(wrong):
    found = [Record("E11", "", {}, 0, "differs_from_equations", float(wrong), "file")]
    found += [Record("E11", "", {}, 0, "depends_on_kernel_size", 0.0, "file")]
    assert verdict("8", Records(found)) == (REFUTED if wrong else CONFIRMED)


def test_without_numbers_nothing_is_decided():
    for id in CLAIMS:
        assert verdict(id, Records()) == UNDECIDED, id
    judged = claims.judge(Records(), ["E2", "E3"])
    assert set(judged) == {"1a", "1c", "2"}
