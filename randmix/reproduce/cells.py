"""Tables of a report and their cells, linked to the runs that they come from."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from randmix.experiments.statistics import t_interval
from randmix.reproduce import effects
from randmix.reproduce.numbers import Numbers

OVER_SEEDS = "mean ± standard deviation over seeds (their number)."
RADIUS_OVER_SEEDS = "geometric mean over seeds, ± standard deviation in octaves (their number)."
OVER_SEEDS_INTERVAL = "mean [95 % interval] over seeds (their number)."


@dataclasses.dataclass(frozen=True)
class Cell:
    """A table cell: its text, and the runs that it comes from."""

    text: str
    runs: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Table:
    """A table with a caption; the first cell of each row is its label."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def heading(text: str, columns: Sequence[str]) -> list[Cell]:
    """A row that names what the rows below it share."""
    return [Cell(text), *(Cell("") for _ in columns[1:])]


def by_setting(
    caption: str, setting: str, label: str, columns: Mapping[str, Numbers], form: str = "{:g}"
) -> Table:
    """A table with a row per value of a setting, and a column per selection of numbers."""
    first, *_ = columns.values()
    rows = [
        [
            Cell(form.format(value)),
            *(mean_cell(numbers.where(**{setting: value})) for numbers in columns.values()),
        ]
        for value in first.values(setting)
    ]
    return Table(caption, [label, *columns], rows)


def mean_cell(numbers: Numbers) -> Cell:
    """Mean ± standard deviation (number of seeds); everything but PSNR is multiplied by 100."""
    values = np.asarray([*numbers.by_seed().values()])
    if not len(values):
        return Cell("n/a")
    if numbers[0].metric.endswith("psnr"):
        return spread_cell(values, numbers.runs, digits=2)
    return spread_cell(100 * values, numbers.runs)


def spread_cell(
    values: Sequence[float] | np.ndarray, runs: Sequence[str] = (), digits: int = 1
) -> Cell:
    """Mean ± standard deviation (number of values) of one value per seed."""
    n = len(values)
    if not n or not np.isfinite(values).all():
        return Cell("n/a")
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if n > 1 else ""
    return Cell(f"{np.mean(values):.{digits}f}{spread} ({n})", runs)


def radius_cell(attacked: Numbers) -> Cell:
    """The radius that halves accuracy: 2 to the mean of its logarithms; see ``log_radii``."""
    octaves = np.asarray([*effects.log_radii(attacked).values()])
    if not np.isfinite(octaves).all():
        return Cell("outside the grid", attacked.runs)
    if not len(octaves):
        return Cell("n/a")
    spread = f" ± {octaves.std(ddof=1):.2f}" if len(octaves) > 1 else ""
    return Cell(f"{2 ** octaves.mean():.2f}{spread} ({len(octaves)})", attacked.runs)


def interval_cell(values: Sequence[float], runs: Sequence[str] = (), digits: int = 2) -> Cell:
    """Mean [95 % interval] (number of values) of one value per seed."""
    interval = t_interval(values)
    if math.isnan(interval.mean):
        return Cell("n/a")
    mean, low, high = (
        f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")
        for value in (interval.mean, interval.low, interval.high)
    )
    ends = f" [{low}, {high}]" if interval.n > 1 else ""
    return Cell(f"{mean}{ends} ({interval.n})", runs)
