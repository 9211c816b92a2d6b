"""Figures of a report: what their claims compare, and what their lines are to be held against."""

import dataclasses

import numpy as np
import pytest

from randmix.reproduce import figures
from randmix.reproduce.numbers import Number, Numbers

SEEDS = range(3)


def numbers(experiment, metric, value, **over):
    """``value(seed, **settings)`` of each seed and combination of settings; "__" is a dot."""
    names, found = [*over], Numbers()
    for values in np.stack(np.meshgrid(*map(np.arange, map(len, over.values()))), -1).reshape(
        -1, len(over)
    ):
        at = {name: over[name][i] for name, i in zip(names, values, strict=True)}
        for seed in SEEDS:
            settings = {
                **{"data.name": "cifar100", "num_classes": 100},
                **{"model.name": "resnet", "model.depth": 1},
                **{name.replace("__", "."): one for name, one in at.items()},
            }
            found.append(
                Number(
                    *(experiment, settings.get("mode", ""), settings, seed, metric),
                    value(seed, **at),
                    f"run{seed}",
                )
            )
    return found


def horizontal(axes):
    """The heights of the horizontal lines across a panel, by label."""
    return {
        line.get_label(): line.get_ydata()[0]
        for line in axes.lines
        if [*line.get_xdata()] == [0, 1] and len({*line.get_ydata()}) == 1
    }


