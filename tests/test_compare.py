"""Runs side by side: rows, columns, paired differences and pictures against other computations.

Every part of the table is held against NumPy and SciPy, hence the length.
"""

import io
import subprocess
import sys
import types
import xml.etree.ElementTree as ET

import command
import numpy as np
import pandas as pd
import pytest
from comparisons import accuracies, record
from matplotlib.text import Text
from scipy import stats

import randmix
from randmix import config as configs
from randmix.analysis import compare as pictures
from randmix.commands import compare as flags
from randmix.errors import UserError
from randmix.experiments import compare, formatting, records

GRID = [(mode, depth) for depth in (10, 2) for mode in ("space", "chans", "full")]


@pytest.fixture(scope="module")
def values():
    """Accuracies of three seeds by mode and depth."""
    rng = np.random.default_rng(0)
    return {key: rng.uniform(0.2, 0.9, 3) for key in GRID}


@pytest.fixture(scope="module")
def grid(values):
    """The records of these runs."""
    return [
        each
        for (mode, depth), seeds in values.items()
        for each in accuracies(seeds, mode=mode, model__depth=depth)
    ]


def saved(folder, found):
    for each in found:
        records.append(folder, each)
    return folder


def test_a_row_is_the_runs_that_differ_in_their_seed_alone(grid, values):
    table = compare.table(compare.side_by_side(grid), {})
    order = [(depth, mode) for depth in (2, 10) for mode in ("full", "chans", "space")]
    assert [*zip(table["model.depth"], table["mode"], strict=True)] == order
    for row, (depth, mode) in zip(table.to_dict("records"), order, strict=True):
        seeds = values[mode, depth]
        assert (row["seeds"], row["trainable"], row["parameters"]) == (
            3,
            10 * depth,
            10 * depth + 5,
        )
        np.testing.assert_allclose(row["test_accuracy"], np.mean(seeds), rtol=1e-12)
        np.testing.assert_allclose(row["test_accuracy_std"], np.std(seeds, ddof=1), rtol=1e-12)
    assert pd.api.types.is_numeric_dtype(table["model.depth"])
    assert table.attrs["about"].startswith("digits, convmixer, kernel_size 5, width 64")


@pytest.mark.parametrize("reference", [{"mode": "full"}, {"model.depth": 2}, {"depth": "2"}])
def test_a_difference_is_paired_by_seed_with_the_row_whose_other_keys_agree(
    grid, values, reference
):
    table = compare.table(compare.side_by_side(grid), reference)
    for row in table.to_dict("records"):
        mode, depth = row["mode"], row["model.depth"]
        other = ("full", depth) if "mode" in reference else (mode, 2)
        found = [row[f"test_accuracy_{name}"] for name in ("difference", "low", "high")]
        if other == (mode, depth):
            assert np.isnan(found).all()
            continue
        test = stats.ttest_rel(values[mode, depth], values[other])
        expected = np.mean(values[mode, depth] - values[other]), *test.confidence_interval()
        np.testing.assert_allclose(found, expected, atol=1e-8)
        assert row["test_accuracy_pairs"] == 3
    cells = {row["mode"]: row for row in formatting.shown(table) if row["depth"] == "2"}
    assert "reference" in cells["full"].values()


def test_the_order_of_files_and_of_their_lines_does_not_matter(grid, tmp_path):
    again = [record({"test_accuracy": 0.99}, seed=0, mode="full", model__depth=2)]  # elsewhere
    one = saved(tmp_path / "one", grid)
    other = saved(tmp_path / "other", again + grid[::-1])
    lines = (one / records.FILE).read_text() + (other / records.FILE).read_text()
    (tmp_path / "both.jsonl").write_text(lines)
    first = compare.compare([one, other], {"mode": "full"})
    assert first["seeds"].tolist() == [3] * 6
    for places in ([other, one], tmp_path / "both.jsonl", str(tmp_path / "both.jsonl")):
        second = randmix.compare(places, against={"mode": "full"})
        pd.testing.assert_frame_equal(first, second, check_exact=True)
        assert formatting.as_text(first) == formatting.as_text(second)


