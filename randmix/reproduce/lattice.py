"""E13, the lattice of roles: what learning spatial and channel mixing brings, alone and together.

Its corners are Floor (norms and head), Space (and spatial mixing), Chans (and channel mixing) and
Full (both).
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from randmix.analysis import plots
from randmix.analysis.spectrum.figures import Picture
from randmix.experiments.statistics import t_interval
from randmix.reproduce import effects
from randmix.reproduce.cells import (
    OVER_SEEDS,
    OVER_SEEDS_INTERVAL,
    RADIUS_OVER_SEEDS,
    Cell,
    Table,
    heading,
    interval_cell,
    mean_cell,
    radius_cell,
    spread_cell,
)
from randmix.reproduce.numbers import Numbers
from randmix.reproduce.panels import shared_legend
from randmix.reproduce.titles import MODES, size_of_model, title_of, title_of_model

LEARNED = {"floor": "norms, head", "space": "+ spatial", "chans": "+ channel", "full": "both"}
# Pairs of modes that differ in one role: parallel sides of the lattice.
_SIDES = {
    "spatial": (("floor", "space"), ("chans", "full")),
    "channel": (("floor", "chans"), ("space", "full")),
}
_LINES = {"spatial": "--", "channel": ":"}
_FAMILY = ("data.name", "model.name", "model.mixer", *effects.SIZES)
_COLUMNS = 3
# By how much learning a role alone brings more than the share that claims 1a and 1b ask for.
_BEYOND = {
    "spatial": effects.recovered("space", effects.NEAR),
    "channel": effects.recovered("chans", effects.NEAR),
}
# What each role is worth, in words.
_EFFECTS = {
    "spatial alone": effects.points("space", "floor"),
    "channel alone": effects.points("chans", "floor"),
    "both": effects.points("full", "floor"),
    "interaction": effects.interaction(),
    "channel beyond spatial": effects.points("chans", "space"),
    **{f"{role} beyond {100 * effects.NEAR:g} %": effect for role, effect in _BEYOND.items()},
}
_ROBUSTNESS = {"Chans - Full, octaves": effects.octaves("fgsm")}


class _Measure(NamedTuple):
    """What the overview shows.

    Attributes:
        label: the label of its axis.
        of: what is averaged over seeds.
        shown: from that to what the axis shows.
        octaves: whether the axis is logarithmic.
    """

    label: str
    of: Callable[[Numbers], effects.Values]
    shown: Callable[[Any], Any]
    octaves: bool = False


_MEASURES = {  # by the metric that it is made of
    "accuracy": _Measure("test accuracy (%)", Numbers.by_seed, lambda x: 100 * x),
    "fgsm": _Measure("halving radius under FGSM (1/255)", effects.log_radii, np.exp2, octaves=True),
}


def families(numbers: Numbers) -> dict[str, Numbers]:
    """The numbers of each model and data set of E13, by title."""
    return {_title(part[0].settings): part for part in effects.conditions(numbers, _FAMILY)}


def _trained(numbers: Numbers) -> dict[str, Numbers]:
    """The families of which some mode has an accuracy."""
    found = families(Numbers(r for r in numbers if r.mode in LEARNED))
    return {title: part for title, part in found.items() if part.where(metric="accuracy")}


def draw(numbers: Numbers) -> Picture | None:
    """Accuracy against trainable parameters: one panel per family, with a point per mode.

    Dashes at a point are its seeds. Where both roles add up, Full lies on the hollow diamond.
    """
    found = _trained(numbers.where("E13"))
    if not found:
        return None
    columns = min(_COLUMNS, len(found))
    count = -(-len(found) // columns)
    figure = plots.new_figure(max(3.6, 0.5 + 2.5 * columns), 0.8 + 2.6 * count)
    grid = figure.subplots(count, columns, squeeze=False, sharey=True)
    rows: list[dict[str, Any]] = []
    for axes, (title, part) in zip(grid.ravel(), found.items(), strict=False):
        rows += _panel(axes, part, title)
    for axes in grid.ravel()[len(found) :]:
        axes.remove()
    for axes in grid[:, 0]:
        axes.set_ylabel("test accuracy (%), mean and seeds")
    shared_legend(figure, ncols=2)
    return Picture(figure, rows)


def _panel(axes: Axes, numbers: Numbers, title: str) -> list[dict[str, Any]]:
    """Draws one family; returns its rows, one per mode and seed."""
    rows, corners = [], {}
    for mode in LEARNED:
        part = numbers.where(mode=mode)
        accuracy, size = part.where(metric="accuracy").by_seed(), part.where(metric="trainable")
        if not accuracy or not size:
            continue
        x, values = size[0].value, 100 * np.asarray([*accuracy.values()])
        corners[mode] = (x, values.mean())
        axes.plot([x] * len(values), values, "_", color="0.4", ms=10, mew=0.6, zorder=2)
        # Corners may lie too close together for labels beside them; the legend names them.
        look = {**plots.series([*MODES].index(mode)), "linestyle": "", "markersize": 5, "zorder": 3}
        axes.plot(*corners[mode], label=f"{MODES[mode]}: {LEARNED[mode]}", **look)
        rows += [
            {"family": title.replace("\n", ", "), "mode": mode, "seed": seed}
            | {"trainable": round(x), "accuracy": 100 * value}
            for seed, value in accuracy.items()
        ]
    for role, sides in _SIDES.items():
        style = {"color": "0.45", "linestyle": _LINES[role], "linewidth": 1.2, "zorder": 1}
        axes.plot([], [], label=f"{role} mixing learned", **style)
        for side in sides:
            if corners.keys() >= {*side}:
                axes.plot(*zip(*(corners[end] for end in side), strict=True), **style)
    values = [*effects.interaction().of(numbers).values()]
    if values:
        x, full = corners["full"]
        style = {"color": "0.35", "markerfacecolor": "white", "markersize": 5, "zorder": 2.5}
        both = full - float(np.mean(values))
        if both <= 100:
            axes.plot(x, both, "D", label="sum of both alone", linestyle="", **style)
        else:
            axes.plot(x, 100, "^", label="sum of both alone, above 100 %", linestyle="", **style)
    axes.set(title=title, xlabel="trainable parameters", xscale="log")
    axes.margins(x=0.15, y=0.1)
    places = [x for x, _ in corners.values()] or [1]
    wide = max(places) > 20 * min(places)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if wide else (1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    return rows


def draw_overview(numbers: Numbers) -> Picture | None:
    """A line for each family, the best Full above: accuracy in each mode, and halving radius.

    Ticks are seeds, and marks their means. Left out are families with one mode, and radii outside
    the grid of epsilons.
    """
    found = _trained(numbers.where("E13"))
    found = {title: part for title, part in found.items() if len({r.mode for r in part}) > 1}
    if not found:
        return None
    order = sorted(found, key=lambda title: -sum(_values(found[title], "accuracy", "full")[:1]))
    measured = [name for name in _MEASURES if any(r.metric == name for r in numbers)]
    figure = plots.new_figure(2.2 + 2.9 * len(measured), 0.9 + 0.42 * len(found))
    grid = figure.subplots(1, len(measured), squeeze=False, sharey=True)[0]
    rows: list[dict[str, Any]] = []
    for axes, metric in zip(grid, measured, strict=True):
        measure = _MEASURES[metric]
        for (y, title), mode in itertools.product(enumerate(order), LEARNED):
            values = _values(found[title], metric, mode)
            if len(values):
                mean = float(measure.shown(values.mean()))
                style = {"color": "0.4", "markersize": 8, "markeredgewidth": 0.6, "zorder": 2}
                axes.plot(measure.shown(values), [y] * len(values), "|", **style)
                look = {**plots.series([*MODES].index(mode)), "linestyle": "", "markersize": 5}
                axes.plot(mean, y, label=f"{MODES[mode]}: {LEARNED[mode]}", zorder=3, **look)
                about = {"family": title.replace("\n", ", "), "mode": mode, "metric": metric}
                rows.append({**about, "mean": mean, "seeds": len(values)})
        axes.set_xlabel(measure.label)
        if measure.octaves:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_locator(LogLocator(base=2, subs=(1, 1.5)))
            axes.xaxis.set_major_formatter("{x:g}")
    grid[0].set_yticks(range(len(order)), labels=order, fontsize=7)
    grid[0].invert_yaxis()
    shared_legend(figure, ncols=4)
    return Picture(figure, rows)


def _values(family: Numbers, metric: str, mode: str) -> np.ndarray:
    """What is averaged over seeds; empty if any seed's value is outside the grid."""
    values = np.asarray([*_MEASURES[metric].of(family.where(metric=metric, mode=mode)).values()])
    return values if np.isfinite(values).all() else np.empty(0)


