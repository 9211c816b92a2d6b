"""The paper's figures, drawn from numbers.

Lines are means over seeds, bands one standard deviation. Each function accepts `Numbers` and
returns a picture, or None if there is nothing to draw yet. E12 to E15 have modules of their own.
Over 400 lines: the paper's figures share the helpers below, and stand in the paper's order.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from randmix.analysis import plots, smoothing
from randmix.analysis.spectrum.figures import Picture
from randmix.experiments.statistics import t_interval
from randmix.reproduce import curves, effects, frozen_filters, lattice, scaling, shares
from randmix.reproduce.effects import conditions, ranked
from randmix.reproduce.experiments import EXPERIMENTS
from randmix.reproduce.numbers import Numbers
from randmix.reproduce.panels import (
    Panel,
    draw_intervals,
    draw_lines,
    draw_panels,
    reference,
    shared_legend,
)
from randmix.reproduce.titles import ATTACKS, BANKS, MODELS, MODES, title_of, title_of_model

_HIGH = 80  # per cent, above which accuracies would merge on an axis from zero
_LEFT = 0.05  # least accuracy of which a relative gain is drawn, if chance isn't higher


def accuracy_over(numbers: Numbers, experiment: str, size: str, xlabel: str) -> Picture | None:
    """Test accuracy against a size: figures 2, 4 and 5.

    One column per data set and model, one line per mode, with chance; below, Full - Chans, which
    claims are about.

    Args:
        numbers: all numbers.
        experiment: "E2", "E4" or "E5".
        size: the setting on the x axis, for example "model.depth".
        xlabel: label of the x axis.
    """
    accuracy = numbers.where(experiment, "accuracy")
    panels = sorted({(r.settings["data.name"], r.settings["model.name"]) for r in accuracy})
    if not panels:
        return None
    figure = plots.new_figure(max(4.2, 0.6 + 2.4 * len(panels)), 4.4)
    grid = figure.subplots(2, len(panels), squeeze=False, sharey="row", height_ratios=(1.6, 1))
    rows: list[dict[str, Any]] = []
    for (above, below), (data, model) in zip(grid.T, panels, strict=True):
        part = accuracy.where(data__name=data, model__name=model)
        about = {"data": data, "model": model}
        draw_lines(above, part, size, "mode", MODES, rows, scale=100, more=about)
        above.set(title=f"{MODELS[model]}\n{title_of(data)}")
        _differences(below, part, size, rows, about)
        below.set(xlabel=xlabel)
    start = _start(rows)
    for above, (data, _) in zip(grid[0], panels, strict=True):
        for classes in accuracy.where(data__name=data).values("num_classes")[:1]:
            _chance(above, 100 / classes, start)
    grid[0][0].set(ylim=(start, 102 - 0.02 * start))
    grid[0][0].set_ylabel("test accuracy (%)" + (f",\naxis from {start} %" if start else ""))
    grid[1][0].set_ylabel("Full - Chans (points),\n95 % interval")
    shared_legend(figure, ncols=5)
    return Picture(figure, rows)


def _start(rows: Sequence[Mapping[str, Any]]) -> int:
    """Where an axis of accuracies starts, in per cent: at zero unless all but Floor are high.

    Lines near the top of an axis from zero would lie on one another.
    """
    means = {mode: [r["mean"] for r in rows if r["series"] == mode] for mode in MODES.values()}
    others = [mean for mode, own in means.items() if mode != MODES["floor"] for mean in own]
    if min(others, default=0) <= _HIGH:
        return 0
    return max(0, 10 * math.floor((min(itertools.chain(*means.values())) - 5) / 10))


def _chance(axes: Axes, chance: float, start: float) -> None:
    """Draws chance, in per cent, or says it where the axis starts above it."""
    if chance >= start:
        reference(axes, chance, "chance")
    else:
        style = {"ha": "right", "va": "bottom", "fontsize": 7, "color": "0.45"}
        axes.text(0.98, 0.02, f"chance: {chance:g} %", transform=axes.transAxes, **style)


def _differences(
    axes: Axes, numbers: Numbers, x: str, rows: list[dict[str, Any]], more: Mapping[str, Any]
) -> None:
    """Draws Full - Chans against ``x``, which claims are about, with intervals over seeds."""
    effect = effects.points("full", "chans")
    found = {point: effect.of(numbers.where(**{x: point})) for point in numbers.values(x)}
    found = {point: values for point, values in found.items() if values}
    draw_intervals(axes, found, color="0.3", marker="o")  # no mode's colour
    axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    for point, values in found.items():
        array = np.asarray([*values.values()])
        spread = array.std(ddof=1) if len(array) > 1 else math.nan
        about = {"series": effect.words, **more, x.rpartition(".")[2]: point}
        rows.append({**about, "mean": array.mean(), "std": spread, "seeds": len(array)})
    if x == "model.width" and len(found) > 2:
        axes.set_xscale("log", base=2)
        axes.minorticks_off()
    axes.set_xticks([*found], [f"{point:g}" for point in found])


def bars(numbers: Numbers) -> Picture | None:
    """Figure 3: test accuracy of Full, and of Chans with each kind of filters.

    One panel per model and number of filters per channel; in the last, accuracy against coverage
    for banks of each rank. Dots are seeds, whiskers one standard deviation.
    """
    accuracy = numbers.where("E3", "accuracy")
    plain = accuracy.where(model__filter_rank=None)
    panels = [*conditions(plain, ("model.name", "model.multiplier"))]
    by_rank = ranked(accuracy)
    if not panels and not by_rank:
        return None
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


def _bars(axes: Axes, numbers: Numbers, rows: list[dict[str, Any]]) -> None:
    title = title_of_model(numbers[0].settings)
    chans = numbers.where(mode="chans")
    groups = {"Full": numbers.where(mode="full")}
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


def _ranks(axes: Axes, numbers: Numbers, rows: list[dict[str, Any]]) -> None:
    for i, rank in enumerate(numbers.values("bank_rank")):
        part = numbers.where(bank_rank=rank)
        coverages = [number.settings["bank_coverage"] for number in part]
        values = [100 * number.value for number in part]
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


def attacked_over_depth(numbers: Numbers) -> Picture | None:
    """Figure 6: accuracy under attack, averaged over all epsilons above 0, against depth.

    One row of panels per model and data set, one panel per attack.
    """
    attacked = Numbers(r for r in numbers.where("E6") if r.settings.get("epsilon", 0) > 0)
    rows = []
    for model, data in _models(attacked):
        label = f"{MODELS[model]}, {title_of(data)}\naccuracy under attack (%)"
        part = attacked.where(model__name=model, data__name=data)
        about = {"model": model, "data": data}
        rows.append((label, _attacks(part, about, strong="strong attack")))
    return draw_panels(rows, "model.depth", "depth")


def attacked_over_epsilon(numbers: Numbers) -> Picture | None:
    """Figure 6's other axis: accuracy against epsilon at the largest depth.

    One row of panels per model and data set, one panel per attack.
    """
    attacked = Numbers(r for r in numbers.where("E6") if "epsilon" in r.settings)
    rows = []
    for model, data in _models(attacked):
        part = attacked.where(model__name=model, data__name=data)
        both = {r.settings["model.depth"] for r in part if r.defended}
        depth = max(both or part.values("model.depth"))  # defended models may be smaller
        label = f"{MODELS[model]}, depth {depth}\naccuracy under attack (%)"
        about = {"model": model, "data": data, "depth": depth}
        rows.append((label, _attacks(part.where(model__depth=depth), about, strong="strong")))
    picture = draw_panels(rows, "epsilon", "epsilon (1/255)")
    for axes in picture.figure.axes if picture else ():
        axes.set(ylim=(-3, 103))
    return picture


def octaves(numbers: Numbers) -> Picture | None:
    """What claims 4a to 4d judge: Chans - Full in octaves of the radius that halves accuracy.

    One panel per model and data set, one row per attack, without and with training on FGSM samples.
    """
    attacked = Numbers(r for r in numbers.where("E6") if "epsilon" in r.settings)
    panels = _models(attacked)
    if not panels:
        return None
    lines = [(attack, defended) for defended in (False, True) for attack in effects.ATTACKS]
    figure = plots.new_figure(1.6 + 2.4 * len(panels), 2.9)
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    rows = []
    for axes, (model, data) in zip(grid, panels, strict=True):
        part = numbers.where("E6", model__name=model, data__name=data)
        axes.axvspan(-effects.RADIUS_MARGIN, effects.RADIUS_MARGIN, color="#dfe6ef", zorder=0)
        axes.axvline(0, color="0.6", linewidth=0.8, zorder=0.5)
        for y, (attack, defended) in enumerate(lines):
            interval = t_interval([*effects.octaves(attack, defended=defended).of(part).values()])
            known, style = not math.isnan(interval.mean), plots.series(int(defended))
            if known and interval.n > 1:
                axes.plot([interval.low, interval.high], [y, y], color=style["color"])
            if known:
                axes.plot(interval.mean, y, **style)
            else:
                words = "outside the grid" if interval.n else "no runs"
                axes.text(0, y, words, ha="center", va="center", color="0.4", fontsize=7)
            rows.append(
                {
                    **{"model": model, "data": data, "attack": attack, "defended": defended},
                    **{"octaves": interval.mean, "low": interval.low, "high": interval.high},
                    "seeds": interval.n,
                }
            )
        axes.set(title=f"{MODELS[model]}, {title_of(data)}", ylim=(len(lines) - 0.5, -0.5))
        axes.grid(False, axis="y")
        widest = max(map(abs, axes.get_xlim()))
        axes.set_xlim(-widest, widest)
        axes.set_xlabel("Chans - Full (octaves), 95 % interval\nright: Chans is more robust")
    names = [f"{ATTACKS[a]}{', defended' if defended else ''}" for a, defended in lines]
    grid[0].set_yticks(range(len(lines)), names)
    return Picture(figure, rows)


def _models(attacked: Numbers) -> list[tuple[str, str]]:
    """The pairs of model and data set among the numbers, ResNets first."""
    pairs = {(r.settings["model.name"], r.settings["data.name"]) for r in attacked}
    return sorted(pairs, reverse=True)


def _attacks(numbers: Numbers, about: dict[str, Any], *, strong: str) -> list[Panel]:
    columns = [("FGSM", "fgsm", False), ("PGD-2", "pgd2", False), ("FGSM, defended", "fgsm", True)]
    return [
        Panel(
            title,
            Numbers(r for r in numbers.where(metric=attack) if r.defended == defended),
            {"panel": title, **about},
        )
        for title, attack, defended in (*columns, (strong, "strong", False))
    ]


def smoothing_gains(numbers: Numbers) -> Picture | None:
    """Figure 7: relative gain under FGSM, and clean accuracy, against the smoothing index.

    One line per epsilon, over the seeds that have all indices. A gain is relative to each seed's
    own accuracy, so an epsilon that leaves a seed next to none is left out: one image more or less
    would decide.
    """
    fgsm, clean = numbers.where("E7", "fgsm"), numbers.where("E7", "accuracy")
    indices = fgsm.values("model.smoothing_index")
    plain = fgsm.where(model__smoothing_index=0.0)
    least = max([_LEFT, *(1 / classes for classes in plain.values("num_classes"))])
    largest = _largest_epsilon(plain, least)
    if largest is None or len(indices) < 2:
        return None
    gains, rows = {}, []
    for epsilon in (e for e in fgsm.values("epsilon") if 0 < e <= largest):
        before = plain.where(epsilon=epsilon)
        lines = [
            _relative_gains(before, fgsm.where(model__smoothing_index=index, epsilon=epsilon))
            for index in indices
        ]
        seeds = sorted(set.intersection(*map(set, lines)))
        if not seeds:
            continue
        gains[epsilon] = np.asarray([[line[seed] for line in lines] for seed in seeds])
        rows += [
            {"smoothing_index": index, "epsilon": epsilon, "relative_gain": float(gain)}
            for index, gain in zip(indices, gains[epsilon].mean(0), strict=True)
        ]
    if not gains:
        return None
    at_index = [clean.where(model__smoothing_index=index).by_seed() for index in indices]
    seeds = sorted(set.intersection(*map(set, at_index)))
    accuracies = 100 * np.asarray([[at[seed] for at in at_index] for seed in seeds])
    figure = smoothing.figure(indices, gains, accuracies, ylabel="relative gain under FGSM (%)")
    if largest < max(plain.values("epsilon")):
        words = f"larger epsilons leave a seed less than {100 * least:g} % accuracy"
        figure.axes[0].set_title(words, fontsize=7, color="0.4")
    return Picture(figure, rows)


def _largest_epsilon(plain: Numbers, least: float) -> float | None:
    """The largest epsilon above 0, in 1/255, that leaves each seed some accuracy.

    Where none does, it is the smallest, unless hardly any accuracy is left on average: then None.
    """
    at = {e: [r.value for r in plain.where(epsilon=e)] for e in plain.values("epsilon") if e > 0}
    left = [epsilon for epsilon, values in at.items() if min(values) >= least]
    smallest = [epsilon for epsilon in [*at][:1] if np.mean(at[epsilon]) >= _LEFT]
    return max([*smallest, *left], default=None)


def _relative_gains(plain: Numbers, smoothed: Numbers) -> effects.Values:
    """Relative gain in accuracy of smoothed over plain filters, in per cent, by seed."""
    before, after = plain.by_seed(), smoothed.by_seed()
    return {
        seed: 100 * (after[seed] - before[seed]) / before[seed] if before[seed] else math.nan
        for seed in before.keys() & after.keys()
    }


def psnr_over_width(numbers: Numbers) -> Picture | None:
    """Figures B.4 and B.5: test PSNR against width.

    One row of panels per data set, one panel per depth and kernel size. A dotted line is the PSNR
    of the mean training image, a dashed one that of a linear regression on what the model sees. One
    far above the models, which would flatten them, stands in the title.
    """
    psnr = numbers.where("E10", "psnr")
    sizes = sorted({(r.settings["model.depth"], r.settings["model.kernel_size"]) for r in psnr})
    rows = []
    for name in psnr.values("data.name"):
        panels = [_psnr_panel(numbers.where("E10", data__name=name), *size) for size in sizes]
        rows.append(("test PSNR (dB)", panels))
    return draw_panels(rows, "model.width", "width", scale=1)


_BASELINES = {
    "mean_image_psnr": ("mean training image", {}),
    "linear_psnr": ("linear regression within reach", {"linestyle": (0, (5, 2))}),
}
_FAR = 10  # dB


def _psnr_panel(numbers: Numbers, depth: int, kernel: int) -> Panel:
    """A panel of models of one receptive field, with its reach and the mean image's PSNR."""
    part = numbers.where(model__depth=depth, model__kernel_size=kernel)
    about = {"data": numbers[0].settings["data.name"], "depth": depth, "kernel_size": kernel}
    title = f"{title_of(about['data'])}\ndepth {depth}, k {kernel}"
    if reach := part.where(metric="reach"):
        title += f", reach {100 * max(number.value for number in reach):.0f} %"
    psnr, baselines = part.where(metric="psnr"), []
    best = max((number.value for number in psnr), default=math.inf)
    for metric, (name, appearance) in _BASELINES.items():
        if values := [number.value for number in part.where(metric=metric)]:
            if (mean := float(np.mean(values))) > best + _FAR:
                title += f"\n{name}: {mean:.0f} dB"
            else:
                baselines.append((mean, name, appearance))
    return Panel(title, psnr, about, baselines)


# Figures drawn from numbers, by name; all others are pictures stored by ``measurements``.
DRAWN: dict[str, Callable[[Numbers], Picture | None]] = {
    "E2": partial(
        accuracy_over, experiment="E2", size="model.depth", xlabel="depth (blocks per stage)"
    ),
    "E3": bars,
    "E4": partial(accuracy_over, experiment="E4", size="model.width", xlabel="base width"),
    "E5": partial(accuracy_over, experiment="E5", size="model.depth", xlabel="depth (blocks)"),
    "E6-octaves": octaves,
    "E6-depth": attacked_over_depth,
    "E6-epsilon": attacked_over_epsilon,
    "E7": smoothing_gains,
    "E10": psnr_over_width,
    "E12": shares.draw,
    "E13": lattice.draw,
    "E13-overview": lattice.draw_overview,
    "E14": frozen_filters.draw,
    "E15": scaling.draw,
    **{
        name: partial(curves.draw, experiment=experiment.id)
        for experiment in EXPERIMENTS.values()
        for name in experiment.figures
        if name.endswith("-curves")
    },
}
