"""Learning curves of an experiment's models: training and test against the epoch."""

import itertools
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from randmix.analysis import plots
from randmix.analysis.spectrum.figures import Picture
from randmix.reproduce.effects import conditions
from randmix.reproduce.numbers import Number, Numbers
from randmix.reproduce.titles import (
    FILTERS,
    MODELS,
    MODES,
    has_window,
    title_of,
    title_of_filters,
    title_of_mixer,
)

_PANEL = (
    *("data.name", "model.name", "model.width", "model.depth", "model.kernel_size"),
    *("model.multiplier", "model.mixer"),
)
_LINE = {
    "mode": lambda value: MODES.get(value, ""),
    "model.filters": title_of_filters,
    "model.filter_rank": lambda value: f"rank {value}",
    "model.smoothing_index": lambda value: f"smoothing {value:g}" if value else "not smoothed",
    "share": lambda value: f"share {value:g}",
    "defense.epsilon": lambda value: "defended" if value else "",
    "total_steps": lambda value: f"{value:,} steps",
}
_RANK = "model.filter_rank"
# The order of panels and lines by settings that are words; by others they ascend.
_ORDER = {"model.name": [*MODELS], "mode": [*MODES], "model.filters": [*FILTERS]}
# Ways to train beside the plain one of each mode have none of the colours of modes.
_COLORS = ("#7a4fa3", "#6fae45", "#8a6a1f", "#d77fb0", "0.45", plots.COLORS[4])
_MARKERS = ("v", "P", "X", "<", ">", "*")
_STYLES = {"curve_test": ("-", (0, (5, 1, 1, 1))), "curve_train": ("--", ":")}  # by length
_COLUMNS, _LINES = 3, 6  # most columns of panels, and most lines of one length in a panel
_TITLE = 32  # characters of a line of a panel's title

Lines = list[tuple[str, Numbers]]  # each with its name


def lines(numbers: Numbers) -> Iterator[tuple[str, Numbers]]:
    """The runs of an experiment that differ only in their seed, and what distinguishes them."""
    trained = Numbers(number for number in numbers if number.mode)
    for name, part in _named(trained, _PANEL):
        for title, line in _named(part, (*_LINE,)):
            yield ", ".join(filter(None, (name, title))), line


