"""Figures and tables of E13 to E15, against planted numbers and NumPy and SciPy alone.

Over 400 lines: the three experiments share the planted numbers below.
"""

import dataclasses
import itertools
import json
import math
import types

import numpy as np
import pytest
from scipy import stats

from randmix import models
from randmix.analysis import plots
from randmix.experiments import sweep
from randmix.models import counts
from randmix.reproduce import (
    frozen_filters,
    lattice,
    measurements,
    numbers,
    plan,
    presets,
    scaling,
    tables,
)
from randmix.reproduce.measurements import BANK
from randmix.reproduce.numbers import Number, Numbers
from randmix.workdir import artifacts

SMOKE = presets.get("smoke")
MODES = ("floor", "space", "chans", "full")
DRAWN = {
    "E13": lattice.draw,
    "E13-overview": lattice.draw_overview,
    "E14": frozen_filters.draw,
    "E15": scaling.draw,
}


def planted(experiment, values, metric="accuracy", **settings):
    """One number per seed in ``values``; names of settings have "__" for dots."""
    keys = {
        **{"data.name": "digits", "model.name": "convmixer", "mode": "chans"},
        **{"model.width": 8, "model.depth": 2, "model.kernel_size": 3, "total_steps": 10},
        **{name.replace("__", "."): value for name, value in settings.items()},
    }
    run = "-".join(map(str, keys.values()))
    return [
        Number(experiment, keys["mode"], keys, seed, metric, float(value), f"{run}-{seed}")
        for seed, value in enumerate(values)
    ]


def interval(values, digits=2):
    """A mean with Student's 95 % interval, as the tables print it."""
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    ends = (np.mean(values), low, high)
    mean, low, high = (f"{end:.{digits}f}".replace("-", "\N{MINUS SIGN}") for end in ends)
    return f"{mean} [{low}, {high}] ({len(values)})"


def texts(table):
    return {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}


def build(experiment, found):
    return tables.build(experiment, Numbers(found), [])


def drawn(experiment, found):
    with plots.style():
        return DRAWN[experiment](Numbers(found))


@pytest.fixture
def corners():
    """Accuracies [mode, seed] of two families."""
    random = np.random.default_rng(0)
    means = np.asarray([[0.4, 0.55, 0.7, 0.75], [0.3, 0.35, 0.7, 0.8]])
    return means[..., None] + random.normal(0, 0.01, (2, 4, 5))


def of_corners(corners):
    found = []
    for name, accuracies in zip(("convmixer", "resnet"), corners, strict=True):
        for mode, values, learned in zip(MODES, accuracies, (10, 30, 80, 100), strict=True):
            about = {"mode": mode, "model__name": name}
            found += planted("E13", values, **about)
            for metric, value in (("trainable", learned), ("parameters", 100)):
                found += planted("E13", [value] * len(values), metric, **about)
            found += planted("E13", [1e5 * learned] * len(values), "training_step", **about)
    return found


def test_the_lattice_joins_the_modes_that_differ_in_one_role(corners):
    picture = drawn("E13", of_corners(corners))
    for axes, accuracies in zip(picture.figure.axes, 100 * corners, strict=True):
        floor, space, chans, full = places = [
            *zip((10, 30, 80, 100), accuracies.mean(1), strict=True)
        ]
        sides = [line.get_xydata() for line in axes.lines if len(line.get_xdata()) == 2]
        expected = [(floor, space), (chans, full), (floor, chans), (space, full)]
        np.testing.assert_allclose(sides, expected)
        (diamond,) = (line for line in axes.lines if line.get_label() == "sum of both alone")
        additive = places[1][1] + places[2][1] - places[0][1]
        np.testing.assert_allclose(diamond.get_xydata(), [(100, additive)])
        assert axes.get_xscale() == "log"
        assert not axes.texts  # labels of close corners would lie on one another
    (legend,) = picture.figure.legends
    named = {text.get_text() for text in legend.get_texts()}
    assert named >= {"Floor: norms, head", "Space: + spatial", "Chans: + channel", "Full: both"}
    assert len(picture.rows) == 2 * 4 * 5  # modes and seeds
    assert picture.rows[0]["accuracy"] == pytest.approx(100 * corners[0, 0, 0])


