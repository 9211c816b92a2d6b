"""Runs side by side: what was varied and what came out.

A row of the table holds the runs that differ only in their seed. Differences from a reference are
paired by seed, see `randmix.experiments.statistics`.
"""

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import pandas as pd

from randmix import config as configs
from randmix import masks
from randmix.errors import UserError, check_choice, did_you_mean
from randmix.experiments import formatting, records, statistics
from randmix.experiments.formatting import in_words, short, text
from randmix.experiments.records import Record

_FIRST = ("data.name", "model.name")  # the other keys of the model follow
_LAST = ("mode",)
_DIFFERENCE = ("difference", "low", "high", "pairs")


@dataclasses.dataclass(frozen=True)
class Runs:
    """Finished runs, what differs among them and what doesn't.

    Attributes:
        records: the runs by name.
        frame: a row for each run, indexed by its name, in the order of the varied keys and then the
            seed. Columns: the varied keys, "seed", the metrics of ``result.json`` (accuracies in
            [0, 1], PSNR in dB), "trainable" and "parameters" (numbers of parameters), and
            "seconds", those of the call that finished the run (its share, if seeds were trained as
            one program).
        varied: the config keys that differ, but the seed and display keys. A key that some of the
            models lack is varied if it differs among the others.
        common: the other config keys with their values.
        unfinished: the folders of unfinished runs.
    """

    records: Mapping[str, Record]
    frame: pd.DataFrame
    varied: Sequence[str]
    common: Mapping[str, Any]
    unfinished: Sequence[str]

    @property
    def metrics(self) -> list[str]:
        """The metrics that at least one of the runs has."""
        columns = [*self.frame.columns]
        return columns[columns.index("seed") + 1 : columns.index("trainable")]

    def find(self, what: str, key: str) -> str:
        """Returns the full name of a varied key, of which the last part is enough if unambiguous.

        Raises:
            UserError: there is no such key, or it doesn't vary; the message starts with ``what``.
        """
        name = formatting.full(key)
        if name in self.varied:
            return name
        names = [short(name) for name in self.varied]
        allowed = f"allowed are the keys that differ: {', '.join(names) or 'here none does'}"
        if name in self.common:
            value = text(self.common[name])
            raise UserError(f"{what}: got {key}, which is {value} in all runs; {allowed}")
        raise UserError(f"{what}: got {key!r}, {allowed}{did_you_mean(key, names)}")


class Comparison(pd.DataFrame):
    """The table of `compare`; a notebook shows it as ``randmix compare`` prints it.

    What is derived from it is a plain DataFrame.
    """

    @property
    def _constructor(self):
        return pd.DataFrame

    def _repr_html_(self) -> str:
        return formatting.as_html(self)


def compare(
    places: os.PathLike | str | Iterable[os.PathLike | str],
    against: Mapping[str, Any] | None = None,
) -> Comparison:
    """Tabulates finished runs side by side; runs that differ only in their seed are one row.

    Args:
        places: folders of runs, of sweeps or of several runs, and records files.
        against: the reference as config keys and their values, such as ``{"mode": "full"}``. Every
            row is compared with the reference row whose other keys are equal.

    Returns:
        A DataFrame with a column for each config key that differs, by its full name, then "seeds"
        (their number); for each metric its mean over seeds, such as "test_accuracy" in [0, 1], and
        "test_accuracy_std", the sample standard deviation (NaN with one seed); "trainable" and
        "parameters", the numbers of trained and of all parameters; and "seconds", the mean of those
        of the calls that finished the runs. With a reference also "test_accuracy_difference", the
        mean over the seeds that a row and its reference share, their number "test_accuracy_pairs",
        and "test_accuracy_low" and "_high", the ends of its 95 % Student interval (NaN with fewer
        than two pairs, and in the reference rows).

    Raises:
        UserError: a place holds no run, no run has finished, or ``against`` names a key or a value
            that the runs don't have.
    """
    return table(collect(places), against or {})


