"""Every number of a sweep, with the run that it comes from."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from randmix import artifacts
from randmix.reproduce import measurements
from randmix.reproduce.plan import Group, PlannedRun, learned_share
from randmix.reproduce.presets import Preset


@dataclasses.dataclass(frozen=True)
class Record:
    """A number.

    Attributes:
        experiment: "E2", ...
        mode: "full", "chans", "space", or "groups" where a share of the filters is learned; "" of what isn't a model.
        settings: of the run, flat; and what else the number depends on: "epsilon", "filters", "index", "layer", "share".
        seed: of the run or the bank.
        metric: "accuracy", "psnr", "coverage", "fgsm", "pgd2", "strong", "noise". Accuracies are shares of 1.
        value: the number.
        run: the name of the run's folder, or the file of a bank.
    """

    experiment: str
    mode: str
    settings: Mapping[str, Any]
    seed: int
    metric: str
    value: float
    run: str


class Records(list[Record]):
    """Records, and ways to pick from them."""

    def where(self, experiment: str, metric: str | None = None, **settings: Any) -> "Records":
        """Those of an experiment (and metric) whose settings have these values; dots are written as "__"."""
        wanted = {name.replace("__", "."): value for name, value in settings.items()}
        return Records(
            record
            for record in self
            if record.experiment == experiment
            and metric in (None, record.metric)
            and all(record.settings.get(name) == value for name, value in wanted.items())
        )

    def values(self, setting: str) -> list[Any]:
        """The values that a setting has among them, each once, sorted; None is left out."""
        found = {record.settings.get(setting) for record in self} - {None}
        return sorted(found)

    def by_seed(self) -> dict[int, float]:
        """The value of each seed; the mean where a seed has several, over epsilons for example."""
        found: dict[int, list[float]] = {}
        for record in self:
            found.setdefault(record.seed, []).append(record.value)
        return {seed: sum(values) / len(values) for seed, values in sorted(found.items())}

    @property
    def runs(self) -> list[str]:
        """The runs that they come from, each once, in the order of their seeds."""
        return list(dict.fromkeys(record.run for record in sorted(self, key=lambda r: r.seed)))


def collect(groups: Sequence[Group], root: epath.PathLike, preset: Preset) -> Records:
    """The numbers of all finished runs; nothing is computed."""
    records = Records()
    for run in (run for group in groups for run in group):
        result = artifacts.read_result(run.folder(root))
        if result is None:
            continue
        mode = "groups" if run.settings.get("groups") else run.settings["mode"]
        rows = [
            ({}, name.removeprefix("test_"), value) for name, value in result["metrics"].items()
        ]
        rows += [({}, "trainable", result["parameters"]["trainable"])]
        file = measurements.attacks_file(run, root, preset)
        attacked = measurements.kept(file, dict)["rows"] if file.exists() else []
        # What E8 shows is of filters, not of the runs that they are in.
        for experiment in (name for name in run.experiments if name != "E8"):
            own = [*rows]
            if experiment in ("E6", "E7"):
                own += [
                    ({"epsilon": row["epsilon"]}, row["attack"], row["accuracy"])
                    for row in attacked
                ]
            if experiment == "E9":
                own += [
                    ({"layer": row["layer"]}, "coverage", row["coverage"])
                    for row in _layers(run, root)
                ]
            records += (
                Record(
                    experiment=experiment,
                    mode=mode,
                    settings={**_complete(run.settings), **extra},
                    seed=run.settings["seed"],
                    metric=metric,
                    value=float(value),
                    run=run.name,
                )
                for extra, metric, value in own
            )
    return records


def of_banks(rows: Iterable[Mapping[str, Any]], file: str) -> Records:
    """E1's numbers."""
    return Records(
        Record("E1", "", {"filters": row["filters"]}, row["seed"], metric, float(row[metric]), file)
        for row in rows
        for metric in ("coverage", "mean_coverage")
    )


def of_smoothing(rows: Iterable[Mapping[str, Any]], run: PlannedRun) -> Records:
    """E8's numbers, of the frozen filters of one run."""
    return Records(
        Record(
            "E8",
            "chans",
            {**_complete(run.settings), "index": row["index"]},
            run.settings["seed"],
            metric,
            float(row[metric]),
            run.name,
        )
        for row in rows
        for metric in ("coverage", "mean_frequency")
    )


def _layers(run: Any, root: epath.PathLike) -> list[dict[str, Any]]:
    file = run.folder(root) / "measurements" / f"layers-{measurements.key()}.json"
    return measurements.kept(file, list) if file.exists() else []


def _complete(settings: Mapping[str, Any]) -> dict[str, Any]:
    """With the values that presets leave at their defaults, so that they can be asked for."""
    return {
        "data.name": "digits",
        "model.filters": "random",
        "model.smoothing_index": 0.0,
        "defense.epsilon": 0.0,
        "task": "classification",
        **settings,
        "share": learned_share(settings),
    }
