"""Plots and a page of runs side by side, ``python -m randmix compare``."""

import dataclasses
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from etils import epath
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from randmix.analysis import pages, plots
from randmix.errors import UserError, check_choice, writing
from randmix.experiments import compare, formatting
from randmix.experiments.compare import Comparison, Runs
from randmix.experiments.formatting import short, text
from randmix.runtime import durable

_TEMPLATE = "compare.html.j2"
_TIMES = ("epoch", "step")
_MOST = 25  # lines in a panel, as many as `plots.series` tells apart; and panels
_COLUMNS = 3  # of panels
_MOST_TICKS = 10
_MOST_MARKERS = 12
_WIDE = 20  # ratio of the largest to the smallest x from which its axis is logarithmic


@dataclasses.dataclass(frozen=True)
class Plot:
    """A metric against a config key or against time.

    Attributes:
        x: full name of a varied key, or "epoch" or "step".
        y: a metric of the results, or with time one of the log.
        lines: the keys of whose values each combination has a line.
        panels: the keys of whose values each combination has a panel.
        points: a row for each run and x, in the order of panels, lines and x; columns: the varied
            keys, "seed", x and y.
    """

    x: str
    y: str
    lines: Sequence[str]
    panels: Sequence[str]
    points: pd.DataFrame

    @property
    def name(self) -> str:
        """The name of its files, without a suffix."""
        return "-".join([self.y, *map(short, [self.x, *self.lines])])

    @property
    def caption(self) -> str:
        """What it shows, in a sentence."""
        spread = "band" if self.bands else "bar"
        name = formatting.title(self.y)
        where = f"{name} by {short(self.x)}"
        return f"{where}: mean, with a {spread} of one sample standard deviation over seeds."

    @property
    def bands(self) -> bool:
        """Whether it shows time, with the spread as bands."""
        return self.x in _TIMES

    def values(self) -> list[Any]:
        """The values of x in order."""
        return [*compare.ordered(self.points, [self.x])[self.x].unique()]

    def rows(self) -> list[dict[str, Any]]:
        """What is drawn: keys, x, the mean over seeds, their standard deviation and number."""
        groups = compare.grouped(self.points, [*self.panels, *self.lines, self.x])
        columns = {self.y: (self.y, "mean"), f"{self.y}_std": (self.y, "std")}
        table = groups.agg(**columns, seeds=("seed", "size")).reset_index()
        return table.astype(object).to_dict("records")


def plan(runs: Runs, *, x: str, y: str, hue: str | None = None) -> Plot:
    """Selects what a plot shows.

    Args:
        runs: the runs.
        x: a varied key, or "epoch" or "step".
        y: a metric.
        hue: the key that has a line for each value; each combination of the other varied keys then
            has a panel. None: each of their combinations has a line.

    Raises:
        UserError: an unknown key or metric, a key that doesn't vary, seeds that were logged at no
            common step, or more lines or panels than can be told apart.
    """
    x = x if x in _TIMES else runs.find("--plot: x", x)
    named = [runs.find("--plot: hue", hue)] if hue else []
    if named == [x]:
        raise UserError(f"--plot: hue: got {hue}, which is x; allowed are the other keys")
    rest = [key for key in runs.varied if key not in (x, *named)]
    lines, panels = (named, rest) if hue else (rest, [])
    points = _logged(runs, x, y) if x in _TIMES else _final(runs, y)
    if x in _TIMES:
        points = _common_steps(points, [*panels, *lines], x, y)
    for what, keys in (("lines", lines), ("panels", panels)):
        if keys and (count := len(points[keys].drop_duplicates())) > _MOST:
            raise UserError(
                f"--plot: got {count} {what}, one for each {', '.join(map(short, keys))}; allowed "
                f"are up to {_MOST}: give another hue, or fewer runs"
            )
    return Plot(x, y, lines, panels, compare.ordered(points, [*panels, *lines, x, "seed"]))


def _final(runs: Runs, y: str) -> pd.DataFrame:
    check_choice("--plot: y", y, runs.metrics)
    points = runs.frame.dropna(subset=[y])
    if points.empty:
        raise UserError(f"--plot: y: got {y}, which is not a number in any run; give another")
    return points


