"""The first page of a report: the forest plot of the verdicts, and each verdict in a sentence."""

import dataclasses
import math

import numpy as np
import pytest
import simulated_families
from matplotlib.text import Text

from randmix.reproduce import forest, report, sentences, verdicts
from randmix.reproduce.numbers import Number, Numbers
from randmix.reproduce.verdicts import NOT_ASSESSABLE, NOT_DECIDED, SUPPORTED

DATA = simulated_families.DATA


@pytest.fixture(scope="module")
def numbers():
    """Numbers by which every primary claim is supported."""
    return simulated_families.family(6.0, np.random.default_rng(0))


def judge(numbers, pending=simulated_families.FINISHED):
    return verdicts.judge(numbers, pending)


def of(judged, id):
    (one,) = (one for one in judged if one.claim.id == id)
    return one


def changed(numbers, change, experiment, **settings):
    """The numbers, those selected with another value."""
    chosen = {id(number) for number in numbers.where(experiment, **settings)}
    return Numbers(
        dataclasses.replace(n, value=change(n.value)) if id(n) in chosen else n for n in numbers
    )


def test_each_verdict_has_a_row_with_its_effect(numbers):
    judged = judge(numbers)
    rows = [row for page in forest.pages(judged) for row in forest.draw(page).rows]
    claims = dict.fromkeys(row["claim"] for row in rows)
    assert [*claims] == sorted(
        (one.claim.id for one in judged), key=lambda id: (not of(judged, id).claim.primary,)
    )
    for row in rows:
        one = of(judged, row["claim"])
        assert (row["verdict"], row["data"]) == (one.verdict, DATA)
        if row["seeds"]:
            (result,) = (result for result in one.deciding if result.title == row["effect"])
            values = np.asarray([*result.values.values()])
            assert row["mean"] == pytest.approx(values.mean())
            error = values.std(ddof=1) / math.sqrt(len(values))
            assert row["high"] - row["low"] == pytest.approx(2 * 2.776445 * error)


def test_each_deciding_effect_has_a_line():
    one = of(judge(simulated_families.family(2.0, np.random.default_rng(0))), "2'")
    picture = forest.draw([one])
    assert [row["effect"] for row in picture.rows] == [result.title for result in one.deciding]
    (axes,) = picture.figure.axes
    markers = [line for line in axes.lines if line.get_marker() == "o"]
    heights = [line.get_ydata()[0] for line in markers]
    assert heights == sorted(heights)
    assert len({*heights}) == 3
    means = [result.interval.mean / 0.5 for result in one.deciding]  # margins of half a point
    assert [line.get_xdata()[0] for line in markers] == pytest.approx(means)
    # Nothing is known of a claim without numbers, so one row says so.
    assert len(forest.draw([of(judge(Numbers()), "2'")]).rows) == 1


def test_each_data_set_has_figures_of_its_primary_and_its_secondary_claims(numbers):
    judged = judge(numbers)
    other = [dataclasses.replace(one, data="other") for one in judged]
    bare = [dataclasses.replace(of(judged, "2"), data="")]
    shown = forest.pages([*bare, *judged, *other])
    assert [{(one.data, one.claim.primary) for one in page} for page in shown] == [
        {(DATA, True)},
        {(DATA, False), ("", False)},
        {("other", True)},
        {("other", False)},
    ]
    assert sum(map(len, shown)) == 2 * len(judged) + 1
    assert forest.pages([]) == []


def test_a_supported_claim_is_said_with_interval_and_threshold(numbers):
    one = of(judge(numbers), "1a")
    shares = [
        100 * (by["chans"] - by["floor"]) / (by["full"] - by["floor"])
        for by in (
            {n.mode: n.value for n in numbers.where("E2", "accuracy") if n.seed == seed}
            for seed in simulated_families.SEEDS
        )
    ]
    text = sentences.sentence(one)
    assert one.verdict == SUPPORTED
    assert text.startswith(
        f"Share recovered by Chans of the way from Floor to Full: {np.mean(shares):.2f} %, ["
    )
    assert text.endswith("n = 5 (claimed: above 90.00).")


def test_a_control_that_passes_is_said(numbers):
    better = changed(numbers, lambda value: value + 0.25, "E2", mode="space")
    one = of(judge(better), "1a")
    assert one.verdict == NOT_ASSESSABLE
    assert "; but Space, the control, may do as well (" in sentences.sentence(one)


