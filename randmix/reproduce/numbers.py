"""All numbers of a sweep, each with the run that it comes from."""

import dataclasses
import functools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from randmix import config as configs
from randmix.analysis import unshuffle
from randmix.experiments.plan import Group, PlannedRun
from randmix.experiments.records import Record
from randmix.models import counts
from randmix.reproduce import measurements, under_attack
from randmix.reproduce.plan import learned_share
from randmix.reproduce.presets import Preset
from randmix.training import runs as assembly

# What a number depends on beyond its run's settings, the metric and the value.
Row = tuple[dict[str, Any], str, float]


@dataclasses.dataclass(frozen=True)
class Number:
    """One number.

    Attributes:
        experiment: id of the experiment, "E1" to "E15" or "convergence".
        mode: "full", "chans", "space", "floor", or "groups" where a share of the filters is
            learned; "" where there is no model.
        settings: all keys of the run's config, flat; ``total_steps`` and ``share`` of it;
            ``num_classes`` of its data, None if that isn't known; and whatever else the number
            depends on: "epsilon" (in 1/255), "filters", "index", "layer", "step", "epoch", "check",
            "bank_rank", "bank_coverage".
        seed: seed of the run or the bank.
        metric: for example "accuracy", "psnr" (in dB), "coverage", or an attack: "fgsm", "pgd2",
            "strong", "noise". Accuracies, also under attack, and coverage are in [0, 1].
            "train_accuracy" and so on are of the last log interval, on augmented images;
            "curve_train_accuracy" and so on of every one, by "epoch". "trainable" and "parameters"
            are counts, "training_step" are the multiply-adds of one, per image.
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


class Numbers(list[Number]):
    """A list of numbers with ways to select from it."""

    def where(
        self, experiment: str | None = None, metric: str | None = None, **settings: Any
    ) -> "Numbers":
        """Selects numbers of an experiment and metric whose settings have the given values.

        A dot in the name of a setting may be written as "__": ``data__name="digits"``.
        """
        wanted = {name.replace("__", "."): value for name, value in settings.items()}
        return Numbers(
            number
            for number in self
            if experiment in (None, number.experiment)
            and metric in (None, number.metric)
            and all(number.settings.get(name) == value for name, value in wanted.items())
        )

    def values(self, setting: str) -> list[Any]:
        """The distinct values of a setting among the numbers, sorted, without None."""
        found = {number.settings.get(setting) for number in self} - {None}
        return sorted(found)

    def by_seed(self) -> dict[int, float]:
        """The value of each seed, or the mean of its values (over epsilons, for example)."""
        found: dict[int, list[float]] = {}
        for number in self:
            found.setdefault(number.seed, []).append(number.value)
        return {seed: sum(values) / len(values) for seed, values in sorted(found.items())}

    @property
    def runs(self) -> list[str]:
        """The distinct runs that the numbers come from, in the order of their seeds."""
        return list(dict.fromkeys(number.run for number in sorted(self, key=lambda r: r.seed)))


def collect(groups: Sequence[Group], found: Mapping[str, Record], preset: Preset) -> Numbers:
    """Returns the numbers of all finished runs, from their records by name."""
    numbers = Numbers()
    for run in (run for group in groups for run in group if run.name in found):
        record = found[run.name]
        result = record.result
        settings = {**_all_settings(run, record), **_bank(record)}
        rows: list[Row] = [
            ({}, name.removeprefix("test_"), value) for name, value in result["metrics"].items()
        ]
        rows.append(({}, "trainable", result["parameters"]["trainable"]))
        rows += [({}, name, value) for name, value in result.get("unshuffling", {}).items()]
        rows += _curves(record)
        # E8 reports on the filters, not on the run that contains them.
        for experiment in (name for name in run.experiments if name != "E8"):
            numbers += (
                Number(
                    experiment=experiment,
                    mode="groups" if run.settings.get("groups") else run.settings["mode"],
                    settings={**settings, **extra},
                    seed=run.settings["seed"],
                    metric=metric,
                    value=float(value),
                    run=run.name,
                )
                for extra, metric, value in [*rows, *_measured(experiment, run, record, preset)]
            )
    return numbers


def _measured(experiment: str, run: PlannedRun, record: Record, preset: Preset) -> Iterator[Row]:
    """What was measured of a trained run for an experiment."""
    found = record.measurements
    if experiment in ("E6", "E7") and (attacks := found.get(under_attack.attacks_name(preset))):
        for row in attacks["rows"]:
            yield {"epsilon": row["epsilon"]}, row["attack"], row["accuracy"]
        for check in attacks["checks"]:
            passed = math.nan if check["passed"] is None else check["passed"]
            yield {"check": check["claim"]}, "check", passed
    if experiment == "E6" and under_attack.keeps_its_way(run):
        for step in found.get(under_attack.steps_name(preset), ()):
            one = found[under_attack.step_name(preset, step)]
            yield {"step": step}, "step_accuracy", one["clean"]
            for row in one["rows"]:
                where = {"step": step, "epsilon": row["epsilon"]}
                yield where, f"step_{row['attack']}", row["accuracy"]
    if experiment == "E10":
        for row in found.get(measurements.RECONSTRUCTIONS, ()):
            # Older rows don't name their baselines; one that is exact has no number.
            if row.get("baseline", "").startswith(unshuffle.LINEAR) and row["mean_psnr"]:
                yield {}, "linear_psnr", row["mean_psnr"]
    if experiment == "E9":
        for row in found.get(measurements.LAYERS, ()):
            yield {"layer": row["layer"]}, "coverage", row["coverage"]
    if experiment in preset.radii:
        names = (under_attack.attacks_name(preset), under_attack.fgsm_name(preset))
        attacks = next((found[name] for name in names if name in found), {"rows": ()})
        for row in attacks["rows"]:
            if row["attack"] == "fgsm":
                yield {"epsilon": row["epsilon"]}, "fgsm", row["accuracy"]
    if experiment == "E13":
        yield {}, "parameters", sum(record.result["parameters"].values())
        if record.data:  # older runs don't say what their images are like
            kernels = _multiply_adds(
                json.dumps({"model": record.config["model"]}),
                record.data["num_classes"],
                tuple(record.data["image_shape"]),
            )
            yield {}, "training_step", counts.training_step(kernels, run.settings["mode"])


@functools.cache  # the runs of a family differ in their seed and mode
def _multiply_adds(
    config: str, num_classes: int, image_shape: tuple[int, int, int]
) -> dict[str, int]:
    """Multiply-adds of each kernel of a classifier, from its config in JSON."""
    model = assembly.build_model(configs.from_values(json.loads(config)), num_classes)
    return counts.multiply_adds(model, image_shape)


def _bank(record: Record) -> dict[str, float]:
    """The measured rank, to the nearest integer, and the coverage of a run's filters."""
    found = record.measurements.get(measurements.BANK)
    if found is None:
        return {}
    return {"bank_rank": round(found["rank"]), "bank_coverage": found["coverage"]}


