"""All figures of a report, written to one folder: from numbers, and of filters and images."""

from collections.abc import Mapping, Sequence

from etils import epath

from randmix.analysis import plots
from randmix.errors import UserError
from randmix.experiments.plan import Group, PlannedRun
from randmix.experiments.records import Record
from randmix.reproduce import figures, measurements
from randmix.reproduce.experiments import EXPERIMENTS
from randmix.reproduce.numbers import Numbers
from randmix.reproduce.presets import Preset

_SUFFIXES = ("png", "svg", "csv")


def draw(
    experiments: Sequence[str],
    numbers: Numbers,
    groups: Sequence[Group],
    found: Mapping[str, Record],
    root: epath.PathLike,
    preset: Preset,
    folder: epath.Path,
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Writes all figures that can be drawn, as PNG and SVG with their data as CSV.

    Args:
        experiments: ids of the experiments whose figures are drawn.
        numbers: all numbers of the sweep.
        groups: the sweep's runs.
        found: the records of the finished ones, by name.
        root: the sweep's folder.
        preset: the sweep's preset.
        folder: folder to write to.

    Returns:
        The names of each experiment's figures, and for each figure that couldn't be drawn the
        reason, by name.
    """
    drawn: dict[str, list[str]] = {experiment: [] for experiment in experiments}
    missing = {}
    folder.mkdir(parents=True, exist_ok=True)
    for experiment in experiments:
        for name in EXPERIMENTS[experiment].figures:
            try:
                if name in figures.DRAWN:
                    names = _draw(name, numbers, folder)
                else:
                    names = _copy(name, _sources(name, groups, found, root, preset), folder)
            except Exception as error:  # one failed picture must not prevent the report
                missing[name] = f"{type(error).__name__}: {error}"
                continue
            drawn[experiment] += names
            if not names:
                missing[name] = "the finished runs have nothing that it shows"
    return drawn, missing


def _draw(name: str, numbers: Numbers, folder: epath.Path) -> list[str]:
    with plots.style():
        picture = figures.DRAWN[name](numbers)
    if picture is None:
        return []
    plots.save(picture.figure, folder / name, picture.rows)
    return [name]


def _copy(name: str, sources: Sequence[epath.Path], folder: epath.Path) -> list[str]:
    names = [f"{name}-{i + 1}" if i else name for i in range(len(sources))]
    for source, copy in zip(sources, names, strict=True):
        for suffix in _SUFFIXES:
            file = source.parent / f"{source.name}.{suffix}"
            if suffix == "png" and not file.exists():
                raise UserError(f"{file} is missing; remove {source}*.json to have it drawn anew")
            if file.exists():
                (folder / f"{copy}.{suffix}").write_bytes(file.read_bytes())
    return names


def _sources(
    name: str,
    groups: Sequence[Group],
    found: Mapping[str, Record],
    root: epath.PathLike,
    preset: Preset,
) -> list[epath.Path]:
    """The files, without suffix, of a figure of filters or images; [] without finished runs."""
    experiment, _, part = name.partition("-")
    if experiment == "E1":
        return [measurements.random_banks(root, preset)[1]]
    if experiment == "E3":
        return [measurements.equivalence(root)]
    if experiment == "E8":
        plain = unsmoothed(groups, found)
        if plain is None:
            return []
        which = "smoothing_profile" if part == "profile" else "smoothing"
        return [measurements.smoothed_filters(found[plain.name], root, preset)[1][which]]
    if experiment == "E9":
        first = _first(experiment, measurements.LAYERS, groups, found)[:1]
        return [measurements.pictures_of_layers(found[run.name], root)[part] for run in first]
    first = _first(experiment, measurements.RECONSTRUCTIONS, groups, found)
    return [
        measurements.picture_of_reconstructions([found[run.name] for run in runs], root)
        for runs in _reconstructed(first)
    ]


def unsmoothed(groups: Sequence[Group], found: Mapping[str, Record]) -> PlannedRun | None:
    """The first finished run of E8 or E7 with random filters, which both experiments smooth."""
    runs = [run for id in ("E8", "E7") for run in _first(id, measurements.LAYERS, groups, found)]
    return next((run for run in runs if not run.settings.get("model.smoothing_index")), None)


def _first(
    experiment: str, measurement: str, groups: Sequence[Group], found: Mapping[str, Record]
) -> list[PlannedRun]:
    """The first seed of each group of an experiment of which something was measured."""
    first = []
    for group in groups:
        if experiment in group[0].experiments:
            first += [
                run
                for run in group
                if run.name in found and measurement in found[run.name].measurements
            ][:1]
    return first


def _reconstructed(runs: Sequence[PlannedRun]) -> list[list[PlannedRun]]:
    """Chooses the models whose reconstructions are shown, as lists of the runs of one model.

    For each data set these are the largest model among those with the most finished modes, and the
    largest of all if it costs at least four times as much.
    """
    by_size: dict[tuple, list[PlannedRun]] = {}
    for run in runs:
        model = run.config.model
        size = (run.config.data.name, model.depth, model.kernel_size, model.width)
        by_size.setdefault(size, []).append(run)
    shown = []
    for data in dict.fromkeys(size[0] for size in by_size):
        here = [group for size, group in by_size.items() if size[0] == data]
        most = max(here, key=lambda group: (len(group), group[0].cost))
        largest = max(here, key=lambda group: (group[0].cost, len(group)))
        shown += (
            [most] if most is largest or largest[0].cost < 4 * most[0].cost else [most, largest]
        )
    return shown