def tables(numbers: Numbers) -> list[Table]:
    """What each mode learns and costs, and what each role brings."""
    found = {title.replace("\n", ", "): part for title, part in _trained(numbers).items()}
    return [*_overview(found), _modes(found), _roles(found)]


def _overview(found: Mapping[str, Numbers]) -> list[Table]:
    """A line for each family, if there are several: the accuracies, and which modes suffice."""
    if len(found) < 2:
        return []
    columns = ["", *(f"{MODES[mode]} ({LEARNED[mode]})" for mode in LEARNED), "suffices"]
    rows = []
    for title, part in found.items():
        accuracies = [part.where(metric="accuracy", mode=mode) for mode in LEARNED]
        rows.append([Cell(title), *map(mean_cell, accuracies), Cell(_sufficient(part))])
    caption = (
        f"Test accuracy in per cent: {OVER_SEEDS} A part suffices if learning it beside norms and "
        f"head recovers at least {100 * effects.NEAR:g} % of the way from Floor to Full, by the "
        f"whole 95 % interval over seeds, and doesn't if it recovers less by the whole interval; "
        f"where the way is under {effects.WAY:g} points, little is to be recovered."
    )
    return [Table(caption, columns, rows)]


def _sufficient(numbers: Numbers) -> str:
    way = [*effects.points("full", "floor").of(numbers).values()]
    if not way or np.mean(way) < effects.WAY:
        return "n/a"
    found = {role: t_interval([*effect.of(numbers).values()]) for role, effect in _BEYOND.items()}
    enough = [role for role, interval in found.items() if interval.low >= 0]
    if enough:
        return "either" if len(enough) == 2 else enough[0]
    return "only both" if all(one.high < 0 for one in found.values()) else "not decided"


