"""How runs side by side are shown: names and values in words, and the table as text or HTML.

A table is a `compare.Comparison`, a DataFrame whose ``attrs`` say what its columns are.
"""

import collections
import dataclasses
import html
import math
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from randmix import config as configs
from randmix.runtime import progress

_MISSING = "None"
_MINUS = "\N{MINUS SIGN}"


def _short_names() -> dict[str, str]:
    """The last part of each key of a config, or more of it where keys share it."""
    keys = {key for name in configs.MODEL_KEYS for key in configs.flatten(configs.default(name))}
    counts = collections.Counter(key.rpartition(".")[2] for key in keys)
    return {
        key: last if counts[last := key.rpartition(".")[2]] == 1 else key.removesuffix(".name")
        for key in sorted(keys)
    }


_SHORT = _short_names()
_FULL = {name: key for key, name in _SHORT.items()}


def short(key: str) -> str:
    """The short name of a config key.

    >>> short("model.depth"), short("model.name"), short("data.name")
    ('depth', 'model', 'data')
    """
    return _SHORT.get(key, key)


def full(name: str) -> str:
    """The config key of a short or full name; the name itself if it is neither.

    >>> full("depth"), full("mode"), full("schedule.name")
    ('model.depth', 'mode', 'schedule.name')
    """
    return _FULL.get(name, name)


def text(value: Any) -> str:
    """A config value in words; "None" for a missing one.

    >>> text(20.0), text(0.1 + 0.2), text(None), text(True)
    ('20', '0.30000000000000004', 'None', 'True')
    """
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return _MISSING
    return repr(float(value)).removesuffix(".0") if isinstance(value, float) else str(value)


def in_words(values: Mapping[str, Any]) -> str:
    """Keys and their values, such as "mode=full and depth=2"."""
    return " and ".join(f"{short(key)}={text(value)}" for key, value in values.items())


@dataclasses.dataclass(frozen=True)
class Unit:
    """How a metric is shown: its factor, and the units of a value and of a difference."""

    factor: float
    value: str
    difference: str

    def format(self, number: float, sign: str = "") -> str:
        """The number in this unit, with a true minus sign."""
        decimals = 2 if self.value else 4
        return f"{self.factor * number:{sign}.{decimals}f}".replace("-", _MINUS)


def unit(metric: str) -> Unit:
    """The unit of a metric, by its name."""
    if metric.endswith("accuracy"):
        return Unit(100, "%", "points")
    return Unit(1, "dB", "dB") if metric.endswith("psnr") else Unit(1, "", "")


def title(metric: str, units: str = "", *, minus: str = "") -> str:
    """The heading of a metric's column or axis, or of its difference from a reference."""
    name = metric.replace("psnr", "PSNR").replace("_", " ")
    return name + (f" minus {minus}" if minus else "") + (f" ({units})" if units else "")


def shown(comparison: pd.DataFrame) -> list[dict[str, str]]:
    """The rows as texts by heading: varied keys, by short names, and test metrics but losses."""
    names = map(str, comparison.columns)
    metrics = [name.removesuffix("_std") for name in names if name.endswith("_std")]
    tests = [name for name in metrics if name.startswith("test_")]
    tests = [name for name in tests if not name.endswith("loss")] or tests
    against = comparison.attrs["against"]
    return [
        {name: _blank_or_text(row[key]) for key, name in comparison.attrs["keys"].items()}
        | {"seeds": str(row["seeds"])}
        | {head: cell for metric in tests for head, cell in _cells(row, metric, against)}
        | {"trained": f"{row['trainable']:,}", "params": f"{row['parameters']:,}"}
        | {"time (s)": f"{row['seconds']:.1f}"}
        for row in comparison.to_dict("records")
    ]


def _blank_or_text(value: Any) -> str:
    return "" if text(value) == _MISSING else text(value)


def _cells(
    row: Mapping[Any, Any], metric: str, against: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """Yields heading and text of a metric, and of its difference from the reference if any."""
    units = unit(metric)
    yield title(metric, units.value), _mean(row, metric)
    if against:
        heading = title(metric, units.difference, minus=in_words(against))
        yield heading, _difference(row, metric, against)


def _mean(row: Mapping[Any, Any], metric: str) -> str:
    if math.isnan(row[metric]):
        return ""
    mean, spread = unit(metric).format(row[metric]), row[f"{metric}_std"]
    return mean if math.isnan(spread) else f"{mean} ± {unit(metric).format(spread)}"


def _difference(row: Mapping[Any, Any], metric: str, reference: Mapping[str, Any]) -> str:
    if math.isnan(row[metric]):
        return ""
    if all(text(row[key]) == text(value) for key, value in reference.items()):
        return "reference"
    pairs = row[f"{metric}_pairs"]
    if not pairs:
        return "no reference"
    number = unit(metric).format
    mean = number(row[f"{metric}_difference"], "+")
    ends = number(row[f"{metric}_low"]), number(row[f"{metric}_high"])
    fewer = f" n={pairs}" if pairs < max(row["seeds"], 2) else ""
    return mean + (f" [{', '.join(ends)}]" if pairs > 1 else "") + fewer


def notes(comparison: pd.DataFrame) -> list[str]:
    """What the signs of the shown table mean, and which runs it lacks."""
    against, unfinished = (comparison.attrs[name] for name in ("against", "unfinished"))
    found = []
    if comparison["seeds"].max() > 1:
        found.append("mean ± sample standard deviation over seeds")
    if against:
        found.append(
            f"minus {in_words(against)}: mean difference between runs of one seed, other keys "
            "equal [95 % Student interval]; n: seeds in common, where fewer; one gives no interval"
        )
    found.append("trained, params: numbers of trained and of all parameters")
    if unfinished:
        runs = "run is" if len(unfinished) == 1 else "runs are"
        found.append(f"{len(unfinished)} {runs} not finished and left out: {', '.join(unfinished)}")
    return found


def as_text(comparison: pd.DataFrame) -> str:
    """The shown table for a terminal, with what is common above it and its notes below."""
    numeric = comparison.select_dtypes("number").columns
    left = [name for key, name in comparison.attrs["keys"].items() if key not in numeric]
    above, *below = (
        textwrap.fill(line, 80, break_on_hyphens=False, break_long_words=False)
        for line in (comparison.attrs["about"], *notes(comparison))
    )
    grid = progress.narrow_table(shown(comparison), left=left)
    return "\n\n".join([above, grid, "\n".join(below)])


def as_markdown(comparison: pd.DataFrame) -> str:
    """The same in GitHub's Markdown."""
    rows = shown(comparison)
    lines = [[*rows[0]], ["---:" for _ in rows[0]], *([*row.values()] for row in rows)]
    grid = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    below = "\n".join(f"- {note}" for note in notes(comparison))
    return "\n\n".join([comparison.attrs["about"], "\n".join(grid), below])


def as_html(comparison: pd.DataFrame) -> str:
    """The same in HTML, without a style."""
    above, *below = map(html.escape, (comparison.attrs["about"], *notes(comparison)))
    grid = pd.DataFrame(shown(comparison)).to_html(index=False, border=0)
    return f"<p>{above}</p>\n{grid}\n<p>{'<br>'.join(below)}</p>"
