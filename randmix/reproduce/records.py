"""All numbers of a sweep, each with the run that it comes from."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from randmix import config as configs
from randmix.reproduce import measurements, stored, under_attack
from randmix.reproduce.plan import Group, PlannedRun, learned_share
from randmix.reproduce.presets import Preset
from randmix.training import loading
from randmix.workdir import artifacts, metrics

# What a number depends on beyond its run's settings, the metric and the value.
Row = tuple[dict[str, Any], str, float]

# Titles in the report, in its order.
MODES = {"full": "Full", "chans": "Chans", "space": "Space", "floor": "Floor"}
BANKS = {"random": "Different", "same": "Same", "box": "Box", "identity": "Identity"}


@dataclasses.dataclass(frozen=True)
class Record:
    """One number.

    Attributes:
        experiment: id of the experiment, "E1" to "E12" or "convergence".
        mode: "full", "chans", "space", "floor", or "groups" where a share of the filters is
            learned; "" where there is no model.
        settings: all keys of the run's config, flat; ``total_steps`` and ``share`` of it; and
            whatever else the number depends on: "epsilon" (in 1/255), "filters", "index", "layer",
            "step", "epoch", "check", "bank_rank", "bank_coverage".
        seed: seed of the run or the bank.
        metric: for example "accuracy", "psnr" (in dB), "coverage", or an attack: "fgsm", "pgd2",
            "strong", "noise". Accuracies, also under attack, and coverage are in [0, 1].
            "train_accuracy" and so on are of the last log interval, on augmented images;
            "curve_train_accuracy" and so on of every one, by "epoch".
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
        folder = run.folder(root)
        result = artifacts.read_result(folder, run.config)
        if result is None:
            continue
        settings = {**_all_settings(run), **_bank(run, root)}
        rows: list[Row] = [
            ({}, name.removeprefix("test_"), value) for name, value in result["metrics"].items()
        ]
        rows.append(({}, "trainable", result["parameters"]["trainable"]))
        rows += [({}, name, value) for name, value in result.get("unshuffling", {}).items()]
        rows += _curves(folder, run)
        # E8 reports on the filters, not on the run that contains them.
        for experiment in (name for name in run.experiments if name != "E8"):
            records += (
                Record(
                    experiment=experiment,
                    mode="groups" if run.settings.get("groups") else run.settings["mode"],
                    settings={**settings, **extra},
                    seed=run.settings["seed"],
                    metric=metric,
                    value=float(value),
                    run=run.name,
                )
                for extra, metric, value in [*rows, *_measured(experiment, run, root, preset)]
            )
    return records


def _measured(
    experiment: str, run: PlannedRun, root: epath.PathLike, preset: Preset
) -> Iterator[Row]:
    """What was measured of a trained run for an experiment."""
    if experiment in ("E6", "E7"):
        file = under_attack.attacks_file(run, root, preset)
        if file.exists():
            found = stored.read(file, {"rows": list, "checks": list})
            for row in found["rows"]:
                yield {"epsilon": row["epsilon"]}, row["attack"], row["accuracy"]
            for check in found["checks"]:
                passed = math.nan if check["passed"] is None else check["passed"]
                yield {"check": check["claim"]}, "check", passed
    if experiment == "E6" and under_attack.keeps_its_way(run):
        for step in loading.kept_steps(run.folder(root)):
            file = under_attack.checkpoint_file(run, root, preset, step)
            if file.exists():
                found = stored.read(file, {"rows": list, "clean": float})
                yield {"step": step}, "step_accuracy", found["clean"]
                for row in found["rows"]:
                    where = {"step": step, "epsilon": row["epsilon"]}
                    yield where, f"step_{row['attack']}", row["accuracy"]
    if experiment == "E9":
        file = measurements.layers_file(run, root)
        for row in stored.read(file, list) if file.exists() else ():
            yield {"layer": row["layer"]}, "coverage", row["coverage"]


def _bank(run: PlannedRun, root: epath.PathLike) -> dict[str, float]:
    """The measured rank, to the nearest integer, and the coverage of a run's filters."""
    file = measurements.bank_file(run, root)
    if not file.exists():
        return {}
    found = stored.read(file, {"rank": float, "coverage": float})
    return {"bank_rank": round(found["rank"]), "bank_coverage": found["coverage"]}


def _curves(folder: epath.Path, run: PlannedRun) -> Iterator[Row]:
    """The learning curves of a run, and the last values of those that aren't in its result."""
    last: dict[str, float] = {}
    for row in metrics.read(folder / artifacts.METRICS):
        epoch = row["step"] / run.steps_per_epoch
        for name in ("train_accuracy", "train_psnr", "test_accuracy", "test_psnr"):
            if name in row:
                yield {"epoch": epoch}, f"curve_{name}", row[name]
                last[name] = row[name]
    for name, value in last.items():
        if name.startswith("train_"):
            yield {}, name, value


def _all_settings(run: PlannedRun) -> dict[str, Any]:
    return {
        **configs.flatten(run.config),
        "total_steps": run.steps,
        "share": learned_share(run.settings),
    }


def of_banks(rows: Iterable[Mapping[str, Any]], file: str) -> Records:
    """E1's records from ``measurements.random_banks``, whose rows ``file`` holds."""
    return Records(
        Record("E1", "", {"filters": row["filters"]}, row["seed"], metric, float(row[metric]), file)
        for row in rows
        for metric in ("coverage", "mean_coverage")
    )


def of_smoothing(rows: Iterable[Mapping[str, Any]], run: PlannedRun) -> Records:
    """E8's records from ``measurements.smoothed_filters`` of a run."""
    settings, seed = _all_settings(run), run.settings["seed"]
    return Records(
        Record(
            "E8", "chans", {**settings, "index": row["index"]}, seed, metric, row[metric], run.name
        )
        for row in rows
        for metric in ("coverage", "mean_frequency")
    )