def test_the_lattice_in_numbers(corners):
    overview, modes, roles = build("E13", of_corners(corners))
    floor, space, chans, full = 100 * corners[1]
    title = "separable ResNet, width 8, depth 2, k 3, Digits"
    way = 100 * (space - floor) / (full - floor)
    rows = [[cell.text for cell in row] for row in modes.rows]
    assert rows[5] == [title, *[""] * 7]
    assert rows[7] == [
        "Space (+ spatial)",
        f"{space.mean():.1f} ± {space.std(ddof=1):.1f} (5)",
        f"{way.mean():.0f} ± {way.std(ddof=1):.0f} (5)",
        *("30", "30.0", "3"),
        *(f"{(space - floor).mean() / 0.02:.3g}", f"{(space - floor).mean() / 2:.3g}"),
    ]
    assert rows[6][-2:] == ["n/a", "n/a"]  # Floor itself
    assert texts(overview)[title][1] == f"{space.mean():.1f} ± {space.std(ddof=1):.1f} (5)"
    assert texts(roles)[title] == [
        interval(space - floor),
        interval(chans - floor),
        interval(full - floor),
        interval(full - space - chans + floor),
        interval(chans - space),
        interval(space - floor - 0.9 * (full - floor)),
        interval(chans - floor - 0.9 * (full - floor)),
    ]


@pytest.mark.parametrize(
    ("accuracies", "sufficient"),
    [
        ((0.4, 0.55, 0.75, 0.75), "channel"),
        ((0.4, 0.72, 0.55, 0.75), "spatial"),
        ((0.4, 0.72, 0.76, 0.75), "either"),
        ((0.4, 0.5, 0.71, 0.75), "only both"),
        ((0.4, 0.5, [0.72, 0.69, 0.75], 0.75), "not decided"),  # 0.72 to 0.715, which is asked
        ((0.73, 0.73, 0.74, 0.75), "n/a"),
    ],
)
def test_the_part_that_suffices(corners, accuracies, sufficient):
    spread = np.asarray([-0.01, 0, 0.01])
    families = [[np.asarray(values) + spread for values in accuracies], corners[1]]
    overview, *_ = build("E13", of_corners(families))
    assert overview.rows[0][-1].text == sufficient


def test_the_halving_radius_where_it_was_measured(corners):
    found = of_corners(corners)
    for epsilon, value in ((0, 0.8), (1, 0.6), (2, 0.5), (4, 0.3), (8, 0.0)):
        about = {"mode": "chans", "model__name": "resnet", "epsilon": epsilon}
        found += planted("E13", [value, value], "fgsm", **about)
    for epsilon, value in ((0, 0.8), (1, 0.6), (2, 0.5), (8, 0.3)):
        about = {"mode": "full", "model__name": "resnet", "epsilon": epsilon}
        found += planted("E13", [value, value], "fgsm", **about)
    _, modes, roles = build("E13", found)
    # Chans crosses 0.4 at 2**1.5, and Full at 2**2, linear in log2.
    octaves = "{0}0.50 [{0}0.50, {0}0.50] (2)".format("\N{MINUS SIGN}")
    assert [cells[-1] for cells in texts(roles).values()] == ["n/a", octaves]
    full = f"{2**2:.2f} ± 0.00 (2)"
    radius = f"{2 ** (1 + 0.1 / 0.2):.2f} ± 0.00 (2)"  # at 0.4, linear in log2
    assert [row[-1].text for row in modes.rows[5:]] == ["", "n/a", "n/a", radius, full]


def test_a_radius_outside_the_grid_is_no_zero(corners):
    found = of_corners(corners)
    for epsilon, accuracies in ((0, [0.8, 0.8]), (1, [0.6, 0.3]), (2, [0.2, 0.1])):
        about = {"mode": "chans", "model__name": "resnet", "epsilon": epsilon}
        found += planted("E13", accuracies, "fgsm", **about)
    _, modes, _ = build("E13", found)
    assert [row[-1].text for row in modes.rows[5:]] == ["", "n/a", "n/a", "outside the grid", "n/a"]


def test_the_overview_has_a_line_for_each_family(corners):
    found = of_corners(corners)
    for mode, accuracies in (("chans", [0.3, 0.3]), ("floor", [0.5, 0.3])):  # one never halves
        for epsilon, values in ((0, [0.8, 0.8]), (2, [0.5, 0.5]), (4, accuracies)):
            about = {"mode": mode, "model__name": "resnet", "epsilon": epsilon}
            found += planted("E13", values, "fgsm", **about)
    found += planted("E13", [0.9], mode="full", model__name="convmixer", model__width=99)
    picture = drawn("E13-overview", found)
    accuracy, radius = picture.figure.axes
    lines = [label.get_text().partition("\n")[0] for label in accuracy.get_yticklabels()]
    assert lines == ["separable ResNet", "ConvMixer"]  # the better Full is above
    marks = [line.get_xydata()[0] for line in accuracy.lines if len(line.get_xdata()) == 1]
    means = 100 * corners.mean(2)
    expected = [(mean, y) for y, family in enumerate(means[::-1]) for mean in family]
    np.testing.assert_allclose(marks, expected)
    ticks, mark = radius.lines[-2:]
    np.testing.assert_allclose(mark.get_xydata(), [(2**1.5, 0)])
    np.testing.assert_allclose(ticks.get_xdata(), [2**1.5] * 2)
    assert radius.get_xscale() == "log"
    assert [row["seeds"] for row in picture.rows] == 8 * [5] + [2]


