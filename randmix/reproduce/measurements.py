"""Measurements of trained runs and random banks, stored in files so that each is made only once.

    runs/NAME/measurements/attacks-..., step-...   accuracy under attack, see ``under_attack``
    runs/NAME/measurements/layers-KEY.json         coverage of each layer, with pictures (E9)
    runs/NAME/measurements/bank-KEY.json           rank and coverage of chosen banks (E3)
    pictures/...                                   pictures of several runs or none

A failed measurement is recorded in the run's measurements/failed.json and skipped.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from randmix.analysis import plots, spectrum, unshuffle
from randmix.analysis.equivalence import equivalence as figure_of_equivalence
from randmix.analysis.spectrum import figures as spectra
from randmix.analysis.spectrum.figures import Picture
from randmix.reproduce import under_attack
from randmix.reproduce.plan import PlannedRun
from randmix.reproduce.presets import Preset
from randmix.reproduce.stored import FOLDER, kept, key, read
from randmix.runtime import durable
from randmix.runtime.preemption import Preempted, StopSignals
from randmix.training import loading
from randmix.training.compiled import Programs

Rows = list[dict[str, Any]]
FAILED = "failed.json"


def measure(
    run: PlannedRun,
    root: epath.PathLike,
    preset: Preset,
    stop: StopSignals,
    programs: Programs | None = None,
) -> None:
    """Makes the measurements that the experiments of a finished run need.

    Args:
        run: the finished run.
        root: the sweep's folder.
        preset: its ``attack`` holds the settings of the attacks.
        stop: checked for signals during the measurements.
        programs: compiled programs; runs that differ only in their seed share them.

    Raises:
        Preempted: a signal arrived; completed measurements are kept.
    """
    failures = {}
    work = {
        "accuracy under attack": lambda: under_attack.attacks(run, root, preset, stop, programs),
        "accuracy under attack of checkpoints": lambda: under_attack.attacked_checkpoints(
            run, root, preset, stop, programs
        ),
        "spectrum of each layer": lambda: layers(run, root),
        "rank of the filters": lambda: bank(run, root),
    }
    for name in _needed(run, root, preset):
        function = work[name]
        try:
            function()
        except Preempted:
            raise
        except Exception as error:  # the others may still succeed, and the report names this one
            failures[name] = f"{type(error).__name__}: {error}"
    file = run.folder(root) / FOLDER / FAILED
    if failures:
        durable.make_folder(file.parent)
        durable.write(file, json.dumps(failures) + "\n")
    elif file.exists():
        file.unlink()


def _needed(
    run: PlannedRun, root: epath.PathLike, preset: Preset
) -> dict[str, Sequence[epath.Path]]:
    """The files of the measurements that the experiments of a run need, by measurement."""
    files: dict[str, Sequence[epath.Path]] = {}
    if {"E6", "E7"} & set(run.experiments):
        files["accuracy under attack"] = [under_attack.attacks_file(run, root, preset)]
    if under_attack.keeps_its_way(run):
        files["accuracy under attack of checkpoints"] = [
            under_attack.checkpoint_file(run, root, preset, step)
            for step in loading.kept_steps(run.folder(root))
        ]
    if "E9" in run.experiments:
        files["spectrum of each layer"] = [layers_file(run, root)]
    if "E3" in run.experiments and run.settings.get("model.filter_rank"):
        files["rank of the filters"] = [bank_file(run, root)]
    return files


def complete(run: PlannedRun, root: epath.PathLike, preset: Preset) -> bool:
    """Whether everything was measured that the experiments of a finished run need."""
    needed = _needed(run, root, preset).values()
    return all(file.exists() for files in needed for file in files)


def failures(run: PlannedRun, root: epath.PathLike) -> dict[str, str]:
    """Measurements of a run that failed in the latest attempt, with the reason by name."""
    file = run.folder(root) / FOLDER / FAILED
    if not file.exists():
        return {}
    return read(file, {str: str})


def _kept_pictures(
    file: epath.Path, bare: Mapping[str, epath.Path], draw: Callable[[], Mapping[str, Picture]]
) -> Rows:
    """Rows of the first picture, kept in a file; the pictures are saved without suffix at bare."""

    def compute() -> Rows:
        pictures = draw()
        for name, path in bare.items():
            plots.save(pictures[name].figure, path, pictures[name].rows)
        return [dict(row) for row in pictures[next(iter(bare))].rows]

    return kept(file, compute)


def layers_file(run: PlannedRun, root: epath.PathLike) -> epath.Path:
    """Path of the coverage of each layer of a run."""
    return run.folder(root) / FOLDER / f"layers-{key()}.json"


def layers(run: PlannedRun, root: epath.PathLike) -> tuple[Rows, dict[str, epath.Path]]:
    """E9: coverage of each layer's filters.

    Returns:
        Rows of measures, one per layer, and the paths without suffix of the pictures "envelopes"
        and "filters", by name.
    """
    file = layers_file(run, root)
    bare = {name: file.parent / name for name in ("envelopes", "filters")}

    def draw() -> dict[str, Picture]:
        return spectra.layers(spectrum.layers(loading.load(run.folder(root)).variables))

    return _kept_pictures(file, bare, draw), bare


def bank_file(run: PlannedRun, root: epath.PathLike) -> epath.Path:
    """Path of the rank and the coverage of a run's filters."""
    return run.folder(root) / FOLDER / f"bank-{key()}.json"


