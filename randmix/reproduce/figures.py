"""The paper's figures, drawn from records.

Lines are means over seeds, bands one standard deviation. Each function accepts `Records` and
returns a picture, or None if there is nothing to draw yet. Pictures of filters and images are drawn
by ``spectrum`` and ``unshuffle`` and stored by ``measurements``.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from randmix.analysis import plots, smoothing
from randmix.analysis.spectrum.figures import Picture
from randmix.reproduce import curves
from randmix.reproduce.effects import conditions, ranked
from randmix.reproduce.records import BANKS, MODES, Records
from randmix.reproduce.titles import DATA, MODELS, title_of, title_of_model

_LEFT = 0.05  # least accuracy, on average, of which a relative gain is drawn


class Panel(NamedTuple):
    """A panel of lines over a size: its title, its records, and further columns of its rows."""

    title: str
    records: Records
    about: Mapping[str, Any] = {}


def accuracy_over(records: Records, experiment: str, size: str, xlabel: str) -> Picture | None:
    """Test accuracy against a size: figures 2, 4 and 5.

    One panel per data set, one line per mode.

    Args:
        records: all records.
        experiment: "E2", "E4" or "E5".
        size: the setting on the x axis, for example "model.depth".
        xlabel: label of the x axis.
    """
    accuracy = records.where(experiment, "accuracy")
    panels = [
        Panel(title_of(name), accuracy.where(data__name=name))
        for name in accuracy.values("data.name")
    ]
    return _panels([("test accuracy (%)", panels)] if panels else [], size, xlabel)


def bars(records: Records) -> Picture | None:
    """Figure 3: test accuracy of Full, and of Chans with each kind of filters.

    One panel per model and number of filters per channel; in the last, accuracy against coverage
    for banks of each rank. Dots are seeds, whiskers one standard deviation.
    """
    accuracy = records.where("E3", "accuracy")
    plain = Records(r for r in accuracy if r.settings.get("model.filter_rank") is None)
    panels = [*conditions(plain, ("model.name", "model.multiplier"))]
    if not panels:
        return None
    by_rank = ranked(accuracy)
    columns = len(panels) + bool(by_rank)
    figure = plots.new_figure(0.6 + 2.1 * columns, 2.8)
    grid = figure.subplots(1, columns, squeeze=False, sharey=True)[0]
    rows: list[dict[str, Any]] = []
    for axes, part in zip(grid, panels, strict=False):
        _bars(axes, part, rows)
    if by_rank:
        _ranks(grid[-1], by_rank, rows)
    lowest = min(row["accuracy"] for row in rows)
    # Bars start at zero unless all are high: their differences would then be invisible.
    grid[0].set_ylim(0 if lowest < 70 else 10 * math.floor((lowest - 5) / 10), None)
    grid[0].set(ylabel="test accuracy (%)")
    return Picture(figure, rows)


_NO_RANK = {"rank": "", "coverage": ""}  # of the bars' rows, which share a table with ranks


def _bars(axes: Axes, records: Records, rows: list[dict[str, Any]]) -> None:
    title = title_of_model(records[0].settings)
    chans = records.where(mode="chans")
    groups = {"Full": records.where(mode="full")}
    groups |= {name: chans.where(model__filters=bank) for bank, name in BANKS.items()}
    groups = {name: part for name, part in groups.items() if part}
    for i, (name, part) in enumerate(groups.items()):
        values = 100 * np.asarray([*part.by_seed().values()])
        spread = values.std(ddof=1) if len(values) > 1 else 0
        color = plots.COLORS[0 if name == "Full" else 1 + [*BANKS.values()].index(name)]
        axes.bar(i, values.mean(), 0.6, color=color, yerr=spread or None, capsize=3)
        places = [i + 0.18] * len(values)
        axes.plot(places, values, "o", color="white", markeredgecolor="black", markersize=3)
        rows += [
            {**_NO_RANK, "model": title, "filters": name, "seed": seed, "accuracy": value}
            for seed, value in zip(part.by_seed(), values, strict=True)
        ]
    axes.set_xticks(range(len(groups)), [*groups], rotation=40, ha="right")
    axes.set(title=title)
    axes.grid(False, axis="x")


def _ranks(axes: Axes, records: Records, rows: list[dict[str, Any]]) -> None:
    for i, rank in enumerate(records.values("bank_rank")):
        part = records.where(bank_rank=rank)
        coverages = [record.settings["bank_coverage"] for record in part]
        values = [100 * record.value for record in part]
        style = {**plots.series(i), "linestyle": "", "markersize": 4}
        axes.plot(coverages, values, label=f"rank {rank}", **style)
        rows += [
            {
                **{"model": MODELS["resnet"], "filters": "impulses", "rank": rank, "coverage": x},
                **{"seed": r.seed, "accuracy": y},
            }
            for r, x, y in zip(part, coverages, values, strict=True)
        ]
    axes.set(title="impulses of chosen rank", xlabel="coverage")
    axes.legend()


def attacked_over_depth(records: Records) -> Picture | None:
    """Figure 6: accuracy under attack, averaged over all epsilons above 0, against depth.

    One row of panels per model and data set, one panel per attack.
    """
    attacked = Records(r for r in records.where("E6") if r.settings.get("epsilon", 0) > 0)
    rows = []
    for model, data in _models(attacked):
        label = f"{MODELS[model]}, {title_of(data)}\naccuracy under attack (%)"
        part = attacked.where(model__name=model, data__name=data)
        about = {"model": model, "data": data}
        rows.append((label, _attacks(part, about, strong="strong attack")))
    return _panels(rows, "model.depth", "depth")


def attacked_over_epsilon(records: Records) -> Picture | None:
    """Figure 6's other axis: accuracy against epsilon at the largest depth.

    One row of panels per model and data set, one panel per attack.
    """
    attacked = Records(r for r in records.where("E6") if "epsilon" in r.settings)
    rows = []
    for model, data in _models(attacked):
        part = attacked.where(model__name=model, data__name=data)
        depth = part.values("model.depth")[-1]
        label = f"{MODELS[model]}, depth {depth}\naccuracy under attack (%)"
        about = {"model": model, "data": data, "depth": depth}
        rows.append((label, _attacks(part.where(model__depth=depth), about, strong="strong")))
    picture = _panels(rows, "epsilon", "epsilon (1/255)")
    for axes in picture.figure.axes if picture else ():
        axes.set(ylim=(-3, 103))
    return picture


def _models(attacked: Records) -> list[tuple[str, str]]:
    """The pairs of model and data set among the records, ResNets first."""
    pairs = {(r.settings["model.name"], r.settings["data.name"]) for r in attacked}
    return sorted(pairs, reverse=True)


def _attacks(records: Records, about: dict[str, Any], *, strong: str) -> list[Panel]:
    columns = [("FGSM", "fgsm", False), ("PGD-2", "pgd2", False), ("FGSM, defended", "fgsm", True)]
    return [
        Panel(
            title,
            Records(r for r in records.where(metric=attack) if r.defended == defended),
            {"panel": title, **about},
        )
        for title, attack, defended in (*columns, (strong, "strong", False))
    ]


def smoothing_gains(records: Records) -> Picture | None:
    """Figure 7: relative gain under FGSM, and clean accuracy, against the smoothing index.

    One line per epsilon, over the seeds that have all indices.
    """
    fgsm, clean = records.where("E7", "fgsm"), records.where("E7", "accuracy")
    indices = clean.values("model.smoothing_index")
    plain = fgsm.where(model__smoothing_index=0.0)
    largest = _largest_epsilon(plain)
    if largest is None or len(indices) < 2:
        return None
    gains, rows = {}, []
    for epsilon in (e for e in fgsm.values("epsilon") if 0 < e <= largest):
        before = plain.where(epsilon=epsilon)
        lines = [
            _relative_gains(before, fgsm.where(model__smoothing_index=index, epsilon=epsilon))
            for index in indices
        ]
        seeds = min(map(len, lines))
        gains[epsilon] = np.asarray([line[:seeds] for line in lines]).T
        rows += [
            {"smoothing_index": index, "epsilon": epsilon, "relative_gain": float(np.mean(line))}
            for index, line in zip(indices, lines, strict=True)
        ]
    at_index = [clean.where(model__smoothing_index=index).by_seed() for index in indices]
    seeds = sorted(set.intersection(*map(set, at_index)))
    accuracies = 100 * np.asarray([[at[seed] for at in at_index] for seed in seeds])
    figure = smoothing.figure(indices, gains, accuracies, ylabel="relative gain under FGSM (%)")
    return Picture(figure, rows)


def _largest_epsilon(plain: Records) -> float | None:
    """The largest epsilon above 0, in 1/255, that leaves some accuracy; None if there is none."""
    left = [
        epsilon
        for epsilon in plain.values("epsilon")
        if epsilon > 0 and np.mean([r.value for r in plain.where(epsilon=epsilon)]) >= _LEFT
    ]
    return max(left, default=None)


def _relative_gains(plain: Records, smoothed: Records) -> list[float]:
    """Relative gain in accuracy of smoothed over plain filters, in per cent, one per seed."""
    before, after = plain.by_seed(), smoothed.by_seed()
    return [
        100 * (after[seed] - before[seed]) / before[seed] if before[seed] else math.nan
        for seed in sorted(before.keys() & after.keys())
    ]


def psnr_over_width(records: Records) -> Picture | None:
    """Figures B.4 and B.5: test PSNR against width.

    One row of panels per data set, one panel per depth and kernel size.
    """
    psnr = records.where("E10", "psnr")
    sizes = sorted({(r.settings["model.depth"], r.settings["model.kernel_size"]) for r in psnr})
    rows = []
    for name in psnr.values("data.name"):
        panels = [
            Panel(
                f"{title_of(name)}, depth {depth}, k {kernel}",
                psnr.where(data__name=name, model__depth=depth, model__kernel_size=kernel),
                {"data": name, "depth": depth, "kernel_size": kernel},
            )
            for depth, kernel in sizes
        ]
        rows.append(("test PSNR (dB)", panels))
    return _panels(rows, "model.width", "width", scale=1, legend_in_fullest=True)


def accuracy_over_share(records: Records) -> Picture | None:
    """E12: test accuracy against the share of spatial filters that are learned."""
    accuracy = records.where("E12", "accuracy")
    if not accuracy:
        return None
    figure = plots.new_figure(4.2, 2.8)
    axes = figure.subplots()
    rows: list[dict[str, Any]] = []
    _lines(axes, accuracy, "share", "data.name", DATA, rows, scale=100)
    axes.set(xlabel="share of spatial filters learned", ylabel="test accuracy (%)")
    return Picture(figure, rows)


# Figures drawn from records, by name; all others are pictures stored by ``measurements``.
DRAWN: dict[str, Callable[[Records], Picture | None]] = {
    "E2": partial(
        accuracy_over, experiment="E2", size="model.depth", xlabel="depth (blocks per stage)"
    ),
    "E3": bars,
    "E4": partial(accuracy_over, experiment="E4", size="model.width", xlabel="base width"),
    "E5": partial(accuracy_over, experiment="E5", size="model.depth", xlabel="depth (blocks)"),
    "E6-depth": attacked_over_depth,
    "E6-epsilon": attacked_over_epsilon,
    "E7": smoothing_gains,
    "E10": psnr_over_width,
    "E12": accuracy_over_share,
    **{
        f"{id}-curves": partial(curves.draw, experiment=id)
        for id in ("E2", "E3", "E4", "E5", "E6", "E7", "E9", "E10", "E12", "convergence")
    },
}


def _panels(
    rows: Sequence[tuple[str, Sequence[Panel]]],
    x: str,
    xlabel: str,
    *,
    scale: float = 100,
    legend_in_fullest: bool = False,
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
            _lines(axes, panel.records, x, "mode", MODES, table, scale=scale, more=more)
            axes.set(title=panel.title)
        line[0].set_ylabel(label)
    for axes in grid[-1]:
        axes.set_xlabel(xlabel)
    fullest = max(grid.ravel(), key=lambda axes: len(axes.lines))
    (fullest if legend_in_fullest else grid[0][-1]).legend()
    return Picture(figure, table)


def _lines(
    axes: Axes,
    records: Records,
    x: str,
    by: str,
    titles: dict[str, str],
    rows: list[dict[str, Any]],
    *,
    scale: float,
    more: Mapping[str, Any] = {},
) -> None:
    """Draws one line per value of the setting ``by`` against ``x``, at the points all seeds have.

    Args:
        axes: the axes to draw on.
        records: records of one metric.
        x: the setting on the x axis.
        by: the setting that tells lines apart.
        titles: legend entry by value of ``by``, in drawing order.
        rows: the figure's data, to which those drawn are appended.
        scale: factor for the values; 100 for per cent.
        more: further columns of the rows.
    """
    for place, (value, title) in enumerate(titles.items()):
        part = records.where(**{by: value})
        by_x = {point: part.where(**{x: point}).by_seed() for point in part.values(x)}
        if not by_x:
            continue
        # A point that some seeds lack would average over other seeds than its neighbours do.
        seeds = sorted(max(by_x.values(), key=len))
        by_x = {point: at for point, at in by_x.items() if at.keys() >= {*seeds}}
        values = scale * np.asarray([[at[seed] for at in by_x.values()] for seed in seeds])
        plots.mean_and_spread(axes, [*by_x], values, label=title, **plots.series(place))
        spreads = values.std(axis=0, ddof=1) if len(seeds) > 1 else np.full(len(by_x), np.nan)
        about = {"series": title, **more}
        rows += [
            {**about, x.rpartition(".")[2]: point, "mean": mean, "std": std, "seeds": len(seeds)}
            for point, mean, std in zip(by_x, values.mean(axis=0), spreads, strict=True)
        ]
    points = records.values(x)
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
