"""E14: which frozen filters suffice, between Floor and Full."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from randmix.analysis import plots
from randmix.analysis.spectrum.figures import Picture
from randmix.experiments.statistics import differences, t_interval
from randmix.reproduce import effects
from randmix.reproduce.cells import (
    OVER_SEEDS,
    OVER_SEEDS_INTERVAL,
    Cell,
    Table,
    interval_cell,
    mean_cell,
)
from randmix.reproduce.numbers import Numbers
from randmix.reproduce.titles import (
    FILTERS,
    MODES,
    size_of_model,
    title_of,
    title_of_filters,
    title_of_model,
)

_DIFFERENT = FILTERS["random"]
_MODEL = ("data.name", "model.name", *effects.SIZES)
_ENDS = ("full", "floor")


def banks(numbers: Numbers) -> dict[str, Numbers]:
    """The numbers of models with each kind of frozen filters, by title, the most accurate first.

    Filters that come from other runs are one kind, unless a seed has been given several.

    Args:
        numbers: accuracies of one model on one data set.
    """
    chans = numbers.where(mode="chans")
    names = chans.values("model.filters")
    elsewhere = [name for name in names if name.startswith("from=")]
    seeds = [seed for name in elsewhere for seed in chans.where(model__filters=name).by_seed()]
    apart = len(seeds) > len({*seeds})
    found: dict[str, Numbers] = {}
    for name in names:
        title = title_of_filters(name)
        if apart and name in elsewhere:
            title += f" {elsewhere.index(name) + 1}"
        found.setdefault(title, Numbers()).extend(chans.where(model__filters=name))
    return dict(sorted(found.items(), key=lambda item: -_mean(item[1])))


def minus_different(found: Mapping[str, Numbers]) -> dict[str, effects.Values]:
    """The paired differences, in points, of each bank's accuracy to that of Different.

    Args:
        found: the numbers of each bank, from ``banks``.
    """
    reference = found.get(_DIFFERENT, Numbers()).by_seed()
    return {
        name: {s: 100 * v for s, v in differences(part.by_seed(), reference).items()}
        for name, part in found.items()
        if name != _DIFFERENT
    }


def draw(numbers: Numbers) -> Picture | None:
    """Accuracy with each kind of frozen filters, and its paired difference to Different.

    One row of panels per model and data set, with Full and Floor as vertical lines.
    """
    models = [part for part in _models(numbers.where("E14")) if banks(part)]
    if not models:
        return None
    heights = [1.1 + 0.24 * len(banks(part)) for part in models]
    figure = plots.new_figure(6.4, sum(heights))
    grid = figure.subplots(len(models), 2, squeeze=False, height_ratios=heights, sharey="row")
    rows: list[dict[str, Any]] = []
    for (left, right), part in zip(grid, models, strict=True):
        found = banks(part)
        _accuracies(left, found, part)
        _differences(right, minus_different(found), [*found])
        left.set_yticks(range(len(found)), [*found])
        left.set_ylim(len(found) - 0.5, -0.5)
        left.set_title(_title(part).replace(", ", "\n", 1), pad=14)
        rows += _rows(part, found)
    return Picture(figure, rows)


def tables(numbers: Numbers) -> list[Table]:
    """For each model and data set, a row per kind of frozen filters, between Full and Floor.

    Args:
        numbers: those of E14.
    """
    return [_table(part) for part in _models(numbers)]


def _table(numbers: Numbers) -> Table:
    full, floor = (numbers.where(mode=mode) for mode in _ENDS)
    found = banks(numbers)
    apart = minus_different(found)
    rows = []
    for name, own in {"Full": full, **found, "Floor": floor}.items():
        if own:
            ranks, coverages = (
                [number.settings[key] for number in own if key in number.settings]
                for key in ("bank_rank", "bank_coverage")
            )
            rows.append(
                [
                    Cell(name),
                    Cell(f"{np.mean(ranks):.3g}" if ranks else ""),
                    Cell(f"{np.mean(coverages):.2f}" if coverages else ""),
                    mean_cell(own),
                    interval_cell([*apart[name].values()], own.runs) if name in apart else Cell(""),
                ]
            )
    caption = (
        f"{_title(numbers)}: test accuracy in per cent, {OVER_SEEDS} The difference is to "
        f"{_DIFFERENT} with the same seed, in points: {OVER_SEEDS_INTERVAL} Rank and coverage are "
        "measured, and are means over layers."
    )
    return Table(caption, ["filters", "rank", "coverage", "accuracy", "difference"], rows)


def _models(numbers: Numbers) -> list[Numbers]:
    """The accuracies of each model on each data set."""
    return [*effects.conditions(numbers.where(metric="accuracy"), _MODEL)]


def _title(part: Numbers) -> str:
    settings = part[0].settings
    size = f"{size_of_model(settings)}, {title_of(settings['data.name'])}"
    return f"{title_of_model(settings)}, {size}"


def _accuracies(axes: Axes, found: Mapping[str, Numbers], numbers: Numbers) -> None:
    """Draws each bank's accuracy, and those of Full and Floor as lines with their intervals."""
    for y, part in enumerate(found.values()):
        _interval(axes, y, [100 * value for value in part.by_seed().values()])
    for mode in _ENDS:
        values = [100 * value for value in numbers.where(mode=mode).by_seed().values()]
        if values:
            end = t_interval(values)
            if end.n > 1:
                axes.axvspan(end.low, end.high, color="0.9", zorder=0)
            axes.axvline(end.mean, color="0.45", linewidth=1, linestyle=(0, (4, 2)), zorder=1)
            axes.annotate(
                MODES[mode],
                (end.mean, 1),
                (0, 2),
                xycoords=axes.get_xaxis_transform(),
                textcoords="offset points",
                ha="left" if mode == "full" else "right",
                fontsize=7,
                color="0.35",
            )
    axes.set_xlabel("test accuracy (%), 95 % interval")
    axes.grid(False, axis="y")