def _logged(runs: Runs, x: str, y: str) -> pd.DataFrame:
    """A row for each run and step at which the metric was logged."""
    logs = pd.concat(
        [pd.DataFrame(record.log).assign(run=name) for name, record in runs.records.items()]
    )
    names = sorted({*logs.columns} - {"run", *_TIMES})
    if not names:
        raise UserError(f"--plot: x: got {x}, but the runs have no log; give a key that differs")
    check_choice("--plot: y", y, names)
    logs = logs[["run", "step", y]].dropna()
    if x == "epoch":
        lengths = {name: record.steps_per_epoch for name, record in runs.records.items()}
        if unknown := [name for name in logs["run"].unique() if not lengths[name]]:
            raise UserError(
                f"--plot: x: got epoch, but run {unknown[0]} logged none; give x=step instead"
            )
        # The log rounds epochs, and an epoch has a whole number of steps.
        logs["epoch"] = logs["step"] / logs["run"].map(lengths).round()
    return logs.merge(runs.frame[[*runs.varied, "seed"]], left_on="run", right_index=True)


def _common_steps(points: pd.DataFrame, keys: Sequence[str], x: str, y: str) -> pd.DataFrame:
    """The points at which all seeds of a line have a value: a mean must not change its seeds."""
    seeds = compare.grouped(points, keys)["seed"].transform("nunique")
    here = compare.grouped(points, [*keys, x])["seed"].transform("nunique")
    common = points[seeds == here]
    if compare.grouped(common, keys).ngroups < compare.grouped(points, keys).ngroups:
        raise UserError(
            f"--plot: y: got {y}, which seeds that make one line logged at no common step; compare "
            "runs with one log_every and eval_every"
        )
    return common


