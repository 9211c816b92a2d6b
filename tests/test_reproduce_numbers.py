"""What is read of a finished run: learning curves, baselines, and measurements."""

import json

import pytest

from randmix.analysis import plots
from randmix.experiments import sweep
from randmix.experiments.records import Record
from randmix.reproduce import curves, measurements, numbers, plan, presets
from randmix.reproduce.numbers import Number, Numbers
from randmix.workdir import artifacts

SMOKE = presets.get("smoke")
LOG = (
    {"step": 22, "epoch": 0.5, "train_accuracy": 0.5, "train_loss": 2.0},
    {"step": 22, "test_accuracy": 0.6},
    {"step": 44, "epoch": 1.0, "train_accuracy": 0.8, "learning_rate": 0.0},
    {"step": 44, "test_accuracy": 0.7},
)


@pytest.fixture
def group(tmp_path):
    """A finished run of E2, whose epochs have 44 steps."""
    run = plan.build(SMOKE, ("E2",), (0,))[0][0]
    folder = run.folder(tmp_path)
    folder.mkdir(parents=True)
    (folder / artifacts.CONFIG).write_text(run.resolved.to_json())
    result = {
        **{"mode": "full", "step": 3, "seed": 0, "wall_seconds": 1.0, "versions": {}},
        "device": {"kind": "cpu", "platform": "cpu", "count": 1},
        "metrics": {"test_accuracy": 0.7, "validation_accuracy": 0.65},
        "parameters": {"trainable": 10, "frozen": 20},
        "unshuffling": {"reach": 0.95, "mean_image_psnr": 11.4},
    }
    (folder / artifacts.RESULT).write_text(json.dumps(result))
    (folder / artifacts.METRICS).write_text("".join(json.dumps(row) + "\n" for row in LOG))
    return (run,)


def values(found, metric, key="epoch"):
    return {number.settings.get(key): number.value for number in found.where(metric=metric)}


def test_curves_and_their_ends_are_read(group, tmp_path):
    found = numbers.collect([group], sweep.collect([group], tmp_path), SMOKE)
    epochs = [0.5, 1.0]
    assert values(found, "curve_train_accuracy") == dict(zip(epochs, (0.5, 0.8), strict=True))
    assert values(found, "curve_test_accuracy") == dict(zip(epochs, (0.6, 0.7), strict=True))
    assert values(found, "train_accuracy") == {None: 0.8}
    assert values(found, "accuracy") == {None: 0.7}
    assert values(found, "validation_accuracy") == {None: 0.65}
    assert values(found, "reach") == {None: 0.95}


def test_every_key_of_the_config_selects(group, tmp_path):
    found = numbers.collect([group], sweep.collect([group], tmp_path), SMOKE)
    assert found.where(metric="accuracy", model__filters="random", data__name="digits")
    assert not found.where(metric="accuracy", model__filters="dct")
    assert found[0].settings["total_steps"] == 3


def test_the_linear_baseline_is_read_where_it_is_known_and_not_exact(group):
    def read(*rows):
        record = Record({}, {}, None, [], {measurements.RECONSTRUCTIONS: [*rows]})
        return [*numbers._measured("E10", group[0], record, SMOKE)]

    older = {"label": "linear regression\nreach 9.1 %\nmean 17.51 dB"}
    named = {**older, "baseline": "linear regression, reach 9.1 %", "mean_psnr": 17.512}
    mean = {"label": "mean training image", "baseline": "mean training image", "mean_psnr": 10.9}
    assert read(mean, named) == [({}, "linear_psnr", 17.512)]
    assert read(mean, {**named, "mean_psnr": None}) == read(older) == []


def line(mode, seed, metric="curve_test_accuracy", **settings):
    keys = {"data.name": "digits", "model.name": "resnet", "mode": mode, "epoch": 1.0}
    return Number("E2", mode, {**keys, **settings}, seed, metric, 0.5, f"{mode}{seed}")