def test_families_of_one_width_are_not_averaged():
    found = []
    for model, value in (("convmixer", 0.6), ("resnet", 0.8)):
        found += planted("E4", [value], mode="full", model__name=model, model__width=16)
    (table,) = build("E4", found)
    assert [row[1].text for row in table.rows] == ["60.0 (1)", "80.0 (1)"]


def test_a_sum_above_every_accuracy_stands_at_the_top(corners):
    (axes, _) = drawn("E13", of_corners(corners + 0.2)).figure.axes
    (triangle,) = (line for line in axes.lines if "above 100 %" in line.get_label())
    np.testing.assert_allclose(triangle.get_xydata(), [(100, 100)])


def test_a_lattice_without_all_its_corners_is_drawn(corners):
    found = Numbers(r for r in of_corners(corners) if r.mode in ("floor", "chans"))
    axes = drawn("E13", found).figure.axes[0]
    assert sum(len(line.get_xdata()) == 2 for line in axes.lines) == 1
    assert not any(line.get_label().startswith("sum") for line in axes.lines)
    _, modes, roles = build("E13", found)
    assert [row[2].text for row in modes.rows] == ["", "n/a", "n/a"] * 2
    assert {cells[3] for cells in texts(roles).values()} == {"n/a"}


def test_families_that_differ_in_size_or_mixer_have_panels_of_their_own():
    found = []
    for mixer, width in itertools.product(("attention", "token_mlp"), (8, 16)):
        about = {"mode": "full", "model__name": "metaformer"}
        about |= {"model__mixer": mixer, "model__width": width}
        found += planted("E13", [0.8], **about) + planted("E13", [5], "trainable", **about)
    titles = [axes.get_title() for axes in drawn("E13", found).figure.axes]
    assert titles[-1] == "MetaFormer, token MLP\nwidth 16, depth 2, Digits"
    assert len({*titles}) == 4


def test_the_kernel_size_of_a_mixer_without_a_window_is_not_told():
    found = []
    for mixer, k in (("attention", 3), ("depthwise", 3), ("depthwise", 5)):
        about = {"model__name": "metaformer", "model__mixer": mixer, "model__kernel_size": k}
        found += planted("E13", [0.6, 0.7], "train_accuracy", **about)
    titles = [row[0].text for table in build("E13", found) for row in table.rows]
    assert "Digits, attention" in titles
    assert "Digits, kernel size 5, depthwise" in titles


@pytest.mark.parametrize("experiment", ["E2", "E13"])
def test_the_cost_of_a_step_is_that_of_the_model_that_was_trained(tmp_path, experiment):
    run = dataclasses.replace(plan.build(SMOKE, ("E2",), (0,))[1][0], experiments=(experiment,))
    assert run.config.mode == "chans"
    folder = run.folder(tmp_path)
    folder.mkdir(parents=True)
    (folder / artifacts.CONFIG).write_text(run.resolved.to_json())
    result = {
        **{"mode": "chans", "step": 3, "seed": 0, "wall_seconds": 1.0, "versions": {}},
        "device": {"kind": "cpu", "platform": "cpu", "count": 1},
        **{"metrics": {"test_accuracy": 0.7}, "parameters": {"trainable": 10, "frozen": 20}},
    }
    (folder / artifacts.RESULT).write_text(json.dumps(result))
    (folder / artifacts.METRICS).write_text("")
    data = {"name": "digits", "version": "1.0.0", "classes": [*"0123456789"]}
    data |= {"image_shape": [8, 8, 1], "num_classes": 10}
    (folder / artifacts.DATA).write_text(json.dumps(data))
    found = numbers.collect([(run,)], sweep.collect([(run,)], tmp_path), SMOKE)
    model = models.build("resnet", width=2, depth=1, num_classes=10)
    expected = counts.training_step(counts.multiply_adds(model, (8, 8, 1)), "chans")
    ours = [expected] if experiment == "E13" else []
    assert [number.value for number in found.where(metric="training_step")] == ours
    assert [n.value for n in found.where(metric="parameters")] == [30][: len(ours)]


