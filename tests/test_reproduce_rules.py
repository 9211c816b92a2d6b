"""Claims, experiments and figures are complete, and rules say how they decide."""

import dataclasses

import pytest

from randmix.reproduce import claims, figures, presets
from randmix.reproduce.claims import CLAIMS
from randmix.reproduce.experiments import EXPERIMENTS

# The claims in the project's numbering, and the experiment that decides each.
EXPECTED = {
    **{"1a": "E2", "1b": "E5", "1c": "E2", "2": "E3", "2'": "E3", "3": "E4", "5": "E7"},
    **{"4a": "E6", "4b": "E6", "4c": "E6", "4d": "E6", "4e": "E6"},
    **{"6a": "E10", "6b": "E10", "6c": "E10", "7": "E1", "8": "E11", "9": "E12"},
}
# What the report draws, by experiment, beside learning curves; E11 is a table.
FIGURES = {
    "E1": ["E1"],
    "E2": ["E2"],
    "E3": ["E3", "E3-equivalence"],
    "E4": ["E4"],
    "E5": ["E5"],
    "E6": ["E6-octaves", "E6-depth", "E6-epsilon"],
    "E7": ["E7"],
    "E8": ["E8", "E8-profile"],
    "E9": ["E9-envelopes", "E9-filters"],
    "E10": ["E10", "E10-reconstructions"],
    "E11": [],
    **{id: [id] for id in ("E12", "E14", "E15")},
    "E13": ["E13-overview", "E13"],
    "convergence": [],
}
KEPT = {"E1", "E3-equivalence", "E8", "E8-profile"}
KEPT |= {"E9-envelopes", "E9-filters", "E10-reconstructions"}
TRAINED = set(FIGURES) - {"E1", "E8", "E11", "E15"}


def test_every_claim_experiment_and_figure_has_its_entry():
    assert {id: claim.experiment for id, claim in CLAIMS.items()} == EXPECTED
    assert {id for id, claim in CLAIMS.items() if claim.primary} == {
        *("1a", "1b", "1c", "2'", "4a", "4c", "6a")
    }
    expected = {
        id: [*names, *([f"{id}-curves"] if id in TRAINED else [])] for id, names in FIGURES.items()
    }
    assert {id: [*e.figures] for id, e in EXPERIMENTS.items()} == expected
    drawn = {name for names in expected.values() for name in names} - KEPT
    assert drawn == set(figures.DRAWN)
    for name, tier in (("smoke", "laptop"), ("digits", "laptop"), ("cifar10", "paper")):
        assert set(presets.get(name, tier).runs) == set(EXPERIMENTS), name


def test_un_shuffling_is_of_full_chans_and_space():
    assert {run["mode"] for run in presets.get("digits").runs["E10"]} == {"full", "chans", "space"}


@pytest.mark.parametrize(
    ("name", "tier"), [(name, tier) for name in presets.NAMES for tier in presets.tiers(name)]
)
def test_a_preset_measures_the_gates_of_its_claims(name, tier):
    runs = presets.get(name, tier).runs

    def families(experiment, model=None):
        every = {(run["data.name"], run["model.name"]) for run in runs[experiment]}
        return {family for family in every if model in (None, family[1])}

    for claim in (claim for claim in CLAIMS.values() if claim.experiment in runs):
        for gate in claim.gates:
            if gate.experiment:
                needed = families(claim.experiment, claim.model)
                assert needed <= families(gate.experiment), claim.id


def test_a_rule_says_threshold_margin_and_gates():
    assert CLAIMS["1a"].rule == (
        "Supported if (Chans - Floor) - 0.9 (Full - Floor) is above 0 points. Practically equal if "
        "Full - Chans is within ±1 points. Not assessable unless Full - Floor is at least 5 "
        "points; the control fails: (Space - Floor) - 0.9 (Full - Floor) is below 0 with its whole "
        "interval; at twice the epochs, (Chans - Floor) - 0.9 (Full - Floor) on held-out training "
        "images changes by less than 0.5 points, or than half of its distance from 0."
    )


def test_the_rule_of_several_effects_says_how_they_decide():
    assert CLAIMS["2'"].rule.startswith(
        "Supported if rank 9 - rank 3, at one coverage is above 0 points, and rank 3 - rank 1, at "
        "one coverage is above 0 points, and widest - narrowest coverage, at one rank is within "
        "±0.5 points. Contradicted if one of these is on the other side. Practically equal if rank "
        "9 - rank 3, at one coverage is within ±0.5 points, and rank 3 - rank 1, at one coverage "
        "is within ±0.5 points. Not assessable unless"
    )
    assert CLAIMS["2"].rule.startswith(
        "Supported if Different - Same is above 0 points; if Same - Box is above 0 points; if Box "
        "- Identity is above 0 points. Each of these has a verdict of its own. Practically equal "
        "if Different - Same is within ±0.5 points; if Same - Box is within ±0.5 points; if Box - "
        "Identity is within ±0.5 points. Judged for each family of models and number of filters "
        "per channel. Not assessable unless"
    )


@pytest.mark.parametrize(
    ("id", "change"),
    [
        ("6a", {"tests": (dataclasses.replace(CLAIMS["6a"].tests[0], threshold=1.5),)}),
        ("4a", {"tests": CLAIMS["4a"].tests[:2]}),
        ("4a", {"model": "convmixer"}),
        ("4e", {"split": ()}),
    ],
)
def test_another_rule_is_another_fingerprint(monkeypatch, id, change):
    before = claims.fingerprint()
    monkeypatch.setitem(CLAIMS, id, dataclasses.replace(CLAIMS[id], **change))
    assert claims.fingerprint() != before