def collect(places: os.PathLike | str | Iterable[os.PathLike | str]) -> Runs:
    """Gathers the finished runs of folders and files; arguments and errors as in `compare`."""
    places = [places] if isinstance(places, str | os.PathLike) else [*places]
    found, unfinished = records.gather(places)
    if not found:
        missing = f"; not finished: {', '.join(unfinished)}" if unfinished else ""
        where = ", ".join(map(str, places)) or "no place"
        raise UserError(
            f"got no finished run in {where}, allowed are places with at least one{missing}"
        )
    return side_by_side(found, unfinished)


def side_by_side(found: Sequence[Record], unfinished: Sequence[str] = ()) -> Runs:
    """Finds what differs among runs, at least one and each once."""
    settings = [{key: _cell(value) for key, value in record.settings.items()} for record in found]
    keys = sorted({key for each in settings for key in each} - configs.DISPLAY_KEYS, key=_place)
    values = {key: {each[key] for each in settings if key in each} for key in keys}
    varied = [key for key in keys if key != "seed" and _varies(key, values[key], settings)]
    names = [record.name for record in found]
    frame = pd.concat(
        [
            pd.DataFrame(settings, names, columns=varied).convert_dtypes(),
            pd.DataFrame({"seed": [each["seed"] for each in settings]}, names),
            pd.DataFrame([record.result["metrics"] for record in found], names),
            pd.DataFrame(map(_costs, found), names),
        ],
        axis=1,
    )
    return Runs(
        records=dict(zip(names, found, strict=True)),
        frame=ordered(frame, [*varied, "seed"]),
        varied=varied,
        common={
            key: next(iter(values[key]))
            for key in keys
            if key not in varied and len(values[key]) == 1
        },
        unfinished=unfinished,
    )


def _varies(key: str, values: Set[Any], settings: Sequence[Mapping[str, Any]]) -> bool:
    """Whether runs differ in a key: for the user's own keys, also if some runs lack it."""
    own = key.partition(".")[0] in ("roles", "user")
    return len(values) > 1 or (own and any(key not in each for each in settings))


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list) else value


def _place(key: str) -> tuple:
    first = _FIRST.index(key) if key in _FIRST else len(_FIRST)
    return key in _LAST, first, not key.startswith("model."), key


def _costs(record: Record) -> dict[str, float]:
    trainable, frozen = (record.result["parameters"][kind] for kind in ("trainable", "frozen"))
    return {"trainable": trainable, "parameters": trainable + frozen, "seconds": record.seconds}


