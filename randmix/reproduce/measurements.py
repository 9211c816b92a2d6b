"""Measurements of trained runs and random banks, stored in files so that each is made only once.

    runs/NAME/measurements/attacks-KEY.json    accuracy under attack and sanity checks (E6, E7)
    runs/NAME/measurements/attacks-KEY.npz     the outcome for each image, see ``robustness.load``
    runs/NAME/measurements/step-S-KEY.json     FGSM and PGD-2 on the checkpoint of step S (claim 4e)
    runs/NAME/measurements/step-S-KEY.npz      the outcome for each image, likewise
    runs/NAME/measurements/layers-KEY.json     coverage of each layer, with pictures (E9)
    runs/NAME/measurements/bank-KEY.json       rank and coverage of chosen banks (E3)
    pictures/...                          pictures of several runs or none (E1, E3, E7, E8, E10)

KEY is a hash of the measurement's settings: with other settings the measurement is made anew, and
the old file stays. A failed measurement is recorded in the run's measurements/failed.json and
skipped.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from randmix.analysis import plots, robustness, spectrum, unshuffle
from randmix.analysis.equivalence import equivalence as figure_of_equivalence
from randmix.analysis.robustness import bits, report, sanity
from randmix.analysis.spectrum import figures as spectra
from randmix.analysis.spectrum.figures import Picture
from randmix.reproduce.plan import PlannedRun
from randmix.reproduce.presets import Preset
from randmix.runtime import durable, progress
from randmix.runtime.preemption import Preempted, StopSignals
from randmix.training import evaluation as eval_loop
from randmix.training import loading
from randmix.training.compiled import Programs
from randmix.workdir import json_files

Rows = list[dict[str, Any]]
FAILED = "failed.json"
_FOLDER = "measurements"
# Increase it whenever the meaning of the stored numbers changes.
_VERSION = 2
# Between two lines on the progress of the attacks.
_SECONDS = 60


def key(*how: Any) -> str:
    """Hash of a measurement's settings: eight hex digits."""
    text = json.dumps([_VERSION, *how], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def kept(file: epath.Path, compute: Callable[[], Any]) -> Any:
    """Returns the content of a JSON file, computed and written first if it's missing or damaged."""
    if file.exists():
        try:
            return json_files.read(file, object, what_to_do="it is computed anew")
        except json_files.Damaged as damaged:
            logging.getLogger(__name__).warning("%s", damaged)
    durable.make_folder(file.parent)
    durable.write(file, json.dumps(compute(), indent=1) + "\n")
    return read(file)


def read(file: epath.Path, structure: Any = object) -> Any:
    """Returns the content of a measurement's JSON file; raises a UserError if it is damaged."""
    return json_files.read(file, structure, what_to_do="remove it and start the same command again")


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
        "accuracy under attack": lambda: attacks(run, root, preset, stop, programs),
        "accuracy under attack of checkpoints": lambda: attacked_checkpoints(
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
    file = run.folder(root) / _FOLDER / FAILED
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
        files["accuracy under attack"] = [attacks_file(run, root, preset)]
    if keeps_its_way(run):
        files["accuracy under attack of checkpoints"] = [
            checkpoint_file(run, root, preset, step)
            for step in loading.kept_steps(run.folder(root))
        ]
    if "E9" in run.experiments:
        files["spectrum of each layer"] = [layers_file(run, root)]
    if "E3" in run.experiments and run.settings.get("model.filter_rank"):
        files["rank of the filters"] = [bank_file(run, root)]
    return files


def keeps_its_way(run: PlannedRun) -> bool:
    """Whether checkpoints of a run are attacked as well: an undefended one of E6 that keeps some.

    Two are kept in any case.
    """
    return (
        "E6" in run.experiments
        and run.settings.get("keep_checkpoints", 2) > 2
        and not run.settings.get("defense.epsilon")
    )


def complete(run: PlannedRun, root: epath.PathLike, preset: Preset) -> bool:
    """Whether everything was measured that the experiments of a finished run need."""
    needed = _needed(run, root, preset).values()
    return all(file.exists() for files in needed for file in files)


def failures(run: PlannedRun, root: epath.PathLike) -> dict[str, str]:
    """Measurements of a run that failed in the latest attempt, with the reason by name."""
    file = run.folder(root) / _FOLDER / FAILED
    if not file.exists():
        return {}
    return read(file, {str: str})


def attacks_file(run: PlannedRun, root: epath.PathLike, preset: Preset) -> epath.Path:
    """Path of a run's accuracy under attack; the outcomes are beside it, see ``bits_file``."""
    return run.folder(root) / _FOLDER / f"attacks-{key(dict(preset.attack))}.json"


def bits_file(file: epath.Path) -> epath.Path:
    """Path of the outcomes that belong to a file of accuracies, for ``robustness.load``."""
    return file.parent / f"{file.name.removesuffix('.json')}.npz"


def attacks(
    run: PlannedRun,
    root: epath.PathLike,
    preset: Preset,
    stop: StopSignals,
    programs: Programs | None = None,
) -> dict[str, Any]:
    """Accuracy under every attack but "pgd" at every epsilon of the preset.

    Arguments and errors are those of ``measure``.

    Returns:
        ``{"examples", "clean", "rows": [{"attack", "epsilon", "accuracy", "examples"}, ...],
        "checks"}``: epsilons in 1/255, accuracies in [0, 1] over that many examples, and the sanity
        checks as dicts.
    """
    attack = preset.attack
    settings = robustness.Settings(
        attacks=("noise", "fgsm", "pgd2", "targeted", "square", "strong"),
        epsilons=tuple(attack["epsilons"]),
        batch_size=run.config.batch_size,
        strong_examples=attack["strong_examples"],
        targeted={"steps": attack["steps"], "targets": attack["targets"]},
        square={"queries": attack["queries"]},
        strong={"steps": attack["steps"], "restarts": attack["restarts"]},
    )
    file = attacks_file(run, root, preset)
    return _attacked(file, run, root, preset, settings, stop, programs)


def attacked_checkpoints(
    run: PlannedRun,
    root: epath.PathLike,
    preset: Preset,
    stop: StopSignals,
    programs: Programs | None = None,
) -> Rows:
    """Accuracy under FGSM and PGD-2 of every checkpoint that the run has kept, for claim 4e.

    Each checkpoint's numbers are stored once, so a call that is stopped resumes. Arguments and
    errors are those of ``measure``; of the preset's attacks, only epsilons and examples matter.

    Returns:
        Rows of ``{"step", "clean", "attack", "epsilon", "accuracy", "examples"}``, by step; "clean"
        is the step's accuracy on the same examples without an attack.
    """
    attack = preset.attack
    settings = robustness.Settings(
        attacks=("fgsm", "pgd2"),
        epsilons=tuple(attack["epsilons"]),
        batch_size=run.config.batch_size,
    )
    programs = programs or Programs()
    rows: Rows = []
    for step in loading.kept_steps(run.folder(root)):
        file = checkpoint_file(run, root, preset, step)
        found = _attacked(file, run, root, preset, settings, stop, programs, step)
        rows += [{"step": step, "clean": found["clean"], **row} for row in found["rows"]]
    return rows


def checkpoint_file(run: PlannedRun, root: epath.PathLike, preset: Preset, step: int) -> epath.Path:
    """Path of the accuracy under attack of a run's checkpoint; see ``attacked_checkpoints``."""
    how = key(preset.attack["epsilons"], preset.attack["examples"])
    return run.folder(root) / _FOLDER / f"step-{step}-{how}.json"


def _attacked(
    file: epath.Path,
    run: PlannedRun,
    root: epath.PathLike,
    preset: Preset,
    settings: robustness.Settings,
    stop: StopSignals,
    programs: Programs | None,
    step: int | None = None,
) -> dict[str, Any]:
    """Measures a run, or its checkpoint of a step, unless both files are there."""

    def compute() -> dict[str, Any]:
        trained = loading.load(run.folder(root), step=step)
        data = eval_loop.open_split(trained, "test").arrays(preset.attack["examples"])
        curves = robustness.measure(
            trained.model,
            trained.variables,
            data,
            settings,
            track=lambda items, total, what: progress.track(
                _stoppable(items, stop), total, f"{run.name}: {what}", every=_SECONDS
            ),
            programs=programs,
        )
        bits.write(bits_file(file), curves)
        return {
            "examples": curves.examples,
            "clean": float(curves.clean),
            "rows": report.rows(curves),
            "checks": [check._asdict() for check in sanity.checks(curves)],
        }

    if file.exists() and not bits_file(file).exists():
        file.unlink()
    return kept(file, compute)


def _stoppable(items: Iterable[Any], stop: StopSignals) -> Iterator[Any]:
    for item in items:
        if stop.signalled:
            raise Preempted("stopped during a measurement, which will start over")
        yield item


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
    return run.folder(root) / _FOLDER / f"layers-{key()}.json"


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
    return run.folder(root) / _FOLDER / f"bank-{key()}.json"


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