def test_lines_are_named_by_what_differs():
    found = Numbers(
        [
            line("full", 0, share=1.0),
            line("chans", 0, share=0.0),
            line("chans", 1, share=0.0),
            line("chans", 0, share=0.0, **{"model.filter_rank": 3}),
            line("chans", 0, share=0.5),
        ]
    )
    names = [name for name, _ in curves.lines(found)]
    assert names == ["Digits, Full", "Digits, Chans", "Digits, share 0.5", "Digits, Chans, rank 3"]


def test_filters_that_each_seed_took_elsewhere_are_one_line():
    banks = ["random", "from=@0a", "from=@1b"]
    found = Numbers(line("chans", i, **{"model.filters": bank}) for i, bank in enumerate(banks))
    lines = {name: part.runs for name, part in curves.lines(found)}
    assert lines == {
        "Digits, Different": ["chans0"],
        "Digits, Learned elsewhere": ["chans1", "chans2"],
    }
    (axes,) = curves.draw(found, "E2").figure.axes
    assert len(axes.get_legend().get_texts()) == 2


def test_no_panel_of_curves_is_crowded():
    banks = [{"model.filters": bank} for bank in ("random", "same", "box", "identity")]
    ranks = [{"model.filters": "delta", "model.filter_rank": rank} for rank in (9, 3, 1)]
    chans = [line("chans", 0, **bank, share=0.0) for bank in [*banks, *ranks]]
    full = line("full", 0, share=1.0, **banks[0])
    found = Numbers([full, *chans])
    alone = {"model.name": "convmixer"}
    found += [line("chans", 0, **bank, share=0.0, **alone) for bank in banks]
    picture = curves.draw(found, "E2")
    legends = {
        axes.get_title(): [text.get_text() for text in axes.get_legend().get_texts()]
        for axes in picture.figure.axes
    }
    names = ["Different", "Same", "Box", "Identity"]
    assert legends == {
        "Digits\nseparable ResNet": ["Full", *(f"Chans, {name}" for name in names)],
        "Digits\nseparable ResNet, banks of\nchosen rank": ["rank 1", "rank 3", "rank 9"],
        "Digits\nConvMixer": names,
    }
    # A bank looks alike in all panels.
    first, _, last = picture.figure.axes
    assert [one.get_color() for one in first.lines[1:]] == [one.get_color() for one in last.lines]


def test_a_mode_has_its_colour_and_panels_ascend_whatever_the_order_of_the_runs():
    found = Numbers(
        line(mode, 0, total_steps=steps, **{"model.depth": depth, "defense.epsilon": epsilon})
        for depth in (2, 1, 4)
        for epsilon in (2.0, 0.0)
        for steps in (320, 160)
        for mode in ("floor", "chans", "full")
    )
    axes = curves.draw(found, "E2").figure.axes
    assert [one.get_title()[-7:] for one in axes] == ["depth 1", "depth 2", "depth 4"]
    for one in axes:
        lines = {drawn.get_label(): drawn for drawn in one.lines}
        for place, mode in ((0, "Full"), (1, "Chans"), (3, "Floor")):
            short, long = (lines[f"{mode}, {steps} steps"] for steps in (160, 320))
            assert short.get_color() == long.get_color() == plots.series(place)["color"]
            assert short.get_linestyle() != long.get_linestyle()
        colors = [drawn.get_color() for name, drawn in lines.items() if "defended" in name]
        assert len({*colors}) == 3  # each in both lengths
        assert not {*colors} & {plots.series(place)["color"] for place in range(4)}


@pytest.mark.parametrize(("mode", "word"), [("full", "Full"), ("chans", "Chans")])
def test_a_single_line_is_named_by_its_mode(mode, word):
    (axes,) = curves.draw(Numbers([line(mode, 0)]), "E2").figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [word]


def test_curves_are_means_over_seeds_with_training_first():
    found = Numbers([line("full", 0), line("full", 1), line("full", 0, "curve_train_accuracy")])
    picture = curves.draw(found, "E2")
    assert [(row["metric"], row["mean"]) for row in picture.rows] == [
        ("train_accuracy", 50.0),
        ("test_accuracy", 50.0),
    ]
    assert curves.draw(Numbers(), "E2") is None
