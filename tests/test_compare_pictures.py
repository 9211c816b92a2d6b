"""Pictures of runs side by side, and the page that holds them."""

import io
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest
from comparisons import ACCURACIES, GRID, accuracies, record
from matplotlib.text import Text

from randmix.analysis import compare as pictures
from randmix.errors import UserError
from randmix.experiments import compare, formatting


def curve(metric, factor, steps, seed, mode):
    log = [{"step": s, "epoch": round(s / 7, 4), metric: factor * s} for s in steps]
    return record(
        {"test_accuracy": 0.5}, [*log, {"step": steps[-1], "test_loss": 1.0}], seed=seed, mode=mode
    )


@pytest.mark.parametrize("name", ["", "_x", "a$b$"])
def test_a_legend_names_any_text(name):
    found = [
        each
        for depth in (2, 4)
        for policy in (name, "rand-m9")
        for each in accuracies([0.5, 0.6], model__depth=depth, data__randaugment=policy)
    ]
    plot = pictures.plan(
        compare.side_by_side(found), x="depth", y="test_accuracy", hue="randaugment"
    )
    (legend,) = pictures.draw(plot).legends
    names = [text.get_text() for text in legend.get_texts()]
    assert sorted(names) == sorted(["rand-m9", {"": "''", "_x": "'_x'"}.get(name, r"a\$b\$")])


def test_a_picture_averages_seeds_alone():
    runs = compare.side_by_side(GRID)
    plot = pictures.plan(runs, x="depth", y="test_accuracy", hue="mode")
    (axes,) = pictures.draw(plot).axes
    assert axes.get_xscale() == "linear"  # 2 and 10 aren't powers of two
    for container, mode in zip(axes.containers, ("full", "chans", "space"), strict=True):
        seeds = 100 * np.array([ACCURACIES[mode, depth] for depth in (2, 10)])
        line, _, (bars,) = container
        np.testing.assert_allclose(np.array(line.get_xdata(), float), [2, 10], atol=0.2)
        np.testing.assert_allclose(line.get_ydata(), seeds.mean(1))
        ends = np.array([segment[:, 1] for segment in bars.get_segments()])
        np.testing.assert_allclose(np.ptp(ends, axis=1), 2 * seeds.std(1, ddof=1))
    alone = pictures.plan(runs, x="depth", y="test_accuracy")
    assert len(alone.rows()) == 6
    assert len(pictures.draw(alone).axes[0].containers) == 3


def test_other_keys_have_panels_and_words_have_ticks():
    more = [
        *GRID,
        *accuracies([0.5, 0.6], mode="full", model__depth=2, model__width=8),
        *accuracies([0.5, 0.6], mode="full", model__depth=2, model__activation="relu"),
    ]
    plot = pictures.plan(compare.side_by_side(more), x="mode", y="test_accuracy", hue="depth")
    axes = pictures.draw(plot).axes
    titles = [each.get_title() for each in axes]
    assert titles == [
        "activation gelu, width 8",
        "activation gelu, width 64",
        "activation relu, width 64",
    ]
    assert [tick.get_text() for tick in axes[0].get_xticklabels()] == ["full", "chans", "space"]


def test_powers_of_two_stand_at_equal_distances():
    found = [each for width in (4, 16, 64) for each in accuracies([0.5, 0.6], model__width=width)]
    plot = pictures.plan(compare.side_by_side(found), x="model.width", y="test_accuracy")
    (axes,) = pictures.draw(plot).axes
    assert axes.get_xscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["4", "16", "64"]
    assert plot.name == "test_accuracy-width"


def test_keys_without_a_value_are_values_too():
    found = [
        each
        for steps, base in ((None, 0.5), (7, 0.25))
        for flip in (True, False)
        for each in accuracies([base, base + flip / 8], steps=steps, data__flip=flip)
    ]
    runs = compare.side_by_side(found)
    rows = formatting.shown(compare.table(runs, {"steps": "None"}))
    assert [(row["flip"], row["steps"]) for row in rows] == [
        *(("False", "7"), ("False", "")),
        *(("True", "7"), ("True", "")),
    ]
    assert rows[0]["test accuracy minus steps=None (points)"].startswith("\N{MINUS SIGN}25.00 [")
    for x, ticks in (("flip", ["False", "True"]), ("steps", ["7", "None"])):
        axes = pictures.draw(pictures.plan(runs, x=x, y="test_accuracy")).axes[0]
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ticks


