"""Progress lines of long work, where there is no terminal."""

import itertools

import pytest

from randmix.runtime import progress


@pytest.mark.parametrize(
    ("every", "shown"),
    [
        (0, ["50 %, 2 s", "100 %, 4 s"]),  # a line per 10 %, here per item
        (3, ["100 %, 4 s"]),
        (60, []),
    ],
)
def test_a_line_per_tenth_but_no_sooner_than_asked(every, shown, monkeypatch, capsys):
    clock = itertools.count(0, 2)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    assert [*progress.track("ab", 2, "work", every=every)] == ["a", "b"]
    assert capsys.readouterr().out.splitlines() == [f"work: {line}" for line in shown]


RESULT = {
    "mode": "chans",
    "metrics": {"test_accuracy": 0.75, "test_loss": 1.0},
    "parameters": {"trainable": 1234, "frozen": 5},
    "wall_seconds": 2.0,
}


@pytest.mark.parametrize("width", [0, 80, 120])
def test_a_result_says_what_its_config_sets(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    changed = {
        "data.name": "fashion_mnist",
        "groups": [["spät", "depth(2, None)", {"start": 0.5}]],
        "model.filters": "from=runs/a-long-name@0123456789abcdef",
        "model.mean": [],
        "optimizer.learning_rate": 0.003,
        "train": "~role('spatial') | depth(2, None)",
        "wandb": "",
    }
    lines = progress.result_table(RESULT | {"config": {"name": "mine", "changed": changed}})
    *said, _, _, _, row, _ = lines.splitlines()
    assert " ".join(line.strip() for line in said) == (
        'mine: data.name=fashion_mnist groups=[["spät", "depth(2, None)", {"start": 0.5}]] '
        "model.filters=from=runs/a-long-name@0123456789abcdef model.mean=[] "
        "optimizer.learning_rate=0.003 train=~role('spatial') | depth(2, None) wandb=\"\""
    )
    assert max(map(len, said)) <= (width or 80)
    assert all(line.startswith("  ") for line in said[1:])
    assert row.split("│")[2].strip() == "0.7500"


def test_a_result_of_the_defaults_and_one_of_an_older_version():
    made_in_python = RESULT | {"config": {"name": "", "changed": {}}}
    first, *table = progress.result_table(made_in_python).splitlines()
    assert first == "config: the defaults"
    assert progress.result_table(RESULT).splitlines() == table


@pytest.mark.parametrize("mode", ["path('block_[a-c]/.*')", "path('x[/_]y')", "path('x[/]y')"])
def test_a_selector_is_not_markup(mode, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert f" {mode} " in progress.result_table(RESULT | {"mode": mode})


def test_a_metric_may_have_any_name(capsys):
    with progress.Reporter(4) as report:
        report.train(2, {"step": 1.0, "self": 2.0}, images_per_second=3.0)
    assert "step 2/4  step 1.0000  self 2.0000  3 images/s" in capsys.readouterr().out