@plots.style()
def draw(plot: Plot) -> Figure:
    """Draws a plot; a line is the mean over seeds with one sample standard deviation."""
    panels = [*_parts(plot.points, plot.panels)]
    rows = math.ceil(len(panels) / _COLUMNS)
    columns = math.ceil(len(panels) / rows)
    labels = [label for label, _ in _lines(compare.ordered(plot.points, plot.lines), plot)]
    legend = 0.7 + 0.06 * max(map(len, labels))  # inches
    width = legend + (2.2 if columns > 1 else 3.9) * columns
    figure = plots.new_figure(width, 0.6 + 2.2 * rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, (panel, points) in zip(grid, panels, strict=False):
        _draw_panel(axes, plot, points, labels)
        axes.set_title(panel)
        axes.tick_params(labelbottom=True)  # the last row may be shorter
    for axes in grid[len(panels) :]:
        axes.remove()
    words = short(plot.x), formatting.title(plot.y, formatting.unit(plot.y).value)
    if len(panels) == 1:
        grid[0].set(xlabel=words[0], ylabel=words[1])
    else:
        figure.supxlabel(words[0])
        figure.supylabel(words[1])
    if plot.lines:
        _add_legend(figure, plot, labels)
    return figure


def _add_legend(figure: Figure, plot: Plot, labels: Sequence[str]) -> None:
    """Names all lines at the right, in the order of the labels; a panel may lack some."""
    handles = {}
    for axes in figure.axes:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    heading = short(plot.lines[0]) if len(plot.lines) == 1 else None
    drawn = [handles[label] for label in labels]
    figure.legend(drawn, labels, title=heading, loc="outside right upper")


def _parts(points: pd.DataFrame, keys: Sequence[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yields the points of each combination of values, with the combination in words."""
    for _, part in compare.grouped(points, keys):
        yield ", ".join(f"{short(key)} {_label(part[key].iloc[0])}" for key in keys), part


def _label(value: Any) -> str:
    """A value in words that a legend shows and in which Matplotlib finds no mathematics."""
    words = text(value)
    if not words or words.startswith("_"):  # legends leave such labels out
        words = repr(words)
    return words.replace("$", r"\$")  # patterns may end in $


def _lines(points: pd.DataFrame, plot: Plot) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each line's label and points; a single key's name is left to the legend's heading."""
    for label, part in _parts(points, plot.lines):
        yield label.partition(" ")[2] if len(plot.lines) == 1 else label, part


def _draw_panel(axes: Axes, plot: Plot, points: pd.DataFrame, labels: Sequence[str]) -> None:
    values = plot.values()
    numeric = not any(isinstance(v, str | bool | np.bool_) or pd.isna(v) for v in values)
    for label, line in _lines(points, plot):
        i = labels.index(label)
        # Bars of several lines at one place stand side by side, so that none is hidden.
        aside = 0.0 if plot.bands else (i - (len(labels) - 1) / 2) / len(labels)
        places = _places(values, numeric, aside)
        line = line.assign(x=[places[value] for value in line[plot.x]])
        by_seed = line.pivot(index="seed", columns="x", values=plot.y)
        look = plots.series(i)
        if not numeric:
            look["linestyle"] = "none"
        if plot.bands and len(values) > _MOST_MARKERS:
            look["marker"] = ""
        plots.mean_and_spread(
            axes,
            [*map(float, by_seed.columns)],
            formatting.unit(plot.y).factor * by_seed.to_numpy(float),
            label=label,
            bars=not plot.bands,
            **look,
        )
    if not plot.bands:
        _set_ticks(axes, values, numeric)


def _places(values: Sequence[Any], numeric: bool, aside: float) -> dict[Any, float]:
    """Where values stand on the x axis: numbers at themselves, others at 0, 1, ...

    Args:
        values: the values in order.
        numeric: whether all are numbers.
        aside: how far they stand aside, in (-0.5, 0.5).
    """
    if not numeric:
        return {value: i + 0.5 * aside for i, value in enumerate(values)}
    share = 0.04 * aside
    if _log_base(values):
        return {value: float(value) * (values[-1] / values[0]) ** share for value in values}
    return {value: float(value) + share * (values[-1] - values[0]) for value in values}


def _log_base(values: Sequence[float]) -> int | None:
    """2 for powers of two, 10 for numbers that lie far apart; None for a linear axis."""
    if values[0] <= 0:
        return None
    if all(math.log2(value).is_integer() for value in values):
        return 2
    return 10 if values[-1] / values[0] >= _WIDE else None


def _set_ticks(axes: Axes, values: Sequence[Any], numeric: bool) -> None:
    """Sets a tick at each value, if there are few."""
    if not numeric:
        axes.set_xticks(range(len(values)), [*map(_label, values)])
        axes.set_xlim(-0.5, len(values) - 0.5)
        return
    if base := _log_base(values):
        axes.set_xscale("log", base=base)
        axes.minorticks_off()
    if len(values) <= _MOST_TICKS:
        axes.set_xticks([*map(float, values)], [*map(text, values)])


def page(runs: Runs, table: Comparison, figures: Sequence[tuple[Plot, Figure]]) -> str:
    """The table, the plots and the list of runs as one page of HTML that needs no other file."""
    keys = {key: short(key) for key in runs.varied}
    rows = runs.frame.reset_index(names="run").astype(object).to_dict("records")
    makers: dict[str, list[Mapping[Any, Any]]] = {}
    for row in rows:
        result = runs.records[row["run"]].result
        row |= {key: text(row[key]) for key in keys}
        together = result.get("ensemble", 1)
        row["time"] = f"{result['wall_seconds']:.1f}"
        row["time"] += f" for {together} seeds" if together > 1 else ""
        makers.setdefault(_maker(result), []).append(row)
    return pages.template("randmix.analysis", _TEMPLATE).render(
        table=Markup(formatting.as_html(table)),
        plots=[(plot, Markup(_svg(figure))) for plot, figure in figures],
        makers=makers,
        keys=keys,
    )


def _maker(result: Mapping[str, Any]) -> str:
    """The code and the machine that made a result, in words."""
    device = result["device"]
    return ", ".join(
        [
            f"commit {result.get('commit') or 'unknown'}",
            f"{device['count']} x {device['kind']} ({device['platform']})",
            *(f"{name} {version}" for name, version in result["versions"].items()),
        ]
    )


def _svg(figure: Figure) -> str:
    """A figure as an SVG element, without the declarations of a file."""
    with plots.style():
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=plots.METADATA["svg"])
    content = buffer.getvalue()
    return content[content.index("<svg") :]


def main(options: Any) -> None:
    """Compares runs with the options of ``commands/compare.py``; prints table and files."""
    runs = compare.collect(options.runs)
    table = compare.table(runs, options.against)
    planned = [plan(runs, **plot) for plot in options.plot]
    figures = [(plot, draw(plot)) for plot in planned]
    print((formatting.as_markdown if options.markdown else formatting.as_text)(table))
    files = [
        file
        for plot, figure in figures
        for file in plots.save(figure, epath.Path(options.out) / plot.name, plot.rows())
    ]
    if options.csv:
        files.append(_write(options.csv, table.to_csv(index=False)))
    if options.html:
        files.append(_write(options.html, page(runs, table, figures)))
    if files:
        print()
    for file in files:
        print(file)


def _write(path: str, content: str) -> epath.Path:
    file = epath.Path(path)
    with writing(file, "give a file that you may write to"):
        file.parent.mkdir(parents=True, exist_ok=True)
        durable.write(file, content)
    return file
