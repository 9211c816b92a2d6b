"""The paper's figures, drawn from records.

Lines are means over seeds, bands one standard deviation. Each function accepts `Records` and
returns a picture, or None if there is nothing to draw yet. Pictures of filters and images are drawn
by ``spectrum`` and ``unshuffle`` and stored by ``measurements``.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from randmix.analysis import plots
from randmix.analysis.spectrum.figures import Picture
from randmix.reproduce import claims
from randmix.reproduce.records import BANKS, MODES, Records

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DATA = {
    "digits": "Digits",
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "imagenet2012": "ImageNet",
}
ATTACKS = {"fgsm": "FGSM", "pgd2": "PGD-2", "strong": "strong", "noise": "random noise"}
MODELS = {"resnet": "separable ResNet", "convmixer": "ConvMixer"}


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
    data_sets = accuracy.values("data.name")
    if not data_sets:
        return None
    figure, panels = _panels(len(data_sets))
    rows: list[dict[str, Any]] = []
    for axes, name in zip(panels, data_sets, strict=True):
        part = accuracy.where(experiment, data__name=name)
        _lines(axes, part, size, "mode", MODES, rows, scale=100)
        axes.set(title=DATA.get(name, name), xlabel=xlabel)
    panels[0].set_ylabel("test accuracy (%)")
    panels[-1].legend()
    return Picture(figure, rows)


def bars(records: Records) -> Picture | None:
    """Figure 3: test accuracy of Full, and of Chans with each kind of filters.

    Dots are seeds, whiskers one standard deviation.
    """
    accuracy = records.where("E3", "accuracy")
    if not accuracy:
        return None
    chans = accuracy.where("E3", mode="chans")
    groups = {"Full": accuracy.where("E3", mode="full")}
    groups |= {title: chans.where("E3", model__filters=bank) for bank, title in BANKS.items()}
    figure = plots.new_figure(4.4, 2.8)
    axes = figure.subplots()
    rows = []
    for i, (title, part) in enumerate(groups.items()):
        values = 100 * np.asarray([*part.by_seed().values()])
        if not len(values):
            continue
        spread = values.std(ddof=1) if len(values) > 1 else 0
        axes.bar(i, values.mean(), 0.6, color=plots.COLORS[i], yerr=spread or None, capsize=3)
        axes.plot(
            [i + 0.18] * len(values),
            values,
            "o",
            color="white",
            markeredgecolor="black",
            markersize=3,
        )
        rows += [
            {"filters": title, "seed": s, "accuracy": v}
            for s, v in zip(part.by_seed(), values, strict=True)
        ]
    lowest = min(row["accuracy"] for row in rows)
    # Bars start at zero unless all are high: their differences would then be invisible.
    axes.set_ylim(0 if lowest < 70 else 10 * math.floor((lowest - 5) / 10), None)
    axes.set_xticks(range(len(groups)), [*groups])
    axes.set(ylabel="test accuracy (%)", xlabel="Full, and Chans with filters of each kind")
    axes.grid(False, axis="x")
    return Picture(figure, rows)


def attacked_over_depth(records: Records) -> Picture | None:
    """Figure 6: accuracy under attack, averaged over all epsilons above 0, against depth.

    One row of panels per model and data set, one panel per attack.
    """
    attacked = Records(
        r for r in records if r.experiment == "E6" and r.settings.get("epsilon", 0) > 0
    )
    lines = sorted(
        {(r.settings["model.name"], r.settings["data.name"]) for r in attacked}, reverse=True
    )
    if not lines:
        return None
    columns = [("FGSM", "fgsm", False), ("PGD-2", "pgd2", False), ("FGSM, defended", "fgsm", True)]
    columns.append(("strong attack", "strong", False))
    figure, grid = _grid(len(lines), len(columns))
    rows: list[dict[str, Any]] = []
    for (model, data), line in zip(lines, grid, strict=True):
        for (title, attack, defended), axes in zip(columns, line, strict=True):
            part = Records(
                r
                for r in attacked.where("E6", attack, model__name=model, data__name=data)
                if bool(r.settings["defense.epsilon"]) == defended
            )
            more = {"panel": title, "model": model, "data": data}
            _lines(axes, part, "model.depth", "mode", MODES, rows, scale=100, more=more)
            axes.set(title=title)
        line[0].set_ylabel(f"{MODELS[model]}, {DATA.get(data, data)}\naccuracy under attack (%)")
    for axes in grid[-1]:
        axes.set_xlabel("depth")
    grid[0][-1].legend()
    return Picture(figure, rows)


def attacked_over_epsilon(records: Records) -> Picture | None:
    """Figure 6's other axis: accuracy against epsilon at the largest depth.

    One row of panels per model and data set, one panel per attack.
    """
    attacked = Records(r for r in records if r.experiment == "E6" and "epsilon" in r.settings)
    lines = sorted(
        {(r.settings["model.name"], r.settings["data.name"]) for r in attacked}, reverse=True
    )
    if not lines:
        return None
    columns = [(ATTACKS[name], name, False) for name in ATTACKS if name != "noise"]
    columns.insert(2, ("FGSM, defended", "fgsm", True))
    figure, grid = _grid(len(lines), len(columns))
    rows: list[dict[str, Any]] = []
    for (model, data), line in zip(lines, grid, strict=True):
        depth = attacked.where("E6", model__name=model, data__name=data).values("model.depth")[-1]
        for (title, attack, defended), axes in zip(columns, line, strict=True):
            part = Records(
                r
                for r in attacked.where(
                    "E6", attack, model__name=model, data__name=data, model__depth=depth
                )
                if bool(r.settings["defense.epsilon"]) == defended
            )
            more = {"panel": title, "model": model, "data": data, "depth": depth}
            _lines(axes, part, "epsilon", "mode", MODES, rows, scale=100, more=more)
            axes.set(title=title, ylim=(-3, 103))
        line[0].set_ylabel(f"{MODELS[model]}, depth {depth}\naccuracy under attack (%)")
    for axes in grid[-1]:
        axes.set_xlabel("epsilon (1/255)")
    grid[0][-1].legend()
    return Picture(figure, rows)


def smoothing_gains(records: Records) -> Picture | None:
    """Figure 7: relative gain under FGSM, and clean accuracy, against the smoothing index.

    One line per epsilon.
    """
    fgsm, clean = records.where("E7", "fgsm"), records.where("E7", "accuracy")
    indices = clean.values("model.smoothing_index")
    plain = fgsm.where("E7", model__smoothing_index=0.0)
    largest = claims.largest_epsilon(plain)
    if largest is None or len(indices) < 2:
        return None
    figure = plots.new_figure(4.6, 4.4)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2.5, 1))
    rows: list[dict[str, Any]] = []
    for place, epsilon in enumerate(e for e in fgsm.values("epsilon") if 0 < e <= largest):
        at_zero = plain.where("E7", epsilon=epsilon)
        gains = [
            claims.relative_gains(
                at_zero, fgsm.where("E7", model__smoothing_index=index, epsilon=epsilon)
            )
            for index in indices
        ]
        seeds = min(map(len, gains))
        values = np.asarray([line[:seeds] for line in gains]).T
        plots.mean_and_spread(
            above, indices, values, label=f"epsilon {epsilon:g}/255", **plots.series(place)
        )
        rows += [
            {"smoothing_index": index, "epsilon": epsilon, "relative_gain": float(np.mean(line))}
            for index, line in zip(indices, gains, strict=True)
        ]
    above.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    above.axhline(claims.GAIN, color="0.6", linewidth=0.8, linestyle=":", zorder=0)
    above.set(ylabel="relative gain under FGSM (%)")
    above.legend(fontsize=7)
    _lines(below, clean, "model.smoothing_index", "mode", {"chans": "clean"}, [], scale=100)
    below.set(ylabel="clean accuracy (%)", xlabel="smoothing index", xticks=indices)
    return Picture(figure, rows)


def psnr_over_width(records: Records) -> Picture | None:
    """Figures B.4 and B.5: test PSNR against width.

    One row of panels per data set, one panel per depth and kernel size.
    """
    psnr = records.where("E10", "psnr")
    data_sets = psnr.values("data.name")
    sizes = sorted({(r.settings["model.depth"], r.settings["model.kernel_size"]) for r in psnr})
    if not data_sets:
        return None
    figure, grid = _grid(len(data_sets), len(sizes))
    rows: list[dict[str, Any]] = []
    for name, line in zip(data_sets, grid, strict=True):
        for (depth, kernel), axes in zip(sizes, line, strict=True):
            part = psnr.where("E10", data__name=name, model__depth=depth, model__kernel_size=kernel)
            more = {"data": name, "depth": depth, "kernel_size": kernel}
            _lines(axes, part, "model.width", "mode", MODES, rows, scale=1, more=more)
            axes.set(title=f"{DATA.get(name, name)}, depth {depth}, k {kernel}")
        line[0].set_ylabel("test PSNR (dB)")
    for axes in grid[-1]:
        axes.set_xlabel("width")
    max(grid.ravel(), key=lambda axes: len(axes.lines)).legend()
    return Picture(figure, rows)


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
    "E2": lambda records: accuracy_over(records, "E2", "model.depth", "depth (blocks per stage)"),
    "E3": bars,
    "E4": lambda records: accuracy_over(records, "E4", "model.width", "base width"),
    "E5": lambda records: accuracy_over(records, "E5", "model.depth", "depth (blocks)"),
    "E6-depth": attacked_over_depth,
    "E6-epsilon": attacked_over_epsilon,
    "E7": smoothing_gains,
    "E10": psnr_over_width,
    "E12": accuracy_over_share,
}


def _panels(count: int) -> tuple["Figure", list["Axes"]]:
    figure, grid = _grid(1, count)
    return figure, list(grid[0])


def _grid(rows: int, columns: int) -> tuple["Figure", np.ndarray]:
    figure = plots.new_figure(max(3.6, 0.6 + 2.0 * columns), 0.5 + 2.1 * rows)
    return figure, figure.subplots(rows, columns, squeeze=False, sharey="row")


def _lines(
    axes: "Axes",
    records: Records,
    x: str,
    by: str,
    titles: dict[str, str],
    rows: list[dict[str, Any]],
    *,
    scale: float,
    more: dict[str, Any] | None = None,
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
        part = Records(record for record in records if record.settings.get(by) == value)
        points = part.values(x)
        by_x = [
            Records(r for r in part if r.settings.get(x) == point).by_seed() for point in points
        ]
        if not points:
            continue
        # A point that some seeds lack would average over other seeds than its neighbours do.
        seeds = sorted(max(by_x, key=len))
        reached = {
            point: at for point, at in zip(points, by_x, strict=True) if at.keys() >= {*seeds}
        }
        points = [*reached]
        values = scale * np.asarray([[at[seed] for at in reached.values()] for seed in seeds])
        plots.mean_and_spread(axes, points, values, label=title, **plots.series(place))
        rows += _rows(points, values, {"series": title, **(more or {})}, x)
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


def _rows(
    points: Sequence[float], values: np.ndarray, about: dict[str, Any], x: str
) -> list[dict[str, Any]]:
    spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.full(len(points), np.nan)
    return [
        {**about, x.rpartition(".")[2]: point, "mean": mean, "std": std, "seeds": len(values)}
        for point, mean, std in zip(points, values.mean(axis=0), spread, strict=True)
    ]