def _modes(found: Mapping[str, Numbers]) -> Table:
    attacked = any(part.where(metric="fgsm") for part in found.values())
    columns = ["", "accuracy", "way to Full (%)", "learned", "of all (%)", "training step"]
    columns += ["points / 1,000 learned", "points / 1M of step"]
    columns += ["halving radius"] if attacked else []
    rows = []
    for title, part in found.items():
        rows.append(heading(title, columns))
        for mode in LEARNED:
            own = part.where(mode=mode)
            if accuracy := own.where(metric="accuracy"):
                way = effects.recovered_share(mode).of(part)
                share = spread_cell([*way.values()], accuracy.runs, digits=0)
                name = Cell(f"{MODES[mode]} ({LEARNED[mode]})")
                cells = [name, mean_cell(accuracy), share, *_costs(own), *_worth(part, mode)]
                rows.append(cells + ([radius_cell(own.where(metric="fgsm"))] if attacked else []))
    caption = (
        f"Test accuracy in per cent, and what a mode recovers of the way from Floor to Full: "
        f"{OVER_SEEDS} Learned are the parameters in number and in per cent of all. A training "
        "step is counted in millions of multiply-adds per image, as the network is defined: the "
        "forward pass, the gradients to the layers' inputs, and those of the kernels that are "
        "learned. Then what accuracy above Floor's comes to, in points for each thousand "
        "parameters learned and each million multiply-adds of a step beyond Floor's."
    )
    if attacked:
        caption += (
            " The halving radius, in 1/255, is the size of FGSM's step that halves a model's own "
            f"clean accuracy: {RADIUS_OVER_SEEDS}"
        )
    return Table(caption, columns, rows)


def _costs(numbers: Numbers) -> list[Cell]:
    """Learned parameters, their share of all, and the multiply-adds of a step; of one mode."""
    found = {number.metric: number.value for number in numbers}
    learned, every, step = map(found.get, ("trainable", "parameters", "training_step"))
    return [
        Cell("n/a" if learned is None else f"{learned:,.0f}"),
        Cell("n/a" if learned is None or not every else f"{100 * learned / every:.1f}"),
        Cell("n/a" if step is None else f"{step / 1e6:.3g}"),
    ]


def _worth(family: Numbers, mode: str) -> list[Cell]:
    """Points of accuracy above Floor for a thousand parameters and a million multiply-adds more."""
    points = [*effects.points(mode, "floor").of(family).values()]
    cells = []
    for metric, unit in (("trainable", 1e3), ("training_step", 1e6)):
        own, least = (family.where(metric=metric, mode=one) for one in (mode, "floor"))
        more = (own[0].value - least[0].value) / unit if own and least else 0.0
        worth = f"{np.mean(points) / more:.3g}" if points and more > 0 else "n/a"
        cells.append(Cell(worth.replace("-", "\N{MINUS SIGN}")))
    return cells


def _roles(found: Mapping[str, Numbers]) -> Table:
    attacked = any(part.where(metric="fgsm") for part in found.values())
    shown = {**_EFFECTS, **(_ROBUSTNESS if attacked else {})}
    rows = []
    for title, part in found.items():
        runs = part.where(metric="accuracy").runs
        values = [[*effect.of(part).values()] for effect in shown.values()]
        rows.append([Cell(title), *(interval_cell(one, runs) for one in values)])
    caption = (
        f"What learning a role adds to Floor, in points of accuracy: {OVER_SEEDS_INTERVAL} The "
        "interaction is what both add beyond the sum of what each adds alone. Below 0 the roles "
        "overlap: one makes up for a part of the other, or accuracy nears its ceiling. Then by "
        "how much channel mixing alone is ahead of spatial mixing alone, and how far each is "
        f"above {100 * effects.NEAR:g} % of the way from Floor to Full."
    )
    if attacked:
        caption += " Last the difference between halving radii under FGSM, in octaves."
    return Table(caption, ["", *shown], rows)


def _title(settings: Mapping[str, Any]) -> str:
    """The model and, on a second line, its size and the data set."""
    name = title_of_model(settings)
    return f"{name}\n{size_of_model(settings)}, {title_of(settings['data.name'])}"
