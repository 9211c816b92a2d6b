"""All figures of a report, written to one folder: from records, and of filters and images."""

from collections.abc import Sequence

from etils import epath

from randmix.analysis import plots
from randmix.reproduce import figures, measurements, sweep
from randmix.reproduce.experiments import EXPERIMENTS
from randmix.reproduce.plan import Group, PlannedRun
from randmix.reproduce.presets import Preset
from randmix.reproduce.records import Records

_SUFFIXES = ("png", "svg", "csv")


def draw(
    experiments: Sequence[str],
    records: Records,
    groups: Sequence[Group],
    root: epath.PathLike,
    preset: Preset,
    folder: epath.Path,
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Writes all figures that can be drawn, as PNG and SVG with their data as CSV.

    Args:
        experiments: ids of the experiments whose figures are drawn.
        records: all records of the sweep.
        groups: the sweep's runs.
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
                    names = _draw(name, records, folder)
                else:
                    names = _copy(name, _sources(name, groups, root, preset), folder)
            except Exception as error:  # one failed picture must not prevent the report
                missing[name] = f"{type(error).__name__}: {error}"
                continue
            drawn[experiment] += names
            if not names:
                missing[name] = "the runs that it needs are not finished"
    return drawn, missing


def _draw(name: str, records: Records, folder: epath.Path) -> list[str]:
    with plots.style():
        picture = figures.DRAWN[name](records)
    if picture is None:
        return []
    plots.save(picture.figure, folder / name, picture.rows)
    return [name]


def _copy(name: str, sources: Sequence[epath.Path], folder: epath.Path) -> list[str]:
    names = [f"{name}-{i + 1}" if i else name for i in range(len(sources))]
    for source, copy in zip(sources, names, strict=True):
        for suffix in _SUFFIXES:
            file = source.parent / f"{source.name}.{suffix}"
            if file.exists():
                (folder / f"{copy}.{suffix}").write_bytes(file.read_bytes())
    return names


def _sources(
    name: str, groups: Sequence[Group], root: epath.PathLike, preset: Preset
) -> list[epath.Path]:
    """The files, without suffix, of a figure of filters or images; [] without finished runs."""
    experiment, _, part = name.partition("-")
    if experiment == "E1":
        return [measurements.random_banks(root, preset)[1]]
    if experiment == "E3":
        return [measurements.equivalence(root)]
    if experiment in ("E7", "E8"):
        plain = unsmoothed(groups, root)
        which = "smoothing_profile" if part == "profile" else "smoothing"
        return [measurements.smoothed_filters(plain, root, preset)[1][which]] if plain else []
    first = _first_finished(experiment, groups, root)
    if experiment == "E9":
        return [measurements.layers(first[0], root)[1][part]] if first else []
    return [measurements.reconstructions(runs, root) for runs in _reconstructed(first)]


def unsmoothed(groups: Sequence[Group], root: epath.PathLike) -> PlannedRun | None:
    """The first finished run of E8 or E7 with random filters, which both experiments smooth."""
    runs = [run for experiment in ("E8", "E7") for run in _first_finished(experiment, groups, root)]
    return next((run for run in runs if not run.settings.get("model.smoothing_index")), None)


def _first_finished(
    experiment: str, groups: Sequence[Group], root: epath.PathLike
) -> list[PlannedRun]:
    """The first finished seed of each group of an experiment."""
    found = []
    for group in groups:
        if experiment in group[0].experiments:
            found += [run for run in group if sweep.state(run, root).name == "finished"][:1]
    return found


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