def draw(numbers: Numbers, experiment: str) -> Picture | None:
    """One panel per model, one pair of lines per way to train it: test thick, training thin.

    Lines are means over the seeds that have a value at that epoch. A way to train has one colour in
    all panels, a mode the one that it has in all figures; the line's style says how long training
    was. A model with more than six has several panels, one of them for banks of chosen rank.
    """
    found = Numbers(r for r in numbers.where(experiment) if r.metric.startswith("curve_"))
    panels = [
        (f"{title}{about}", own)
        for title, part in _named(found, _PANEL)
        for about, own in _apart(part)
    ]
    looks = _looks(found)
    if not panels:
        return None
    columns = min(_COLUMNS, len(panels))
    count = -(-len(panels) // columns)
    figure = plots.new_figure(max(4.2, 0.6 + 2.4 * columns), 0.7 + 2.8 * count)
    figure.suptitle("with markers: test, thin: training", fontsize=8)
    grid = figure.subplots(count, columns, squeeze=False)
    rows: list[dict[str, Any]] = []
    for axes, (title, own) in zip(grid.ravel(), panels, strict=False):
        _panel(axes, own, title, looks, rows)
    for axes in grid.ravel()[len(panels) :]:
        axes.remove()
    return Picture(figure, rows)


def _apart(model: Numbers) -> Iterator[tuple[str, Lines]]:
    """The lines of a model, divided into panels that can be read, with what to add to the title."""
    whole = [*_named(model, (*_LINE,))]
    if len({_way(line[0]) for _, line in whole}) <= _LINES:
        yield "", whole
        return
    for about, chosen in (("", False), (", banks of chosen rank", True)):
        part = [number for number in model if bool(number.settings.get(_RANK)) == chosen]
        own = [*_named(Numbers(part), (*_LINE,))]
        for first in range(0, len(own), _LINES):
            yield about, own[first : first + _LINES]


def _way(number: Number) -> tuple[Any, ...]:
    """What a line's look says: how its runs were trained, but for how long."""
    return tuple(_word(name, number.settings) for name in _LINE if name != "total_steps")


def _looks(numbers: Numbers) -> dict[tuple[Any, ...], dict[str, str]]:
    """Colour and marker of each way to train; the first way of a mode has those of the mode."""
    looks: dict[tuple[Any, ...], dict[str, str]] = {}
    taken, others = set(), itertools.count()
    for _, part in _named(numbers, (*_LINE,)):
        way, mode = _way(part[0]), part[0].mode
        if way in looks:
            continue
        if mode in MODES and mode not in taken:
            taken.add(mode)
            own = plots.series([*MODES].index(mode))
            looks[way] = {"color": own["color"], "marker": own["marker"]}
        else:
            again, place = divmod(next(others), len(_COLORS))
            marker = _MARKERS[(place + again) % len(_MARKERS)]
            looks[way] = {"color": _COLORS[place], "marker": marker}
    return looks


def _panel(
    axes: Axes,
    own: Lines,
    title: str,
    looks: Mapping[Any, Mapping[str, str]],
    rows: list[dict[str, Any]],
) -> None:
    decibels = any(line[0].metric.endswith("psnr") for _, line in own)
    lengths = sorted({line[0].settings.get("total_steps", 0) for _, line in own})
    for name, line in own:
        length = lengths.index(line[0].settings.get("total_steps", 0))
        for metric in line_metrics(line):
            part = line.where(metric=metric)
            epochs = part.values("epoch")
            scale = 1 if decibels else 100
            means = [scale * float(np.mean([r.value for r in part.where(epoch=e)])) for e in epochs]
            training = metric.startswith("curve_train")
            styles = _STYLES["curve_train" if training else "curve_test"]
            style = {**looks[_way(line[0])], "linestyle": styles[length % len(styles)]}
            if training:
                style |= {"linewidth": 0.8, "marker": ""}
            label = "" if training else name or MODES.get(line[0].mode, "all runs")
            axes.plot(epochs, means, label=label, **{"markersize": 3, **style})
            what = metric.removeprefix("curve_")
            rows += [
                {"model": title, "trained": name, "metric": what, "epoch": e, "mean": mean}
                for e, mean in zip(epochs, means, strict=True)
            ]
    data, _, model = title.partition(", ")
    axes.set(title="\n".join([data, *textwrap.wrap(model, _TITLE)]), xlabel="epoch")
    axes.set(ylabel="PSNR (dB)" if decibels else "accuracy (%)")
    if not decibels:
        axes.set_ylim(0, 101)
    # Below the panel, as some line crosses every part of it.
    style = {"fontsize": 6.5, "ncols": 2, "handlelength": 1.6, "columnspacing": 1}
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), **style)


def line_metrics(line: Numbers) -> list[str]:
    """The curves of a line, training first."""
    return sorted({number.metric for number in line}, reverse=True)


def _named(numbers: Numbers, settings: tuple[str, ...]) -> Iterator[tuple[str, Numbers]]:
    """Parts of numbers by settings, each named by the settings whose values differ among them.

    They are in the order of their settings, and not in that of the runs, which is one of cost.
    What has one name is one part: the seeds of filters that each took from a run of its own.
    """
    values = {name: {number.settings.get(name) for number in numbers} for name in settings}
    varied = [name for name in settings if len(values[name]) > 1 or name == "data.name"]
    named: dict[str, Numbers] = {}
    for part in sorted(conditions(numbers, settings), key=lambda part: _place(part[0], settings)):
        name = ", ".join(filter(None, (_word(name, part[0].settings) for name in varied)))
        named.setdefault(name, Numbers()).extend(part)
    yield from named.items()


def _place(number: Number, settings: tuple[str, ...]) -> list[tuple[float, str]]:
    """What orders the parts of numbers by settings."""
    values = {name: number.settings.get(name) for name in settings}
    places = []
    for name, value in values.items():
        known = _ORDER.get(name, [])
        if known or isinstance(value, str):
            places.append((known.index(value) if value in known else len(known), str(value)))
        else:
            places.append((value or 0, ""))
    return places


def _word(name: str, settings: Mapping[str, Any]) -> str:
    value, short = settings.get(name), name.rpartition(".")[2].replace("_", " ")
    if name == "model.filters" and settings.get("mode") == "full":
        return ""
    part = 0 < settings.get("share", 0) < 1
    if value is None or ((name == "share") != part and name in ("share", "mode")):
        return ""
    if name in _LINE:
        return _LINE[name](value)
    if name == "model.name":
        return MODELS[value]
    if name == "model.multiplier":
        return f"m = {value}"
    if name == "model.mixer":
        return title_of_mixer(value)
    if name == "model.kernel_size" and not has_window(settings):
        return ""
    return title_of(value) if name == "data.name" else f"{short} {value}"