BANKS = {"random": 0.73, "same": 0.66, "dct": 0.74, "from=@0a1b": 0.76}
TITLES = ["Learned elsewhere", "DCT", "Different", "Same"]  # by accuracy


@pytest.fixture
def frozen():
    """Accuracies of banks [bank, seed], which differ less than seeds do."""
    random = np.random.default_rng(1)
    common = random.normal(0, 0.05, 5)
    return {name: mean + common + random.normal(0, 0.002, 5) for name, mean in BANKS.items()} | {
        "full": 0.78 + common,
        "floor": 0.4 + common,
    }


def of_banks(frozen):
    found = []
    for name, values in frozen.items():
        if name in ("full", "floor"):
            found += planted("E14", values, mode=name)
        else:
            rank = {"bank_rank": 1 if name == "same" else 9, "bank_coverage": 0.5}
            found += planted("E14", values, **rank, model__filters=name)
    return found


def test_banks_are_sorted_and_held_against_different(frozen):
    left, right = drawn("E14", of_banks(frozen)).figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == TITLES
    differences = {name: 100 * (frozen[name] - frozen["random"]) for name in BANKS}
    names = ["from=@0a1b", "dct", "random", "same"]
    for axes, values in ((left, frozen | {}), (right, differences)):
        scale = 100 if axes is left else 1
        points = [line for line in axes.lines if line.get_marker() == "o"]
        at = {line.get_ydata()[0]: line.get_xdata()[0] for line in points}
        shown = [y for y in range(4) if axes is left or names[y] != "random"]
        assert at == pytest.approx({y: scale * values[names[y]].mean() for y in shown})
    ends = [text.get_text() for text in left.texts]
    assert ends == ["Full", "Floor"]


def test_banks_in_numbers(frozen):
    (table,) = build("E14", of_banks(frozen))
    assert table.caption.startswith("ConvMixer, width 8, depth 2, k 3, Digits: test accuracy")
    assert [*texts(table)] == ["Full", *TITLES, "Floor"]
    values, difference = 100 * frozen["same"], 100 * (frozen["same"] - frozen["random"])
    assert texts(table)["Same"] == [
        *("1", "0.50", f"{values.mean():.1f} ± {values.std(ddof=1):.1f} (5)"),
        interval(difference),
    ]


@pytest.mark.parametrize(
    ("seeds", "titles"),
    [
        ({"from=@a": (0, 1), "from=@b": (2,)}, {"Learned elsewhere": 3}),
        (
            {"from=@a": (0, 1), "from=@b": (0,)},
            {"Learned elsewhere 1": 2, "Learned elsewhere 2": 1},
        ),
    ],
)
def test_filters_from_several_runs_are_one_kind_unless_a_seed_has_several(seeds, titles):
    found = Numbers(
        number
        for name, own in seeds.items()
        for number in planted("E14", [0.8, 0.8, 0.8], model__filters=name)
        if number.seed in own
    )
    assert {title: len(part) for title, part in frozen_filters.banks(found).items()} == titles


def test_the_filters_of_e14_are_measured():
    groups = plan.build(SMOKE, ("E5",), (0,))
    for (run,) in groups:
        own = dataclasses.replace(run, experiments=("E14",))
        # Other runs start from what Full learns; the frozen banks of Chans have a rank.
        needed = {"full": measurements.LAYERS, "chans": BANK}.get(run.config.mode)
        without, measured = (types.SimpleNamespace(measurements=m) for m in ({}, {needed: {}}))
        assert measurements.complete(own, without, SMOKE) == (needed is None)
        assert measurements.complete(own, measured, SMOKE)


def of_law(slope, *, sizes, seeds=5, metric="accuracy", setting="model__width", **settings):
    """Numbers whose log error ratio is 0.5 + slope log2 size and noise, and the ratios by size."""
    random = np.random.default_rng(2)
    found, ratios = [], {}
    for size in sizes:
        ratios[size] = 0.5 + slope * math.log2(size) + random.normal(0, 0.02, seeds)
        errors = random.uniform(0.1, 0.2, seeds)
        about = {**settings, setting: size}
        found += planted("E15", 1 - errors, metric, **about, mode="full")
        found += planted("E15", 1 - errors * np.exp(ratios[size]), metric, **about)
    return found, ratios