def test_other_metrics_and_models_side_by_side_leave_cells_empty():
    found = [
        *accuracies([0.5, 0.75]),
        *accuracies([0.5], model="resnet"),
        record({"test_psnr": 20.5, "test_loss": 1.0}, task="unshuffling"),
        record({"test_accuracy": 0.25, "test_pgd_accuracy": 0.125}, defense__epsilon=0.5),
    ]
    table = compare.table(compare.side_by_side(found), {})
    rows = formatting.shown(table)
    assert [*rows[0]] == [
        *("model", "depth", "filters", "kernel_size", "width")[:1],
        *("depth", "kernel_size", "width", "epsilon", "task", "seeds"),
        *("test accuracy (%)", "test PSNR (dB)", "test pgd accuracy (%)"),
        *("trained", "params", "time (s)"),
    ]
    by = {(row["model"], row["task"], row["epsilon"]): row for row in rows}
    assert by["convmixer", "classification", "0"]["test accuracy (%)"] == "62.50 ± 17.68"
    assert by["convmixer", "unshuffling", "0"]["test PSNR (dB)"] == "20.50"
    assert by["convmixer", "unshuffling", "0"]["test accuracy (%)"] == ""
    assert by["convmixer", "classification", "0.5"]["test pgd accuracy (%)"] == "12.50"
    assert "test_loss" in table
    assert formatting.as_text(table)


def test_few_common_seeds_are_said():
    found = [*accuracies([0.5, 0.6, 0.7], mode="full"), *accuracies([0.6], mode="chans")]
    found += [*accuracies([0.6, 0.8], mode="space")]
    found += [record({"test_accuracy": 0.1}, mode="floor", seed=9)]
    rows = formatting.shown(compare.table(compare.side_by_side(found), {"mode": "full"}))
    heading = "test accuracy minus mode=full (points)"
    assert [row[heading] for row in rows] == [
        "reference",
        "+10.00 n=1",
        "+15.00 [\N{MINUS SIGN}48.53, 78.53]",
        "no reference",
    ]


def test_only_seeds_or_display_keys_make_one_row_and_an_ensemble_shares_its_time():
    found = [
        record({"test_accuracy": 0.5}, seed=0, log_every=7, seconds=6.0, ensemble=3),
        record({"test_accuracy": 0.7}, seed=1, seconds=4.0),
    ]
    table = compare.table(compare.side_by_side(found), {})
    assert table.to_dict("records")[0]["seconds"] == 3
    assert len(table) == 1
    assert [*table.columns[:2]] == ["seeds", "test_accuracy"]


@pytest.mark.parametrize(
    ("against", "message"),
    [
        (
            {"mode": "ful"},
            "against mode: got 'ful', allowed full, chans, space; did you mean 'full'",
        ),
        ({"mod": "full"}, "against: got 'mod', allowed are the keys that differ: depth, mode; did"),
        ({"width": 64}, "against: got width, which is 64 in all runs; allowed are the keys that d"),
        ({"model.width": 3}, "got model.width, which is 64 in all runs"),
        ({"log_every": 3}, "against: got 'log_every', allowed are the keys that differ"),
        ({"depth": 3}, "against depth: got '3', allowed 2, 10"),
    ],
)
def test_a_mistaken_reference_is_one_line(grid, against, message):
    with pytest.raises(UserError) as error:
        compare.table(compare.side_by_side(grid), against)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_reference_without_a_run_or_without_a_partner_is_one_line(grid):
    rest = [each for each in grid if each.settings["mode"] != "full"]
    deep = accuracies([0.5], mode="full", model__depth=3)
    with pytest.raises(UserError, match="got mode=full and depth=2, which no run has"):
        compare.table(compare.side_by_side(rest + deep), {"mode": "full", "depth": 2})
    with pytest.raises(UserError, match="no other run has the same depth and seed as one of these"):
        compare.table(compare.side_by_side(rest + deep), {"mode": "full"})


def curve(metric, factor, steps, seed, mode):
    log = [{"step": s, "epoch": round(s / 7, 4), metric: factor * s} for s in steps]
    return record(
        {"test_accuracy": 0.5}, [*log, {"step": steps[-1], "test_loss": 1.0}], seed=seed, mode=mode
    )


def test_a_picture_averages_seeds_alone(grid, values):
    runs = compare.side_by_side(grid)
    plot = pictures.plan(runs, x="depth", y="test_accuracy", hue="mode")
    (axes,) = pictures.draw(plot).axes
    assert axes.get_xscale() == "linear"  # 2 and 10 aren't powers of two
    for container, mode in zip(axes.containers, ("full", "chans", "space"), strict=True):
        seeds = 100 * np.array([values[mode, depth] for depth in (2, 10)])
        line, _, (bars,) = container
        np.testing.assert_allclose(np.array(line.get_xdata(), float), [2, 10], atol=0.2)
        np.testing.assert_allclose(line.get_ydata(), seeds.mean(1))
        ends = np.array([segment[:, 1] for segment in bars.get_segments()])
        np.testing.assert_allclose(np.ptp(ends, axis=1), 2 * seeds.std(1, ddof=1))
    alone = pictures.plan(runs, x="depth", y="test_accuracy")
    assert len(alone.rows()) == 6
    assert len(pictures.draw(alone).axes[0].containers) == 3