@pytest.mark.parametrize(("name", "size"), [("E2", "model__depth"), ("E4", "model__width")])
def test_accuracy_stands_above_chance_and_the_difference_below(name, size):
    random = np.random.default_rng(0)
    planted = random.uniform(0.3, 0.9, (2, 4, 3))
    modes, sizes = ("full", "chans"), (1, 2, 4, 8)
    found = numbers(
        *(name, "accuracy"),
        lambda seed, mode, **at: planted[modes.index(mode), sizes.index(at[size]), seed],
        **{"mode": modes, size: sizes, "data__name": ("imagefolder/cifar100",)},
    )
    picture = figures.DRAWN[name](found)
    above, below = picture.figure.axes
    assert above.get_ylim()[0] == 0
    assert horizontal(above)["chance"] == 1  # of 100 classes
    assert above.get_title().endswith("CIFAR-100 (JPEG)")
    differences = 100 * (planted[0] - planted[1])
    rows = [row for row in picture.rows if row["series"] == "Full - Chans"]
    assert [row["mean"] for row in rows] == pytest.approx([*differences.mean(1)])
    (bars,) = below.containers
    ends = np.asarray([segment[:, 1] for segment in bars[2][0].get_segments()])
    half = 4.302653 * differences.std(1, ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(ends[:, 1] - ends[:, 0], 2 * half, rtol=1e-5)


def test_an_axis_of_high_accuracies_starts_where_it_says():
    level = {"full": 0.97, "chans": 0.93, "floor": 0.76}
    found = numbers(
        *("E2", "accuracy", lambda seed, mode, **at: level[mode]),
        **{"mode": tuple(level), "model__depth": (1, 2)},
    )
    above, _ = figures.DRAWN["E2"](found).figure.axes
    assert above.get_ylim()[0] == 70
    assert above.get_ylabel().endswith("axis from 70 %")
    assert [text.get_text() for text in above.texts] == ["chance: 1 %"]
    assert not horizontal(above)


def test_families_have_panels_of_their_own():
    level = {"resnet": 0.5, "convmixer": 0.7}
    found = numbers(
        *("E4", "accuracy"),
        lambda seed, mode, model__name, **at: level[model__name],
        **{"mode": ("full", "chans"), "model__name": tuple(level), "model__width": (4, 8)},
    )
    rows = figures.DRAWN["E4"](found).rows
    for row in rows:
        expected = 0 if row["series"] == "Full - Chans" else 100 * level[row["model"]]
        assert row["mean"] == pytest.approx(expected)


def test_robustness_is_drawn_as_it_is_judged():
    # Accuracy falls by half an octave's worth later for Chans, in a straight line in log2.
    def accuracy(seed, mode, epsilon, **at):
        shift = 0.5 * (mode == "chans") + 0.01 * seed * (mode == "chans")
        return 0.8 if not epsilon else 0.8 * (0.5 - (np.log2(epsilon) - 2 - shift) / 6)

    found = numbers(
        *("E6", "fgsm", accuracy),
        **{"mode": ("full", "chans"), "epsilon": (0.0, 1.0, 2.0, 4.0, 8.0)},
    )
    picture = figures.DRAWN["E6-octaves"](found)
    by_line = {(row["attack"], row["defended"]): row for row in picture.rows}
    assert by_line["fgsm", False]["octaves"] == pytest.approx(0.51)
    assert by_line["fgsm", False]["low"] == pytest.approx(0.51 - 4.302653 * 0.01 / np.sqrt(3))
    assert by_line["strong", True]["seeds"] == 0
    texts = [text.get_text() for text in picture.figure.axes[0].texts]
    assert texts == ["no runs"] * 5


@pytest.mark.parametrize(("classes", "drawn"), [(10, [8.0]), (100, [8.0, 16.0])])
def test_gains_are_relative_to_accuracies_that_no_image_decides(classes, drawn):
    plain = {0.0: 0.9, 8.0: 0.6, 16.0: 0.16, 32.0: 0.04}  # of seed 0; of seed 2 less
    over = {"model__smoothing_index": (0.0, 1.0), "num_classes": (classes,), "mode": ("chans",)}

    def accuracy(seed, epsilon, model__smoothing_index, **at):
        return (plain[epsilon] - 0.04 * seed) * (1 + 0.1 * model__smoothing_index)

    found = numbers("E7", "fgsm", accuracy, **over, epsilon=tuple(plain))
    found += numbers("E7", "accuracy", lambda seed, **at: 0.9, **over)
    picture = figures.DRAWN["E7"](found)
    assert {row["epsilon"] for row in picture.rows} == {*drawn}
    assert [row["relative_gain"] for row in picture.rows] == pytest.approx([0, 10] * len(drawn))
    least = {10: 10, 100: 5}[classes]
    assert picture.figure.axes[0].get_title().endswith(f"less than {least} % accuracy")
    # Where each leaves a seed too little, the smallest is drawn, unless nearly nothing is left.
    from_16, from_32 = (
        figures.DRAWN["E7"](Numbers(r for r in found if r.settings.get("epsilon", 99) >= least))
        for least in (16, 32)
    )
    assert {row["epsilon"] for row in from_16.rows} == {16.0}
    assert from_32 is None


def test_gains_compare_the_seeds_that_have_all_indices():
    gain = {0: 5.0, 1: 10.0, 2: 20.0}  # per cent an index, by seed

    def accuracy(seed, model__smoothing_index, **at):
        return 0.5 * (1 + gain[seed] * model__smoothing_index / 100)

    over = {"model__smoothing_index": (0.0, 1.0, 2.0), "mode": ("chans",)}
    found = numbers("E7", "fgsm", accuracy, **over, epsilon=(8.0,))
    found += numbers("E7", "accuracy", lambda seed, **at: 0.9, **over)
    found += numbers("E7", "accuracy", lambda seed, **at: 0.9, model__smoothing_index=(4.0,))
    late = [r for r in found if r.seed == 0 and r.settings["model.smoothing_index"] == 2]
    picture = figures.DRAWN["E7"](Numbers(r for r in found if r not in late))
    # Of seeds 1 and 2; index 4 wasn't attacked yet.
    assert [row["smoothing_index"] for row in picture.rows] == [0, 1, 2]
    assert [row["relative_gain"] for row in picture.rows] == pytest.approx([0, 15, 30])


def test_a_psnr_is_held_against_its_baselines():
    over = {"mode": ("full", "chans"), "model__width": (8, 16), "model__kernel_size": (7,)}
    found = Numbers()
    known = {"psnr": 20.0, "mean_image_psnr": 10.9, "linear_psnr": 17.5, "reach": 0.62}
    for metric, value in known.items():
        found += numbers("E10", metric, lambda seed, value=value, **at: value, **over)
    (axes,) = figures.DRAWN["E10"](found).figure.axes
    assert horizontal(axes) == pytest.approx(
        {"mean training image": 10.9, "linear regression within reach": 17.5}
    )
    older = Numbers(number for number in found if number.metric != "linear_psnr")
    (axes,) = figures.DRAWN["E10"](older).figure.axes
    assert [*horizontal(axes)] == ["mean training image"]
    assert axes.get_title().endswith("reach 62 %")
    older += numbers("E10", "linear_psnr", lambda seed, **at: 41.4, **over)
    (axes,) = figures.DRAWN["E10"](older).figure.axes
    assert [*horizontal(axes)] == ["mean training image"]
    assert axes.get_title().endswith("reach 62 %\nlinear regression within reach: 41 dB")


def test_the_legend_names_a_mode_that_one_panel_alone_has():
    found = Numbers()
    for kernel, modes in ((5, ("full", "chans")), (7, ("full", "chans", "space"))):
        over = {"mode": modes, "model__width": (8, 16), "model__kernel_size": (kernel,)}
        found += numbers("E10", "psnr", lambda seed, **at: 20.0, **over)
        if kernel == 5:
            found += numbers("E10", "mean_image_psnr", lambda seed, **at: 10.9, **over)
    (legend,) = figures.DRAWN["E10"](found).figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["Full", "Chans", "Space", "mean training image"]


def test_shares_lie_between_chans_and_full():
    level = {0.0: 0.6, 0.25: 0.75, 1.0: 0.8}
    found = numbers(
        *("E12", "accuracy", lambda seed, share, **_: level[share] + 0.001 * seed),
        share=tuple(level),
        data__name=("imagefolder/pets",),  # any data set
    )
    (axes,) = figures.DRAWN["E12"](found).figure.axes
    assert horizontal(axes) == pytest.approx({"Chans": 60.1, "Full": 80.1})
    assert figures.DRAWN["E12"](Numbers()) is None


def test_a_line_has_the_seeds_that_most_of_its_points_have():
    level = {0.0: 0.6, 0.25: 0.75, 0.5: 0.7, 1.0: 0.8}
    found = numbers(
        *("E12", "accuracy", lambda seed, share, **_: level[share] + 0.001 * seed),
        share=tuple(level),
    )
    # The ends are runs of another experiment, too, which has more seeds.
    more = [r for r in found if r.seed < 2 and r.settings["share"] in (0.0, 1.0)]
    found += [dataclasses.replace(r, seed=r.seed + 3, value=r.value + 0.1) for r in more]
    picture = figures.DRAWN["E12"](found)
    assert [(row["share"], row["seeds"]) for row in picture.rows] == [(x, 3) for x in level]
    (axes,) = picture.figure.axes
    assert horizontal(axes) == pytest.approx({"Chans": 60.1, "Full": 80.1})


def test_banks_of_chosen_rank_are_drawn_without_others():
    level = {9: 0.9, 3: 0.85, 1: 0.8}
    found = numbers(
        *("E3", "accuracy", lambda seed, bank_rank, **_: level[bank_rank]),
        **{"bank_rank": tuple(level), "bank_coverage": (1.0,), "mode": ("chans",)},
        **{"model__filters": ("delta",), "model__filter_rank": (9,)},
    )
    picture = figures.DRAWN["E3"](found)
    assert {row["rank"]: row["accuracy"] for row in picture.rows} == pytest.approx(
        {rank: 100 * value for rank, value in level.items()}
    )
    assert figures.DRAWN["E3"](Numbers()) is None