def test_slopes_are_per_doubling():
    found, ratios = of_law(-0.1, sizes=(2, 4, 16))
    values = np.stack([*ratios.values()])
    (slopes, gaps) = build("E15", found)
    by_seed = np.polyfit([1, 2, 4], values, 1)[0]
    title = "width: ConvMixer, depth 2, k 3, Digits"
    factor = f"{np.exp(by_seed.mean()):.2f}"
    assert texts(slopes) == {title: ["2 to 16", interval(by_seed, 3), factor]}
    expected = {str(size): [interval(own)] for size, own in ratios.items()}
    assert texts(gaps) == {title: [""], **expected}
    picture = drawn("E15", found)
    width = picture.figure.axes[0]
    (bars,) = width.containers
    np.testing.assert_allclose(bars[0].get_ydata(orig=False), values.mean(1))
    half = stats.t.ppf(0.975, 4) * stats.sem(values, axis=1)
    ends = np.asarray([segment[:, 1] for segment in bars[2][0].get_segments()])
    np.testing.assert_allclose(np.diff(ends)[:, 0], 2 * half)
    assert [axes.get_xlabel() for axes in picture.figure.axes] == ["width"]


def test_each_axis_has_its_runs_and_its_accuracy():
    width, _ = of_law(0.0, sizes=(4, 8))
    depth, _ = of_law(0.0, sizes=(1, 2), setting="model__depth", model__name="resnet")
    held_out = {"metric": "validation_accuracy", "setting": "total_steps", "seeds": 2}
    steps, _ = of_law(0.1, sizes=(10, 20), **held_out, data__validation=0.1)
    found = Numbers([*width, *depth, *steps])
    titles = [[one.title for one in scaling.lines(found, key, of)] for key, _, of in scaling.AXES]
    assert titles == [
        ["ConvMixer, depth 2, k 3, Digits"],
        ["separable ResNet, width 8, k 3, Digits"],
        ["ConvMixer, width 8, depth 2, k 3, Digits"],
    ]


def test_a_model_without_errors_has_no_gap():
    found, ratios = of_law(-0.1, sizes=(2, 4, 8))
    perfect = [
        dataclasses.replace(r, value=1.0)
        if (r.settings["model.width"], r.seed, r.mode) == (4, 0, "chans")
        else r
        for r in found
    ]
    slopes, gaps = build("E15", perfect)
    assert [*texts(slopes).values()] == [["2 to 8", "n/a", "n/a"]]
    cells = [row[1].text for row in gaps.rows]
    assert cells == ["", interval(ratios[2]), "n/a", interval(ratios[8])]
    (bars,) = drawn("E15", perfect).figure.axes[0].containers
    assert len(bars[0].get_ydata()) == 2
    note = "ConvMixer, depth 2, k 3, Digits:\nwidth 4: a model makes no error"
    assert drawn("E15", perfect).figure.axes[0].get_title("left") == note
    other, _ = of_law(-0.1, sizes=(2, 4, 8), model__name="resnet")
    without = [dataclasses.replace(r, value=1.0) for r in other]
    (legend,) = [one.get_legend() for one in drawn("E15", found + without).figure.axes]
    assert [text.get_text() for text in legend.get_texts()] == ["ConvMixer\ndepth 2, k 3, Digits"]
    assert "go on" not in drawn("E15", found).figure.axes[0].get_ylabel()
    all_perfect = [dataclasses.replace(r, value=1.0) for r in found]
    assert drawn("E15", all_perfect).figure.axes[0].texts[0].get_text() == "no size is left"


@pytest.mark.parametrize("experiment", DRAWN)
def test_little_is_drawn_as_it_is(experiment, frozen, corners):
    lattices = of_corners(corners)
    full = {
        "E13": lattices,
        "E13-overview": lattices,
        "E14": of_banks(frozen),
        "E15": of_law(0, sizes=(2, 4))[0],
    }
    one_seed = [r for r in full[experiment] if r.seed == 0]
    assert drawn(experiment, one_seed).rows
    cells = [
        cell.text
        for table in build(experiment.partition("-")[0], one_seed)
        for row in table.rows
        for cell in row
    ]
    assert not any("[" in text or "nan" in text for text in cells)
    some = [r for r in full[experiment] if r.mode == "chans"]
    assert (drawn(experiment, some) is None) == (experiment in ("E13-overview", "E15"))
    id = experiment.partition("-")[0]
    build(id, some)
    build(id, [dataclasses.replace(r, value=1.0) for r in full[experiment]])
    assert drawn(experiment, [r for r in full[experiment] if r.metric != "accuracy"]) is None
    assert drawn(experiment, []) is None
    assert build(id, []) == []
