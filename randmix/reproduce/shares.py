"""E12: accuracy against the share of spatial filters that are learned."""

from typing import Any

from randmix.analysis import plots
from randmix.analysis.spectrum.figures import Picture
from randmix.reproduce.cells import OVER_SEEDS, Table, by_setting
from randmix.reproduce.numbers import Numbers
from randmix.reproduce.panels import draw_lines, reference
from randmix.reproduce.titles import title_of


def draw(numbers: Numbers) -> Picture | None:
    """Test accuracy against the share of spatial filters that are learned."""
    accuracy = numbers.where("E12", "accuracy")
    if not accuracy:
        return None
    names = accuracy.values("data.name")
    figure = plots.new_figure(1.2 + 3.0 * len(names), 2.9)
    grid = figure.subplots(1, len(names), squeeze=False)[0]
    rows: list[dict[str, Any]] = []
    for axes, name in zip(grid, names, strict=True):
        part = accuracy.where(data__name=name)
        draw_lines(axes, part, "share", "data.name", {name: title_of(name)}, rows, scale=100)
        means = {row["share"]: row["mean"] for row in rows if row["series"] == title_of(name)}
        if {0.0, 1.0} <= means.keys():
            chans, full = means[0.0], means[1.0]
            reference(axes, chans, "Chans")
            reference(axes, full, "Full", linestyle=(0, (4, 2)))
            style = {"color": "0.45", "linewidth": 0.8}
            axes.plot([0, 1], [chans, full], label="straight line between them", **style)
        axes.set(xlabel="share of spatial filters learned", ylabel="test accuracy (%)")
        axes.legend(fontsize=7, loc="lower right")
    return Picture(figure, rows)


def table(numbers: Numbers) -> Table:
    """A row per share, from the numbers of E12."""
    caption = f"Test accuracy in per cent: {OVER_SEEDS}"
    columns = {"accuracy": numbers.where(metric="accuracy")}
    return by_setting(caption, "share", "share of spatial filters learned", columns)