def test_runs_that_are_missing_are_all_that_is_said(numbers):
    pending = {**simulated_families.FINISHED, ("1b", DATA): (3, 50)}
    judged = judge(numbers, pending)
    assert of(judged, "1b").verdict == NOT_DECIDED
    assert sentences.sentence(of(judged, "1b")) == "3 of 50 runs aren't finished."


def test_what_only_the_correction_leaves_undecided_is_said():
    found = [
        one
        for seed in range(4)
        for one in judge(simulated_families.family(1.6, np.random.default_rng(seed)))
        if one.claim.primary and one.verdict == NOT_DECIDED
    ]
    alone = [one for one in found if sentences.weakest(one).p_supported <= 0.025]
    assert alone
    assert len(alone) < len(found)
    for one in found:
        expected = "not once corrected" if one in alone else "is not excluded"
        assert expected in sentences.sentence(one)


def test_a_count_has_no_interval():
    counts = Numbers(
        Number("E11", "", {}, 0, metric, 0.0, "file")
        for metric in ("differs_from_equations", "depends_on_kernel_size")
    )
    judged = judge(counts, {("8", ""): (0, 0)})
    picture = forest.draw(judged)
    (axes,) = picture.figure.axes
    # Of each of its two effects only the marker is a line; the line at 0 spans the panel.
    assert [len(line.get_xdata()) for line in axes.lines] == [2, 1, 1]
    assert sentences.sentence(judged[0]).endswith("off the closed forms: 0 (claimed: exactly 0).")


def test_an_effect_beyond_the_axis_is_an_arrow_at_its_edge():
    banks = Numbers(
        Number("E1", "", {"filters": n}, seed, "coverage", 0.2 * n + 0.01 * seed * n, "file")
        for n in (1, 2, 4)
        for seed in range(3)
    )
    picture = forest.draw(judge(banks, {("7", ""): (0, 0)}))
    (axes,) = picture.figure.axes
    markers = [line for line in axes.lines if line.get_marker() == ">"]
    assert markers
    assert all(line.get_xdata()[0] == 5 for line in markers)


def test_the_banner_says_what_keeps_which_claims_from_being_assessed(numbers):
    better = changed(numbers, lambda value: value + 0.25, "E2", mode="space")
    failed = report._banner([], {}, judge(better))["failed"]
    assert "1a (made_up)" in failed["Space, the control, may do as well"]
    without = Numbers(number for number in numbers if number.experiment != "convergence")
    banner = report._banner((), {}, judge(without))
    assert "1a (made_up)" in banner["failed"]["a gate was not measured"]
    assert banner["claims"] == len({n for names in banner["failed"].values() for n in names})


def test_the_summary_says_how_the_primary_claims_fared(numbers):
    judged = judge(numbers)
    assert report._summary(judged) == [
        "7 primary claims on made_up: 6 supported (1a, 1b, 1c, 2', 4a, 4c), 1 supported and "
        "practically equal (6a)."
    ]
    against = judge(simulated_families.family(-6.0, np.random.default_rng(0)))
    (line,) = report._summary(against)
    assert line.startswith("7 primary claims on made_up, of which none is supported: ")
    assert report._summary([one for one in judged if not one.claim.primary]) == []


def test_equality_that_is_judged_apart_has_a_zone_of_its_own(numbers):
    one = of(judge(numbers), "1a")
    (axes,) = forest.draw([one]).figure.axes
    (zone,) = axes.patches
    assert zone.get_height() == pytest.approx(forest._ZONE)
    first, second = (line.get_ydata()[0] for line in axes.lines if line.get_marker() == "o")
    assert first < zone.get_y() < second < zone.get_y() + zone.get_height() < axes.get_ylim()[0]


def test_the_unit_of_a_row_is_named_in_the_singular_or_the_plural(numbers):
    figures = [forest.draw(page).figure for page in forest.pages(judge(numbers))]
    texts = [text.get_text() for figure in figures for text in figure.findobj(Text)]
    units = {text.partition("unit: ")[2] for text in texts if "unit: " in text}
    assert {"1 point", "0.5 points"} <= units
    assert "1 points" not in units


def test_a_long_sentence_has_room(numbers, monkeypatch):
    one = of(judge(numbers), "4a")
    words = " ".join(["words"] * 45)  # four lines
    monkeypatch.setattr(forest, "sentence", lambda one: words)
    (long,) = forest.draw([one]).figure.axes
    assert words in [text.get_text().replace("\n", " ") for text in long.texts]
    monkeypatch.setattr(forest, "sentence", lambda one: "words")
    (short,) = forest.draw([one]).figure.axes
    assert long.get_ylim()[0] == pytest.approx(short.get_ylim()[0] + forest._MORE)
