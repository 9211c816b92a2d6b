"""What the panels of figures share: lines over a size, intervals over seeds, reference lines."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from randmix.analysis import plots
from randmix.analysis.spectrum.figures import Picture
from randmix.experiments.statistics import t_interval
from randmix.reproduce import effects
from randmix.reproduce.numbers import Numbers
from randmix.reproduce.titles import MODES


class Panel(NamedTuple):
    """A panel of lines over a size.

    Attributes:
        title: its title.
        numbers: what its lines show.
        about: further columns of its rows.
        baselines: what the lines are to be held against, with the label and appearance of each.
    """

    title: str
    numbers: Numbers
    about: Mapping[str, Any] = {}
    baselines: Sequence[tuple[float, str, Mapping[str, Any]]] = ()


def reference(axes: Axes, value: float, label: str, **appearance: Any) -> None:
    """Draws what the lines are to be held against as a horizontal line."""
    style = {"color": "0.45", "linewidth": 1, "linestyle": (0, (1, 1)), "zorder": 1, **appearance}
    axes.axhline(value, label=label, **style)


def shared_legend(figure: Figure, *, ncols: int) -> None:
    """Names what any panel shows above all of them: modes in their order, then all else."""
    named: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    order = [*MODES.values()]
    labels = sorted(named, key=lambda label: order.index(label) if label in order else len(order))
    handles = [named[label] for label in labels]
    figure.legend(handles, labels, loc="outside upper center", ncols=ncols)


def draw_intervals(axes: Axes, found: Mapping[float, effects.Values], **appearance: Any) -> None:
    """Draws means with their 95 % intervals over seeds; a mean of one seed has none."""
    intervals = [t_interval([*values.values()]) for values in found.values()]
    means = [one.mean for one in intervals]
    halves = [one.high - one.mean if one.n > 1 else 0.0 for one in intervals]
    axes.errorbar([*found], means, halves, **{"linewidth": 1, "capsize": 3, **appearance})


def draw_lines(
    axes: Axes,
    numbers: Numbers,
    x: str,
    by: str,
    titles: dict[str, str],
    rows: list[dict[str, Any]],
    *,
    scale: float,
    more: Mapping[str, Any] = {},
) -> None:
    """Draws one line per value of the setting ``by`` against ``x``.

    A line is drawn at the points that have its seeds, which are those that most points have.

    Args:
        axes: the axes to draw on.
        numbers: numbers of one metric.
        x: the setting on the x axis.
        by: the setting that tells lines apart.
        titles: legend entry by value of ``by``, in drawing order.
        rows: the figure's data, to which those drawn are appended.
        scale: factor for the values; 100 for per cent.
        more: further columns of the rows.
    """
    for place, (value, title) in enumerate(titles.items()):
        part = numbers.where(**{by: value})
        by_x = {point: part.where(**{x: point}).by_seed() for point in part.values(x)}
        if not by_x:
            continue
        # The seeds that most points have: along a line, means must be over the same seeds.
        seeds = max(
            (sorted(at) for at in by_x.values()),
            key=lambda own: (sum(at.keys() >= {*own} for at in by_x.values()), len(own)),
        )
        by_x = {point: at for point, at in by_x.items() if at.keys() >= {*seeds}}
        values = scale * np.asarray([[at[seed] for at in by_x.values()] for seed in seeds])
        plots.mean_and_spread(axes, [*by_x], values, label=title, **plots.series(place))
        spreads = values.std(axis=0, ddof=1) if len(seeds) > 1 else np.full(len(by_x), np.nan)
        about = {"series": title, **more}
        rows += [
            {**about, x.rpartition(".")[2]: point, "mean": mean, "std": std, "seeds": len(seeds)}
            for point, mean, std in zip(by_x, values.mean(axis=0), spreads, strict=True)
        ]
    points = numbers.values(x)
    if not axes.has_data():
        axes.text(
            0.5, 0.5, "no runs", ha="center", va="center", color="0.5", transform=axes.transAxes
        )
        axes.set_xticks([])
    if x in ("model.width", "epsilon") and len(points) > 2:
        if x == "epsilon":
            axes.set_xscale("symlog", base=2, linthresh=points[1])
        else:
            axes.set_xscale("log", base=2)
        axes.minorticks_off()
    if points:
        axes.set_xticks(points, [f"{point:g}" for point in points])


def draw_panels(
    rows: Sequence[tuple[str, Sequence[Panel]]],
    x: str,
    xlabel: str,
    *,
    scale: float = 100,
) -> Picture | None:
    """Draws rows of panels, each with its label and a line per mode; None without rows."""
    if not rows:
        return None
    columns = len(rows[0][1])
    figure = plots.new_figure(max(3.6, 0.6 + 2.0 * columns), 0.5 + 2.1 * len(rows))
    grid = figure.subplots(len(rows), columns, squeeze=False, sharey="row")
    table: list[dict[str, Any]] = []
    for (label, panels), line in zip(rows, grid, strict=True):
        for panel, axes in zip(panels, line, strict=True):
            more = panel.about
            draw_lines(axes, panel.numbers, x, "mode", MODES, table, scale=scale, more=more)
            for value, name, appearance in panel.baselines:
                reference(axes, value, name, **appearance)
            axes.set(title=panel.title)
        line[0].set_ylabel(label)
    for axes in grid[-1]:
        axes.set_xlabel(xlabel)
    shared_legend(figure, ncols=5)
    return Picture(figure, table)
