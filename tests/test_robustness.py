"""Curves under attack: checks, files and picture, on invented measurements of 100 examples."""

import collections
import dataclasses

import numpy as np
import pytest

from randmix.analysis import plots, robustness
from randmix.analysis.robustness import bits, report, sanity
from randmix.errors import UserError


def curves(clean=0.9, epsilons=(0.0, 8.0, 128.0), alone=None, **counts):
    """Curves in which the first ``counts[attack][i]`` examples are right at epsilon i.

    ``alone`` are the counts of the strong attack alone; by default those with the others.
    """
    correct = {name: np.arange(100) < np.asarray(right)[:, None] for name, right in counts.items()}
    settings = robustness.Settings(tuple(correct), epsilons)
    by_strong = alone or counts.get("strong")
    alone = None if by_strong is None else np.arange(100) < np.asarray(by_strong)[:, None]
    return robustness.Curves(settings, clean, np.arange(100) < 90, correct, alone)


GOOD = {"noise": (90, 88, 70), "fgsm": (90, 30, 5), "pgd2": (90, 25, 2), "strong": (90, 20, 0)}
SEARCHES = {"square": (90, 22, 1), "targeted": (90, 21, 0)}


def test_good_curves_pass():
    assert [check.passed for check in sanity.checks(curves(**GOOD | SEARCHES))] == [True] * 8


@pytest.mark.parametrize(
    ("place", "change", "detail"),
    [
        (0, {"clean": 0.89}, "the attacks' program 0.9000, clean 0.8900"),
        (1, {"fgsm": (90, 60, 85)}, "fgsm rises from 0.6000 to 0.8500 at 128"),
        (2, {"strong": (90, 20, 2)}, "0.0200 at 128, strong"),
        (3, {"pgd2": (90, 60, 2)}, "pgd2 0.6000 over fgsm 0.3000 at 8"),
        (
            4,
            {"noise": (90, 50, 20)},
            "noise costs 0.4000, fgsm 0.6000 at 8, the first epsilon that costs half",
        ),
        (5, {"alone": (90, 26, 0)}, "1 example was missed over all epsilons, counted as fooled"),
        (6, {"square": (90, 13, 0)}, "7 of 100 at 8, the gradients are masked"),
        (7, {"targeted": (90, 13, 0)}, "7 of 100 at 8, the gradients are masked"),
    ],
)
def test_each_check_can_fail(place, change, detail):
    verdicts = sanity.checks(curves(**GOOD | SEARCHES | change))
    assert [i for i, check in enumerate(verdicts) if check.passed is False] == [place]
    assert str(verdicts[place]).startswith("FAIL  ")
    assert str(verdicts[place]).endswith(detail)


def test_what_chance_explains_does_not_fail():
    chance = {"fgsm": (90, 30, 32), "pgd2": (90, 32, 2), "square": (90, 17, 0)}
    verdicts = sanity.checks(curves(**GOOD | chance))
    assert verdicts[1].passed
    assert verdicts[3].passed
    assert str(verdicts[6]).endswith("3 of 100 at 8, at most, within chance")


def test_long_steps_may_overshoot_beyond_the_radius_that_halves():
    verdicts = sanity.checks(curves(**GOOD | {"fgsm": (90, 30, 60), "pgd2": (90, 25, 80)}))
    assert verdicts[1].passed
    assert verdicts[3].passed


def test_what_the_numbers_cannot_tell_is_open():
    noise_only = sanity.checks(curves(epsilons=(8.0,), noise=(88,)))
    assert [check.passed for check in noise_only] == [True] + [None] * 7
    weak = sanity.checks(
        curves(epsilons=(0.0, 8.0), noise=(90, 90), fgsm=(90, 85), strong=(90, 80))
    )
    assert [check.passed for check in weak] == [True, True, None, True, None, True, None, None]
    assert str(weak[2]).startswith("open  ")
    assert str(weak[2]).endswith("0.8000 at 8, strong; add an epsilon of 128 or more")
    l2 = curves(**GOOD | {"strong": (90, 20, 2)})
    l2 = dataclasses.replace(l2, settings=dataclasses.replace(l2.settings, norm="l2"))
    assert sanity.checks(l2)[2].passed is None
    assert sanity.checks(l2)[2].detail.endswith("; add an epsilon larger than that")


def test_rounding_may_flip_one_example_in_a_thousand():
    few = curves(**GOOD)
    many = {name: np.tile(right, 10) for name, right in few.correct.items()}
    clean = np.tile(few.clean_correct, 10)
    found = dataclasses.replace(few, correct=many, clean_correct=clean, strong_alone=many["strong"])
    passed = {
        accuracy: sanity.checks(dataclasses.replace(found, clean=accuracy))[0].passed
        for accuracy in (0.898, 0.899, 0.901, 0.902)
    }
    assert passed == {0.898: False, 0.899: True, 0.901: True, 0.902: False}


def test_attacks_are_compared_on_the_examples_that_both_have():
    """What the strong attack doesn't see of FGSM's curve, its later images, changes no verdict."""
    some = curves(**GOOD | SEARCHES)
    more = {**some.correct, "fgsm": np.concatenate([some.correct["fgsm"], [[1] * 100] * 3], 1) > 0}
    clean = np.concatenate([some.clean_correct, [True] * 100])
    longer = dataclasses.replace(some, correct=more, clean=0.95, clean_correct=clean)
    assert [check.passed for check in sanity.checks(longer)] == [True] * 8


def test_what_a_file_of_bits_lacks_is_said(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"no archive")
    np.savez(tmp_path / "b.npz", epsilons=np.zeros(3))
    for name, reason in (
        ("a.npz", "damaged: "),
        ("b.npz", "damaged: clean is missing"),
        ("c.npz", "No such file or directory"),
    ):
        with pytest.raises(UserError) as error:
            robustness.load(tmp_path / name)
        assert str(error.value).startswith(f"{tmp_path / name}: {reason}")
        assert str(error.value).endswith("; measure the attacks again")


def test_a_flipped_bit_is_found_or_harmless(tmp_path):
    bits.write(tmp_path / "whole.npz", curves(**GOOD))
    whole = (tmp_path / "whole.npz").read_bytes()
    found = collections.Counter()
    for place in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        (tmp_path / "flipped.npz").write_bytes(damaged)
        try:
            robustness.load(tmp_path / "flipped.npz")
        except UserError as error:
            found["damaged: " in str(error)] += 1
    assert found.keys() == {True}
    assert found[True] > len(whole) / 6


def test_the_picture_tells_the_lines_apart_and_shows_every_epsilon():
    settings = curves(**GOOD)
    (axes,) = report.figure(settings, "a title").axes
    assert [line.get_label() for line in axes.lines] == ["strong", "FGSM", "PGD-2", "random noise"]
    assert [line.get_ydata()[1] for line in axes.lines] == [20, 30, 25, 88]
    assert len({(line.get_linestyle(), line.get_marker()) for line in axes.lines}) == 4
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "8", "128"]
    assert (axes.get_xlabel(), axes.get_title()) == ("epsilon (1/255)", "a title")
    assert axes.lines[0].get_color() == plots.series(0)["color"]
