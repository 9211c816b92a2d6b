"""E15, the law of the gap: how the errors of Chans and Full compare as models and training grow.

The gap is the logarithm of the ratio of their error rates, so it can be compared at any accuracy.
Its slope is the change with each doubling of width, depth or training. A gap that isn't finite,
because a model makes no error at all, has no logarithm: it and slopes over it aren't defined.
"""

import dataclasses
import itertools
import math
import textwrap
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from randmix.analysis import plots
from randmix.analysis.spectrum.figures import Picture
from randmix.experiments.statistics import slopes, t_interval
from randmix.reproduce import effects
from randmix.reproduce.cells import OVER_SEEDS_INTERVAL, Cell, Table, heading, interval_cell
from randmix.reproduce.numbers import Numbers
from randmix.reproduce.panels import draw_intervals
from randmix.reproduce.titles import MODELS, size_of_model, title_of

# The setting on the x axis, its name, and the accuracy from which errors are computed. Models
# trained for several lengths are compared on held-out training images, as the gate is.
AXES = (
    ("model.width", "width", "accuracy"),
    ("model.depth", "depth", "accuracy"),
    ("total_steps", "training steps", "validation_accuracy"),
)
_SETTINGS = ("data.name", "model.name", *effects.SIZES, "data.validation", "total_steps")
_COLUMNS = ("", "log error ratio")
_NOTE = 43  # characters of a line of a note above a panel
_GAP = effects.error_ratio("chans", "full")


@dataclasses.dataclass(frozen=True)
class Line:
    """The gap of one family of models over one size.

    Attributes:
        title: the family, the sizes that stay, and the data set.
        gaps: size -> seed -> log error ratio.
        runs: the runs that it comes from.
    """

    title: str
    gaps: dict[float, effects.Values]
    runs: list[str]

    @property
    def defined(self) -> dict[float, effects.Values]:
        """The gaps at sizes at which all are finite."""
        return {x: gap for x, gap in self.gaps.items() if all(map(math.isfinite, gap.values()))}

    @property
    def slopes(self) -> effects.Values:
        """Changes per doubling, by seed; {} unless every gap is defined."""
        if len(self.defined) < len(self.gaps):
            return {}
        return slopes({math.log2(x): gap for x, gap in self.gaps.items()})


def lines(numbers: Numbers, setting: str, metric: str) -> Iterator[Line]:
    """The families that have two or more values of a setting.

    Args:
        numbers: those of E15.
        setting: one of those in ``AXES``.
        metric: the accuracy to use.
    """
    accuracy = numbers.where(metric=metric)
    others = [name for name in _SETTINGS if name != setting]
    families = (accuracy.where(model__name=model) for model in MODELS)
    for part in itertools.chain.from_iterable(effects.conditions(f, others) for f in families):
        at = {x: part.where(**{setting: x}) for x in part.values(setting)}
        gaps = {x: _GAP.of(effects.as_accuracy(own)) for x, own in at.items()}
        gaps = {x: values for x, values in gaps.items() if values}
        if len(gaps) > 1:
            settings = part[0].settings
            name, data = MODELS[settings["model.name"]], title_of(settings["data.name"])
            sizes = size_of_model(settings, leave_out=setting)
            yield Line(", ".join(filter(None, (name, sizes, data))), gaps, part.runs)


def draw(numbers: Numbers) -> Picture | None:
    """The gap against width, depth and length of training, with intervals over seeds."""
    found = {name: [*lines(numbers.where("E15"), key, metric)] for key, name, metric in AXES}
    found = {name: own for name, own in found.items() if own}
    if not found:
        return None
    most = max(map(len, found.values()))
    figure = plots.new_figure(0.8 + 1.8 * len(found), 2.7 + 0.16 * most)
    grid = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    rows: list[dict[str, Any]] = []
    for axes, (name, own) in zip(grid, found.items(), strict=True):
        for place, line in enumerate(own):
            _line(axes, line, place, len(own))
            rows += _rows(name, line)
        _finish(axes, name, own)
    _limit(grid[0], [line for own in found.values() for line in own])
    return Picture(figure, rows)


def _line(axes: Axes, line: Line, place: int, count: int) -> None:
    """Draws the defined gaps of a line, moved a little sideways so that intervals can be told."""
    if not line.defined:
        return
    aside = 2 ** (0.05 * (place - (count - 1) / 2))
    moved = {x * aside: gap for x, gap in line.defined.items()}
    style = {**plots.series(place), "markersize": 4, "capsize": 2}
    draw_intervals(axes, moved, label=line.title.replace(", ", "\n", 1), **style)


