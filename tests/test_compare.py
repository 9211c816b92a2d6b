"""Runs side by side: rows, columns and paired differences against other computations."""

import subprocess
import sys
import types

import command
import numpy as np
import pandas as pd
import pytest
from comparisons import ACCURACIES, GRID, accuracies, record
from scipy import stats

import randmix
from randmix import config as configs
from randmix.commands import compare as flags
from randmix.errors import UserError
from randmix.experiments import compare, formatting, records


def saved(folder, found):
    for each in found:
        records.append(folder, each)
    return folder


def test_a_row_is_the_runs_that_differ_in_their_seed_alone():
    table = compare.table(compare.side_by_side(GRID), {})
    order = [(depth, mode) for depth in (2, 10) for mode in ("full", "chans", "space")]
    assert [*zip(table["model.depth"], table["mode"], strict=True)] == order
    for row, (depth, mode) in zip(table.to_dict("records"), order, strict=True):
        seeds = ACCURACIES[mode, depth]
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
def test_a_difference_is_paired_by_seed_with_the_row_whose_other_keys_agree(reference):
    table = compare.table(compare.side_by_side(GRID), reference)
    for row in table.to_dict("records"):
        mode, depth = row["mode"], row["model.depth"]
        other = ("full", depth) if "mode" in reference else (mode, 2)
        found = [row[f"test_accuracy_{name}"] for name in ("difference", "low", "high")]
        if other == (mode, depth):
            assert np.isnan(found).all()
            continue
        test = stats.ttest_rel(ACCURACIES[mode, depth], ACCURACIES[other])
        expected = np.mean(ACCURACIES[mode, depth] - ACCURACIES[other]), *test.confidence_interval()
        np.testing.assert_allclose(found, expected, atol=1e-8)
        assert row["test_accuracy_pairs"] == 3
    cells = {row["mode"]: row for row in formatting.shown(table) if row["depth"] == "2"}
    assert "reference" in cells["full"].values()


@pytest.mark.slow
def test_the_order_of_files_and_of_their_lines_does_not_matter(tmp_path):
    again = [record({"test_accuracy": 0.99}, seed=0, mode="full", model__depth=2)]  # elsewhere
    one = saved(tmp_path / "one", GRID)
    other = saved(tmp_path / "other", again + GRID[::-1])
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


def test_keys_of_the_users_own_that_some_runs_lack_make_rows_of_their_own():
    found = [
        record({"test_accuracy": 0.9}, seed=0),
        record({"test_accuracy": 0.5}, seed=0, user={"alpha": 1}),
    ]
    runs = compare.side_by_side(found)
    assert runs.varied == ["user.alpha"]
    assert "user.alpha" not in runs.common
    table = compare.table(runs, {})
    assert sorted(table["test_accuracy"]) == [0.5, 0.9]
    assert table["seeds"].tolist() == [1, 1]


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
def test_a_mistaken_reference_is_one_line(against, message):
    with pytest.raises(UserError) as error:
        compare.table(compare.side_by_side(GRID), against)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_reference_without_a_run_or_without_a_partner_is_one_line():
    rest = [each for each in GRID if each.settings["mode"] != "full"]
    deep = accuracies([0.5], mode="full", model__depth=3)
    with pytest.raises(UserError, match="got mode=full and depth=2, which no run has"):
        compare.table(compare.side_by_side(rest + deep), {"mode": "full", "depth": 2})
    with pytest.raises(UserError, match="no other run has the same depth and seed as one of these"):
        compare.table(compare.side_by_side(rest + deep), {"mode": "full"})


def test_markdown_is_a_table_that_git_hosts_read():
    text = formatting.as_markdown(compare.table(compare.side_by_side(GRID), {}))
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
    message = f"got no finished run in {tmp_path}, .* at least one; not finished: {begun}"
    with pytest.raises(UserError, match=message):
        compare.collect(tmp_path)
    with pytest.raises(UserError, match="got no finished run in no place, allowed"):
        compare.collect([])


def test_the_command_needs_a_place():
    done = command.run("randmix", "compare", "--markdown")
    assert (done.status, done.out) == (2, "")
    assert done.err == "randmix: expected RUNS..., got nothing; see --help\n"


@pytest.mark.slow
def test_the_command_writes_what_it_says(tmp_path):
    saved(tmp_path / "results", GRID)
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


def test_the_roles_of_a_model_of_ones_own_are_not_in_the_caption():
    own = record({"test_accuracy": 0.5})
    own.config["roles"] = [["spatial", "path('.*query.*')"], ["channel", "everything"]]
    assert "roles" not in compare.about(compare.side_by_side([own]))


def test_numbers_that_differ_are_told_apart():
    settings = [{"optimizer__learning_rate": value} for value in (0.3, 0.1 + 0.2, 1e-05)]
    table = compare.table(
        compare.side_by_side([record({"test_accuracy": 0.5}, **each) for each in settings]),
        {"learning_rate": "0.3"},
    )
    shown = [row["learning_rate"] for row in formatting.shown(table)]
    assert shown == ["1e-05", "0.3", "0.30000000000000004"]
