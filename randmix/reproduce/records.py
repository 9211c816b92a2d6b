"""All numbers of a sweep, each with the run that it comes from."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from randmix.reproduce import measurements
from randmix.reproduce.plan import Group, PlannedRun, learned_share
from randmix.reproduce.presets import Preset
from randmix.workdir import artifacts

# Titles in the report, in its order.
MODES = {"full": "Full", "chans": "Chans", "space": "Space"}
BANKS = {"random": "Different", "same": "Same", "box": "Box", "identity": "Identity"}


@dataclasses.dataclass(frozen=True)
class Record:
    """One number.

    Attributes:
        experiment: id of the experiment, "E1" to "E12".
        mode: "full", "chans", "space", or "groups" where a share of the filters is learned; ""
            where there is no model.
        settings: settings of the run, flat, and whatever else the number depends on: "epsilon" (in
            1/255), "filters", "index", "layer", "share".
        seed: seed of the run or the bank.
        metric: for example "accuracy", "psnr" (in dB), "coverage", or an attack: "fgsm", "pgd2",
            "strong", "noise". Accuracies, also under attack, and coverage are in [0, 1].
        value: the number.
        run: name of the run's folder, or path of the file with a bank's numbers.
    """

    experiment: str
    mode: str
    settings: Mapping[str, Any]
    seed: int
    metric: str
    value: float
    run: str

    @property
    def defended(self) -> bool:
        """Whether the model was trained on adversarial samples."""
        return bool(self.settings.get("defense.epsilon"))


class Records(list[Record]):
    """A list of records with ways to select from it."""

    def where(
        self, experiment: str | None = None, metric: str | None = None, **settings: Any
    ) -> "Records":
        """Selects records of an experiment and metric whose settings have the given values.

        A dot in the name of a setting may be written as "__": ``data__name="digits"``.
        """
        wanted = {name.replace("__", "."): value for name, value in settings.items()}
        return Records(
            record
            for record in self
            if experiment in (None, record.experiment)
            and metric in (None, record.metric)
            and all(record.settings.get(name) == value for name, value in wanted.items())
        )

    def attacked(self, defended: bool) -> "Records":
        """Selects accuracies under attack at epsilons above 0, by how the models were trained."""
        return Records(
            record
            for record in self
            if record.settings.get("epsilon", 0) > 0 and record.defended == defended
        )

    def values(self, setting: str) -> list[Any]:
        """The distinct values of a setting among the records, sorted, without None."""
        found = {record.settings.get(setting) for record in self} - {None}
        return sorted(found)

    def by_seed(self) -> dict[int, float]:
        """The value of each seed, or the mean of its values (over epsilons, for example)."""
        found: dict[int, list[float]] = {}
        for record in self:
            found.setdefault(record.seed, []).append(record.value)
        return {seed: sum(values) / len(values) for seed, values in sorted(found.items())}

    @property
    def runs(self) -> list[str]:
        """The distinct runs that the records come from, in the order of their seeds."""
        return list(dict.fromkeys(record.run for record in sorted(self, key=lambda r: r.seed)))


def collect(groups: Sequence[Group], root: epath.PathLike, preset: Preset) -> Records:
    """Reads the numbers of all finished runs; measures nothing."""
    records = Records()
    for run in (run for group in groups for run in group):
        result = artifacts.read_result(run.folder(root), run.config)
        if result is None:
            continue
        mode = "groups" if run.settings.get("groups") else run.settings["mode"]
        rows: list[tuple[dict[str, Any], str, float]] = [
            ({}, name.removeprefix("test_"), value) for name, value in result["metrics"].items()
        ]
        rows.append(({}, "trainable", result["parameters"]["trainable"]))
        file = measurements.attacks_file(run, root, preset)
        attacked = measurements.read(file, {"rows": list})["rows"] if file.exists() else []
        file = measurements.layers_file(run, root)
        layers = measurements.read(file, list) if file.exists() else []
        # E8 reports on the filters, not on the run that contains them.
        for experiment in (name for name in run.experiments if name != "E8"):
            own = [*rows]
            if experiment in ("E6", "E7"):
                own += [
                    ({"epsilon": row["epsilon"]}, row["attack"], row["accuracy"])
                    for row in attacked
                ]
            if experiment == "E9":
                own += [({"layer": row["layer"]}, "coverage", row["coverage"]) for row in layers]
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
    """E1's records from ``measurements.random_banks``, whose rows ``file`` holds."""
    return Records(
        Record("E1", "", {"filters": row["filters"]}, row["seed"], metric, float(row[metric]), file)
        for row in rows
        for metric in ("coverage", "mean_coverage")
    )


def of_smoothing(rows: Iterable[Mapping[str, Any]], run: PlannedRun) -> Records:
    """E8's records from ``measurements.smoothed_filters`` of a run."""
    settings, seed = _complete(run.settings), run.settings["seed"]
    return Records(
        Record(
            "E8", "chans", {**settings, "index": row["index"]}, seed, metric, row[metric], run.name
        )
        for row in rows
        for metric in ("coverage", "mean_frequency")
    )


def _complete(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the defaults that presets leave out, so that records can be selected by them."""
    return {
        "data.name": "digits",
        "model.filters": "random",
        "model.smoothing_index": 0.0,
        "defense.epsilon": 0.0,
        "task": "classification",
        **settings,
        "share": learned_share(settings),
    }