def _finish(axes: Axes, name: str, own: list[Line]) -> None:
    axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    axes.set_xlabel(name)
    notes = itertools.chain.from_iterable(_left_out(name, line) for line in own)
    axes.set_title("\n".join(notes), fontsize=6, color="0.4", loc="left")
    if not any(line.defined for line in own):
        style = {"ha": "center", "va": "bottom", "color": "0.5", "transform": axes.transAxes}
        axes.text(0.5, 0.5, "no size is left", **style)
        axes.set_xticks([])
        return
    points = sorted({x for line in own for x in line.gaps})
    axes.set_xscale("log", base=2)
    crowded = {"rotation": 40, "ha": "right"} if len(points) > 2 and max(points) > 999 else {}
    axes.set_xticks(points, [f"{x:,}" for x in points], **crowded)
    axes.minorticks_off()
    axes.margins(x=0.12)
    axes.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.22), handlelength=2.2)


def _left_out(name: str, line: Line) -> list[str]:
    """Says, in lines of text, which sizes of a line aren't drawn, and why."""
    sizes = ", ".join(f"{x:,}" for x in line.gaps if x not in line.defined)
    if not sizes:
        return []
    parts = (f"{line.title}:", f"{name} {sizes}: a model makes no error")
    return [words for part in parts for words in textwrap.wrap(part, _NOTE)]


def _limit(axes: Axes, every: list[Line]) -> None:
    """Shows all means, and intervals as far as they don't flatten the lines; says if they go on.

    An interval of two seeds reaches 12.7 standard errors to each side.
    """
    intervals = [t_interval([*gap.values()]) for line in every for gap in line.defined.values()]
    means = [0.0, *(one.mean for one in intervals)]
    room = max(0.1, max(means) - min(means))
    known = [one for one in intervals if one.n > 1]
    lowest = min([*means, *(one.low for one in known)])
    highest = max([*means, *(one.high for one in known)])
    low, high = max(lowest, min(means) - room), min(highest, max(means) + room)
    edge = max(0.05 * (high - low), 0.02)
    beyond = "" if low == lowest and high == highest else " (some go on)"
    axes.set_ylim(low - edge, high + edge)
    axes.set_ylabel(f"log (error of Chans / error of Full),\n95 % interval{beyond}")


def _rows(axis: str, line: Line) -> list[dict[str, Any]]:
    return [
        {"axis": axis, "family": line.title, "size": x, "seed": seed, "log_error_ratio": value}
        for x, gap in line.gaps.items()
        for seed, value in gap.items()
    ]


def tables(numbers: Numbers) -> list[Table]:
    """The slope of each line, and its gap at each size, from the numbers of E15."""
    slopes_of, gaps = [], []
    for setting, name, metric in AXES:
        for line in lines(numbers, setting, metric):
            title = f"{name}: {line.title}"
            found = [*line.slopes.values()]
            slope = interval_cell(found, line.runs, digits=3)
            factor = f"{math.exp(np.mean(found)):.2f}" if found else "n/a"
            sizes = f"{min(line.gaps):,} to {max(line.gaps):,}"
            slopes_of.append([Cell(title), Cell(sizes), slope, Cell(factor)])
            gaps.append(heading(title, _COLUMNS))
            gaps += [
                [Cell(f"{x:,}"), interval_cell([*gap.values()], line.runs)]
                for x, gap in line.gaps.items()
            ]
    caption = (
        f"Slopes of the log error ratio Chans / Full per doubling: {OVER_SEEDS_INTERVAL} The last "
        "column is its exponential, by which a doubling multiplies the ratio of the error rates. "
        "Below 0 (a factor below 1) the gap closes: Chans, where it makes more errors than Full, "
        "loses them faster. At 0 both change by one factor, and a gap in points shrinks with them."
    )
    return [
        Table(caption, ["", "from, to", "slope", "factor"], slopes_of),
        Table(
            f"Log error ratio Chans / Full: {OVER_SEEDS_INTERVAL} 0 is equal errors, 0.69 twice as "
            "many with Chans; n/a where a model makes no error.",
            _COLUMNS,
            gaps,
        ),
    ]