def test_other_keys_have_panels_and_words_have_ticks(grid):
    more = [
        *grid,
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
def test_a_mistaken_plot_is_one_line(grid, plot, message):
    with pytest.raises(UserError) as error:
        pictures.plan(compare.side_by_side(grid), **plot)
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


def test_a_page_is_whole_and_a_notebook_shows_the_table(grid):
    runs = compare.side_by_side(grid, ["runs/<a>"])
    table = compare.table(runs, {"mode": "full"})
    plot = pictures.plan(runs, x="depth", y="test_accuracy", hue="mode")
    text = pictures.page(runs, table, [(plot, pictures.draw(plot))])
    assert table._repr_html_() in text
    assert "1 run is not finished and left out: runs/&lt;a&gt;" in text
    assert all(each.name in text for each in grid)
    assert "src=" not in text
    assert 'href="http' not in text
    ET.fromstring(text[text.index("<svg") : text.index("</svg>") + len("</svg>")])
    assert type(table[["mode", "seeds"]]) is pd.DataFrame  # which shows its own columns


def test_markdown_is_a_table_that_git_hosts_read(grid):
    text = formatting.as_markdown(compare.table(compare.side_by_side(grid), {}))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines[1] == "| " + "---: | " * (len(lines[0].split("|")) - 3) + "---: |"
    assert len(lines) == 2 + 6
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("against", "mode", "--against: got 'mode', allowed is KEY=VALUE"),
        ("against", "=full", "--against: got '=full', allowed is KEY=VALUE"),
        ("plot", "x=depth", "--plot=x=depth: y is missing; for example --plot=x=depth,y="),
        ("plot", "x=a,y=b,z=3", "--plot=x=a,y=b,z=3: got 'z', allowed x, y, hue"),
        ("plot", "x=a,x=b,y=c", "--plot: got x twice, allowed is each key once"),
    ],
)
def test_a_mistaken_flag_is_one_line(flag, value, message):
    options = types.SimpleNamespace(**{"against": [], "plot": [], flag: [value]})
    with pytest.raises(UserError) as error:
        flags.prepare(options)
    assert str(error.value).startswith(message)


def test_a_place_without_a_finished_run_is_one_line(tmp_path):
    with pytest.raises(
        UserError, match="a: got no run there; allowed are folders of a run or of a"
    ):
        compare.collect(tmp_path / "a")
    begun = tmp_path / "runs" / "b"
    begun.mkdir(parents=True)
    (begun / "config.json").write_text(configs.to_json(configs.default()))
    message = f"{tmp_path}: got no finished run, .* at least one; not finished: {begun}"
    with pytest.raises(UserError, match=message):
        compare.collect(tmp_path)


def test_the_command_needs_a_place():
    done = command.run("randmix", "compare", "--markdown")
    assert (done.status, done.out) == (2, "")
    assert done.err == "randmix: expected RUNS..., got nothing; see --help\n"


@pytest.mark.slow
def test_the_command_writes_what_it_says(grid, tmp_path):
    saved(tmp_path / "results", grid)
    done = command.run(
        *("randmix", "compare", "results", "results", "--against=mode=full", "--csv=new/t.csv"),
        *("--plot=x=depth,y=test_accuracy,hue=mode", "--html=page.html", "--out=drawn"),
        cwd=tmp_path,
    )
    assert done.status == 0, done.err
    table = compare.compare(tmp_path / "results", {"mode": "full"})
    shown, files = done.out.rsplit("\n\n", 1)
    assert shown == formatting.as_text(table)
    name = "drawn/test_accuracy-depth-mode"
    assert files.split() == [
        *(f"{name}.{s}" for s in ("png", "svg", "csv")),
        "new/t.csv",
        "page.html",
    ]
    assert all((tmp_path / file).stat().st_size for file in files.split())
    read = pd.read_csv(tmp_path / "new" / "t.csv")
    np.testing.assert_array_equal(read["test_accuracy_low"], table["test_accuracy_low"])
    code = "import randmix, sys; randmix.compare; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_numbers_that_differ_are_told_apart():
    settings = [{"optimizer__learning_rate": value} for value in (0.3, 0.1 + 0.2, 1e-05)]
    table = compare.table(
        compare.side_by_side([record({"test_accuracy": 0.5}, **each) for each in settings]),
        {"learning_rate": "0.3"},
    )
    shown = [row["learning_rate"] for row in formatting.shown(table)]
    assert shown == ["1e-05", "0.3", "0.30000000000000004"]


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