def ordered(frame: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Sorts rows by keys: numbers by size, modes from full to floor, other texts as words."""
    return frame.sort_values([*keys], key=_ranks) if keys else frame


def _ranks(column: pd.Series) -> pd.Series:
    values = sorted(column.dropna().unique(), key=_order)
    return column.map({value: i for i, value in enumerate(values)})


def _order(value: Any) -> tuple:
    if not isinstance(value, str):
        return 0, value
    modes = [*masks.MODES]
    return 1, modes.index(value) if value in modes else len(modes), value


def table(runs: Runs, against: Mapping[str, Any]) -> Comparison:
    """Averages runs over seeds; arguments, result and errors as in `compare`."""
    reference = _reference(runs, against)
    # A reference stands beside the rows that are compared with it.
    keys = [*(key for key in runs.varied if key not in reference), *reference]
    columns = {"seeds": ("seed", "size")}
    for metric in runs.metrics:
        columns |= {metric: (metric, "mean"), f"{metric}_std": (metric, "std")}
    columns |= {name: (name, "first") for name in ("trainable", "parameters")}
    columns["seconds"] = ("seconds", "mean")
    frame = grouped(ordered(runs.frame, [*keys, "seed"]), keys).agg(**columns)
    if reference:
        found = _differences(runs, keys, reference)
        for metric in runs.metrics:
            place = [*frame.columns].index(f"{metric}_std") + 1
            for i, suffix in enumerate(_DIFFERENCE):
                frame.insert(place + i, f"{metric}_{suffix}", found[f"{metric}_{suffix}"])
    comparison = Comparison(frame.reset_index(drop=not keys))
    comparison.attrs = {
        "about": about(runs),
        "keys": {key: short(key) for key in keys},
        "against": reference,
        "unfinished": [*runs.unfinished],
    }
    return comparison


def grouped(frame: pd.DataFrame, keys: Sequence[str]) -> Any:
    """Groups rows by keys, missing values included; without keys all rows are one group."""
    by = [*keys] or (lambda _: 0)
    return frame.groupby(by, dropna=False, sort=False)


def _reference(runs: Runs, against: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a reference by full key, as the runs have them; raises UserErrors."""
    found, chosen = {}, runs.frame
    for key, wanted in against.items():
        name = runs.find("against", key)
        allowed = {text(value): value for value in ordered(runs.frame, [name])[name].unique()}
        given = text(wanted)
        given = next((t for t, value in allowed.items() if _same(value, given)), given)
        check_choice(f"against {key}", given, allowed)
        found[name] = allowed[given]
        chosen = chosen[_holds(chosen[name], found[name])]
    if against and chosen.empty:
        raise UserError(f"against: got {in_words(found)}, which no run has; give one that exists")
    return found


def _same(value: Any, given: str) -> bool:
    """Whether a number is what was given, as 0.001 is 1e-3."""
    try:
        return not isinstance(value, str) and float(value) == float(given)
    except (TypeError, ValueError):
        return False


def _holds(column: pd.Series, value: Any) -> pd.Series:
    return column.isna() if pd.isna(value) else (column == value).fillna(False).astype(bool)


def _differences(runs: Runs, keys: Sequence[str], reference: Mapping[str, Any]) -> pd.DataFrame:
    """The paired differences of each metric from the reference rows, indexed like the table."""
    others = [key for key in keys if key not in reference]
    frame = ordered(runs.frame, [*keys, "seed"])
    holds = [_holds(frame[key], value) for key, value in reference.items()]
    is_reference = pd.concat(holds, axis=1).all(axis=1)
    chosen = frame.loc[is_reference, [*others, "seed", *runs.metrics]]
    pairs = frame.merge(chosen, "left", [*others, "seed"], suffixes=("", " of reference"))
    pairs["is reference"] = is_reference.to_numpy()
    rows = []
    for _, group in grouped(pairs, keys):
        row = {}
        for metric in runs.metrics:
            change = (group[metric] - group[f"{metric} of reference"]).dropna()
            interval = statistics.t_interval([] if group["is reference"].all() else [*change])
            low, high = (interval.low, interval.high) if interval.n > 1 else (math.nan, math.nan)
            values = interval.mean, low, high, interval.n
            names = [f"{metric}_{suffix}" for suffix in _DIFFERENCE]
            row |= dict(zip(names, values, strict=True))
        rows.append(row)
    found = pd.DataFrame(rows, grouped(frame, keys).size().index)
    if not found.filter(regex="_pairs$").to_numpy().any():
        names = " and ".join([*map(short, others), "seed"])
        raise UserError(
            f"against: got {in_words(reference)}, but no other run has the same {names} as one of "
            "these; name more keys of the reference, or train the runs that are missing"
        )
    return found


def about(runs: Runs) -> str:
    """What all runs have in common: data, model, its size, and what differs from the defaults."""
    models = {record.config["model"]["name"] for record in runs.records.values()}
    default = {k: v for name in models for k, v in configs.flatten(configs.default(name)).items()}
    shown = {"mode", "steps", *(f"model.{k}" for k in ("width", "depth", "kernel_size"))}
    common = {
        key: value
        for key, value in runs.common.items()
        # The roles of a model of one's own are as long as they are many.
        if key not in ("seed", "roles") and value is not None
        if key in shown or value != _cell(default.get(key))
    }
    names = [runs.common[key] for key in _FIRST if key in runs.common]
    if runs.common.get("steps") is not None:
        common.pop("epochs", None)
    elif "epochs" in runs.common:
        common["epochs"] = runs.common["epochs"]
    rest = [f"{short(key)} {text(value)}" for key, value in common.items() if key not in _FIRST]
    return ", ".join([*names, *rest])