def _curves(record: Record) -> Iterator[Row]:
    """The learning curves of a run, and the last values of those that aren't in its result."""
    last: dict[str, float] = {}
    for row in record.log:
        epoch = row["step"] / (record.steps_per_epoch or math.nan)
        for name in ("train_accuracy", "train_psnr", "test_accuracy", "test_psnr"):
            if name in row:
                yield {"epoch": epoch}, f"curve_{name}", row[name]
                last[name] = row[name]
    for name, value in last.items():
        if name.startswith("train_"):
            yield {}, name, value


def _all_settings(run: PlannedRun, record: Record) -> dict[str, Any]:
    return {
        **record.settings,
        "num_classes": (record.data or {}).get("num_classes"),
        "total_steps": record.result["step"],
        "share": learned_share(run.settings),
    }


def of_banks(rows: Iterable[Mapping[str, Any]], file: str) -> Numbers:
    """E1's numbers from ``measurements.random_banks``, whose rows ``file`` holds."""
    return Numbers(
        Number("E1", "", {"filters": row["filters"]}, row["seed"], metric, float(row[metric]), file)
        for row in rows
        for metric in ("coverage", "mean_coverage")
    )


def of_smoothing(rows: Iterable[Mapping[str, Any]], run: PlannedRun, record: Record) -> Numbers:
    """E8's numbers from ``measurements.smoothed_filters`` of a run."""
    settings, seed = _all_settings(run, record), run.settings["seed"]
    return Numbers(
        Number(
            "E8", "chans", {**settings, "index": row["index"]}, seed, metric, row[metric], run.name
        )
        for row in rows
        for metric in ("coverage", "mean_frequency")
    )