def bank(run: PlannedRun, root: epath.PathLike) -> dict[str, float]:
    """Claim 2': rank and coverage of the banks of a run's filters, means over its layers."""

    def compute() -> dict[str, float]:
        kernels = [*spectrum.layers(loading.load(run.folder(root)).variables).values()]
        measures = {"rank": spectrum.rank, "coverage": spectrum.bank_coverage}
        return {
            name: sum(map(measure, kernels)) / len(kernels) for name, measure in measures.items()
        }

    return kept(bank_file(run, root), compute)


def random_banks(root: epath.PathLike, preset: Preset) -> tuple[Rows, epath.Path]:
    """E1: coverage of random banks by size and seed, and the picture's path without suffix."""
    banks = preset.banks
    file = epath.Path(root) / "pictures" / f"random-{key(dict(banks))}.json"

    def draw() -> dict[str, Picture]:
        return spectra.random_banks(
            banks["counts"], kernel_size=banks["kernel_size"], seeds=range(banks["seeds"])
        )

    return _kept_pictures(file, {"random": _bare(file)}, draw), _bare(file)


def smoothed_filters(
    run: PlannedRun, root: epath.PathLike, preset: Preset
) -> tuple[Rows, dict[str, epath.Path]]:
    """E7 and E8: frozen random filters of a Chans run, smoothed at the preset's three indices.

    A run with a smoothing index applies the same smoothing to the same random numbers, so these are
    the filters with which the smoothed runs of that seed were trained.

    Returns:
        Rows of measures, one per index, and the paths without suffix of the pictures "smoothing"
        and "smoothing_profile", by name.
    """
    file = epath.Path(root) / "pictures" / f"smoothing-{key(run.name, preset.shown)}.json"
    bare = {name: _bare(file, f"-{name}") for name in ("smoothing", "smoothing_profile")}

    def draw() -> dict[str, Picture]:
        kernels = [*spectrum.layers(loading.load(run.folder(root)).variables).values()]
        return spectra.smoothing(kernels, preset.shown)

    return _kept_pictures(file, bare, draw), bare


def equivalence(root: epath.PathLike) -> epath.Path:
    """E3: what each bank of frozen filters can express; the path without suffix of the picture."""
    file = epath.Path(root) / "pictures" / f"equivalence-{key()}.json"
    bare = {"equivalence": _bare(file)}
    _kept_pictures(file, bare, figure_of_equivalence)
    return _bare(file)


def reconstructions(group: Sequence[PlannedRun], root: epath.PathLike) -> epath.Path:
    """E10: originals, shuffled images and each run's reconstructions in one picture.

    Returns:
        The picture's path without suffix.
    """
    names = [run.name for run in group]
    file = epath.Path(root) / "pictures" / f"reconstructions-{key(names)}.json"

    def compute() -> list[str]:
        folders = [run.folder(root) for run in group]
        rows = unshuffle.reconstructions(folders, examples=8)
        plots.save(unshuffle.figure(rows), _bare(file))
        return names

    kept(file, compute)
    return _bare(file)


def _bare(file: epath.Path, ending: str = "") -> epath.Path:
    return file.parent / f"{file.name.removesuffix('.json')}{ending}"
