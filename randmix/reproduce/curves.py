"""Learning curves of an experiment's models: training and test against the epoch."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from randmix.analysis import plots
from randmix.analysis.spectrum.figures import Picture
from randmix.reproduce.effects import conditions
from randmix.reproduce.records import BANKS, MODES, Records
from randmix.reproduce.titles import title_of

_PANEL = (
    *("data.name", "model.name", "model.width", "model.depth", "model.kernel_size"),
    "model.multiplier",
)
_LINE = {
    "mode": lambda value: MODES.get(value, ""),
    "model.filters": lambda value: BANKS.get(value, value),
    "model.filter_rank": lambda value: f"rank {value}",
    "model.smoothing_index": lambda value: f"index {value:g}",
    "share": lambda value: f"share {value:g}",
    "defense.epsilon": lambda value: "defended" if value else "",
    "total_steps": lambda value: f"{value:,} steps",
}
_COLUMNS = 4


def lines(records: Records) -> Iterator[tuple[str, Records]]:
    """The runs of an experiment that differ only in their seed, and what distinguishes them."""
    trained = Records(record for record in records if record.mode)
    for name, part in _named(trained, _PANEL):
        for title, line in _named(part, (*_LINE,)):
            yield ", ".join(filter(None, (name, title))), line


def draw(records: Records, experiment: str) -> Picture | None:
    """One panel per model, one pair of lines per way to train it: test solid, training dashed.

    Lines are means over the seeds that have a value at that epoch.
    """
    found = Records(r for r in records.where(experiment) if r.metric.startswith("curve_"))
    panels = [*_named(found, _PANEL)]
    if not panels:
        return None
    columns = min(_COLUMNS, len(panels))
    count = -(-len(panels) // columns)
    figure = plots.new_figure(max(4.2, 0.6 + 2.4 * columns), 0.6 + 2.5 * count)
    grid = figure.subplots(count, columns, squeeze=False)
    rows: list[dict[str, Any]] = []
    for axes, (title, part) in zip(grid.ravel(), panels, strict=False):
        _panel(axes, part, title, rows)
    for axes in grid.ravel()[len(panels) :]:
        axes.remove()
    return Picture(figure, rows)


def _panel(axes: Axes, records: Records, title: str, rows: list[dict[str, Any]]) -> None:
    decibels = any(record.metric.endswith("psnr") for record in records)
    for place, (name, line) in enumerate(_named(records, (*_LINE,))):
        for metric in line_metrics(line):
            part = line.where(metric=metric)
            epochs = part.values("epoch")
            scale = 1 if decibels else 100
            means = [scale * float(np.mean([r.value for r in part.where(epoch=e)])) for e in epochs]
            training = metric.startswith("curve_train")
            style = {**plots.series(place), "linestyle": "-"}
            if training:
                style |= {"linestyle": "--", "linewidth": 0.8, "marker": ""}
            label = "" if training else name or "all runs"
            axes.plot(epochs, means, label=label, **{"markersize": 3, **style})
            what = metric.removeprefix("curve_")
            rows += [
                {"model": title, "trained": name, "metric": what, "epoch": e, "mean": mean}
                for e, mean in zip(epochs, means, strict=True)
            ]
    axes.set(title=title.replace(", ", "\n", 1), xlabel="epoch")
    axes.set(ylabel="PSNR (dB)" if decibels else "accuracy (%)")
    if not decibels:
        axes.set_ylim(0, 101)
    axes.legend(title="test; dashed: training", fontsize=6, title_fontsize=6)


def line_metrics(line: Records) -> list[str]:
    """The curves of a line, training first."""
    return sorted({record.metric for record in line}, reverse=True)


def _named(records: Records, settings: tuple[str, ...]) -> Iterator[tuple[str, Records]]:
    """Parts of records by settings, each named by the settings whose values differ among them."""
    values = {name: {record.settings.get(name) for record in records} for name in settings}
    varied = [name for name in settings if len(values[name]) > 1 or name == "data.name"]
    for part in conditions(records, settings):
        yield ", ".join(filter(None, (_word(name, part[0].settings) for name in varied))), part


def _word(name: str, settings: Mapping[str, Any]) -> str:
    value, short = settings.get(name), name.rpartition(".")[2].replace("_", " ")
    part = 0 < settings.get("share", 0) < 1
    if value is None or ((name == "share") != part and name in ("share", "mode")):
        return ""
    if name in _LINE:
        return _LINE[name](value)
    return title_of(value) if name == "data.name" else f"{short} {value}".removeprefix("name ")