def _differences(axes: Axes, apart: Mapping[str, effects.Values], names: list[str]) -> None:
    axes.axvspan(-effects.BANK_MARGIN, effects.BANK_MARGIN, color="#dfe6ef", zorder=0)
    axes.axvline(0, color="0.6", linewidth=0.8, zorder=0.5)
    for y, name in enumerate(names):
        _interval(axes, y, [*apart.get(name, {}).values()])
    if not any(apart.values()):
        axes.text(0, (len(names) - 1) / 2, "nothing to compare", ha="center", color="0.4")
    axes.set_xlabel(
        f"difference to {_DIFFERENT} (points), 95 % interval\nband: ±{effects.BANK_MARGIN:g} points"
    )
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")


def _interval(axes: Axes, y: float, values: list[float]) -> None:
    """Draws a mean with its interval, and the seeds as small dots."""
    if not values:
        return
    interval = t_interval(values)
    if interval.n > 1:
        axes.plot([interval.low, interval.high], [y, y], color=plots.COLORS[0], linewidth=1.4)
    axes.plot(values, [y] * len(values), "|", color="0.4", ms=7, mew=0.6)
    axes.plot(interval.mean, y, "o", color=plots.COLORS[0], markersize=4)


def _rows(numbers: Numbers, found: Mapping[str, Numbers]) -> list[dict[str, Any]]:
    ends = {MODES[mode]: numbers.where(mode=mode) for mode in _ENDS}
    apart = minus_different(found)
    return [
        {
            **{"model": _title(numbers), "filters": name, "seed": seed, "accuracy": 100 * value},
            "minus_different": apart.get(name, {}).get(seed, ""),
        }
        for name, part in itertools.chain(found.items(), ends.items())
        for seed, value in part.by_seed().items()
    ]


def _mean(numbers: Numbers) -> float:
    return float(np.mean([*numbers.by_seed().values()]))