def test_a_learning_curve_has_the_steps_that_all_its_seeds_logged():
    found = [
        curve("train_loss", 1.0, [3, 6, 9], 0, "full"),
        curve("train_loss", 3.0, [6, 9], 1, "full"),
        curve("train_loss", 5.0, [3, 9], 0, "chans"),
    ]
    plot = pictures.plan(compare.side_by_side(found), x="epoch", y="train_loss", hue="mode")
    full, chans = pictures.draw(plot).axes[0].lines
    np.testing.assert_allclose(full.get_xydata(), [[6 / 7, 12], [9 / 7, 18]])
    np.testing.assert_allclose(chans.get_xydata(), [[3 / 7, 15], [9 / 7, 45]])
    rows = plot.rows()
    assert [row["seeds"] for row in rows] == [2, 2, 1, 1]
    np.testing.assert_allclose(rows[0]["train_loss_std"], np.std([6, 18], ddof=1))
    found[1] = curve("train_loss", 3.0, [4, 5], 1, "full")
    with pytest.raises(UserError, match="logged at no common step; compare runs with one"):
        pictures.plan(compare.side_by_side(found), x="step", y="train_loss")


@pytest.mark.parametrize(
    ("plot", "message"),
    [
        ({"x": "dept", "y": "test_accuracy"}, "--plot: x: got 'dept', allowed are the keys that"),
        ({"x": "width", "y": "test_accuracy"}, "--plot: x: got width, which is 64 in all runs"),
        ({"x": "depth", "y": "accuracy"}, "--plot: y: got 'accuracy', allowed test_accuracy; did"),
        (
            {"x": "depth", "y": "test_accuracy", "hue": "depth"},
            "--plot: hue: got depth, which is x",
        ),
        ({"x": "depth", "y": "test_accuracy", "hue": "m"}, "--plot: hue: got 'm', allowed are the"),
        ({"x": "step", "y": "train_loss"}, "--plot: x: got step, but the runs have no log"),
    ],
)
def test_a_mistaken_plot_is_one_line(plot, message):
    with pytest.raises(UserError) as error:
        pictures.plan(compare.side_by_side(GRID), **plot)
    assert message in str(error.value)


def test_a_metric_that_is_never_a_number_is_refused():
    runs = compare.side_by_side([*accuracies([np.nan], mode="full"), *accuracies([np.nan])])
    with pytest.raises(UserError, match=r"^--plot: y: got test_accuracy, which is not a number"):
        pictures.plan(runs, x="mode", y="test_accuracy")


def test_too_many_lines_are_refused():
    found = [each for d in range(1, 28) for each in accuracies([0.5], model__depth=d)]
    found += accuracies([0.5], mode="full")
    with pytest.raises(UserError, match="got 27 lines, one for each depth; allowed are up to 25"):
        pictures.plan(compare.side_by_side(found), x="mode", y="test_accuracy", hue="depth")


def test_a_page_is_whole_and_a_notebook_shows_the_table():
    runs = compare.side_by_side(GRID, ["runs/<a>"])
    table = compare.table(runs, {"mode": "full"})
    plot = pictures.plan(runs, x="depth", y="test_accuracy", hue="mode")
    text = pictures.page(runs, table, [(plot, pictures.draw(plot))])
    assert table._repr_html_() in text
    assert "1 run is not finished and left out: runs/&lt;a&gt;" in text
    assert all(each.name in text for each in GRID)
    assert "src=" not in text
    assert 'href="http' not in text
    ET.fromstring(text[text.index("<svg") : text.index("</svg>") + len("</svg>")])
    assert type(table[["mode", "seeds"]]) is pd.DataFrame  # which shows its own columns


def test_dollars_in_a_picture_are_no_mathematics():
    patterns = "path('a$') | path('b$')", r"path('$\\frac{1$')"
    found = [
        record({"test_accuracy": 0.5}, train=pattern, mode=mode)
        for pattern in patterns
        for mode in ("full", "chans")
    ]
    runs = compare.side_by_side(found)
    for plot in ({"x": "train", "hue": "mode"}, {"x": "mode", "hue": "train"}, {"x": "mode"}):
        figure = pictures.draw(pictures.plan(runs, y="test_accuracy", **plot))
        shown = [text for text in figure.findobj(Text) if "$" in text.get_text()]
        figure.savefig(io.BytesIO())
        assert len(shown) >= len(patterns)
        for text in shown:
            assert text._preprocess_math(text.get_text()) in (
                *((pattern, False) for pattern in patterns),
            )
