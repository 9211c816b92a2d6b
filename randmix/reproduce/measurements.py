"""Measurements of trained runs and random banks, stored in files so that each is made only once.

    runs/NAME/measurements/attacks-..., step-...   accuracy under attack, see ``under_attack``
    runs/NAME/measurements/layers-KEY.json, .npz   measures and filters of each layer (E7 to E9)
    runs/NAME/measurements/bank-KEY.json           rank and coverage of banks (E3, E14)
    runs/NAME/measurements/reconstructions-...     restored images, of seed 0 (E10)
    pictures/...                                   pictures, drawn from records

A failed measurement is recorded in the run's measurements/failed.json and skipped.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from randmix.analysis import plots, spectrum, unshuffle
from randmix.analysis.equivalence import equivalence as figure_of_equivalence
from randmix.analysis.spectrum import figures as spectra
from randmix.analysis.spectrum.figures import Picture
from randmix.errors import UserError, writing
from randmix.experiments import measured
from randmix.experiments.plan import PlannedRun
from randmix.experiments.records import Record
from randmix.reproduce import under_attack
from randmix.reproduce.presets import Preset
from randmix.runtime import durable
from randmix.runtime.preemption import Preempted, StopSignals
from randmix.training import loading
from randmix.training.compiled import Programs

Rows = list[dict[str, Any]]
LAYERS = f"layers-{measured.key()}"
BANK = f"bank-{measured.key()}"
_EXAMPLES = 8  # images of a picture of reconstructions
RECONSTRUCTIONS = f"reconstructions-{measured.key(_EXAMPLES)}"


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
        "accuracy under FGSM": lambda: under_attack.attacks(
            run, root, preset, stop, programs, only_fgsm=True
        ),
        "accuracy under attack of checkpoints": lambda: under_attack.attacked_checkpoints(
            run, root, preset, stop, programs
        ),
        "spectrum of each layer": lambda: layers(run, root),
        "rank of the filters": lambda: bank(run, root),
        "reconstructions": lambda: reconstructions(run, root),
    }
    for name in _needed(run, preset):
        try:
            work[name]()
        except Preempted:
            raise
        except Exception as error:  # the others may still succeed, and the report names this one
            failures[name] = f"{type(error).__name__}: {error}"
    file = run.folder(root) / measured.FOLDER / measured.FAILED
    if failures:
        said = "; ".join(f"{name} failed ({reason})" for name, reason in failures.items())
        with writing(file, f"{said}; make room, and start the same command again"):
            durable.make_folder(file.parent)
            durable.write(file, json.dumps(failures) + "\n")
    elif file.exists():
        file.unlink()


def _needed(run: PlannedRun, preset: Preset) -> dict[str, str]:
    """What the experiments of a run need, and the name of the last file of each measurement."""
    names: dict[str, str] = {}
    own = set(run.experiments)
    if {"E6", "E7"} & own:
        names["accuracy under attack"] = under_attack.attacks_name(preset)
    elif own & {*preset.radii}:
        names["accuracy under FGSM"] = under_attack.fgsm_name(preset)
    if under_attack.keeps_its_way(run):
        names["accuracy under attack of checkpoints"] = under_attack.steps_name(preset)
    smoothed = run.settings.get("model.smoothing_index")
    source = "E14" in own and run.settings["mode"] == "full"
    if source or "E9" in own or ({"E7", "E8"} & own and not smoothed):
        names["spectrum of each layer"] = LAYERS
    frozen = "E14" in own and run.config.mode == "chans"
    if frozen or ("E3" in own and run.settings.get("model.filter_rank")):
        names["rank of the filters"] = BANK
    if "E10" in own and run.config.seed == 0:
        names["reconstructions"] = RECONSTRUCTIONS
    return names


def complete(run: PlannedRun, record: Record, preset: Preset) -> bool:
    """Whether everything was measured that the experiments of a finished run need."""
    return record.measurements.keys() >= {*_needed(run, preset).values()}


def failures(run: PlannedRun, root: epath.PathLike) -> dict[str, str]:
    """Measurements of a run that failed in the latest attempt, with the reason by name."""
    file = run.folder(root) / measured.FOLDER / measured.FAILED
    return measured.read(file, {str: str}) if file.exists() else {}


def _kept_pictures(
    file: epath.Path, bare: Mapping[str, epath.Path], draw: Callable[[], Mapping[str, Picture]]
) -> Rows:
    """Rows of the first picture, kept in a file; the pictures are saved without suffix at bare."""

    def compute() -> Rows:
        pictures = draw()
        for name, path in bare.items():
            plots.save(pictures[name].figure, path, pictures[name].rows)
        return [dict(row) for row in pictures[next(iter(bare))].rows]

    return measured.kept(file, compute)


def layers(run: PlannedRun, root: epath.PathLike) -> Rows:
    """E9: measures of each layer's filters, which are kept with them."""
    file = measured.path(run.folder(root), LAYERS)

    def compute() -> Rows:
        kernels = spectrum.layers(loading.load(run.folder(root)).variables)
        measured.write_arrays(measured.arrays_path(file), kernels)
        return spectra.measures(kernels)

    return measured.kept(file, compute)


def pictures_of_layers(record: Record, root: epath.PathLike) -> dict[str, epath.Path]:
    """E9: the paths without suffix of the pictures "envelopes" and "filters" of a run."""
    file = _picture(root, f"layers-{record.name}")
    bare = {name: _bare(file, f"-{name}") for name in ("envelopes", "filters")}
    _kept_pictures(file, bare, lambda: spectra.layers(kernels(record)))
    return bare


def kernels(record: Record) -> dict[str, np.ndarray]:
    """The filters of a run whose layers were measured, by layer, in the order of its layers.

    Raises:
        UserError: they aren't beside its record.
    """
    arrays = record.arrays(LAYERS)
    if not arrays:
        raise UserError(f"run {record.name}: the arrays of its record are missing; copy them, too")
    return {row["layer"]: arrays[row["layer"]] for row in record.measurements[LAYERS]}


def bank(run: PlannedRun, root: epath.PathLike) -> dict[str, float]:
    """E3 and E14: rank and coverage of the banks of a run's filters, means over its layers."""

    def compute() -> dict[str, float]:
        kernels = [*spectrum.layers(loading.load(run.folder(root)).variables).values()]
        measures = {"rank": spectrum.rank, "coverage": spectrum.bank_coverage}
        return {
            name: sum(map(measure, kernels)) / len(kernels) for name, measure in measures.items()
        }

    return measured.kept(measured.path(run.folder(root), BANK), compute)


def random_banks(root: epath.PathLike, preset: Preset) -> tuple[Rows, epath.Path]:
    """E1: coverage of random banks by size and seed, and the picture's path without suffix."""
    banks = preset.banks
    file = _picture(root, f"random-{measured.key(dict(banks))}")

    def draw() -> dict[str, Picture]:
        return spectra.random_banks(
            banks["counts"], kernel_size=banks["kernel_size"], seeds=range(banks["seeds"])
        )

    return _kept_pictures(file, {"random": _bare(file)}, draw), _bare(file)


def smoothed_filters(
    record: Record, root: epath.PathLike, preset: Preset
) -> tuple[Rows, dict[str, epath.Path]]:
    """E7 and E8: frozen random filters of a Chans run, smoothed at the preset's three indices.

    A run with a smoothing index applies the same smoothing to the same random numbers, so these are
    the filters with which the smoothed runs of that seed were trained.

    Returns:
        Rows of measures, one per index, and the paths without suffix of the pictures "smoothing"
        and "smoothing_profile", by name.
    """
    file = _picture(root, f"smoothing-{measured.key(record.name, preset.shown)}")
    bare = {name: _bare(file, f"-{name}") for name in ("smoothing", "smoothing_profile")}

    def draw() -> dict[str, Picture]:
        return spectra.smoothing([*kernels(record).values()], preset.shown)

    return _kept_pictures(file, bare, draw), bare


def equivalence(root: epath.PathLike) -> epath.Path:
    """E3: what each bank of frozen filters can express; the path without suffix of the picture."""
    file = _picture(root, f"equivalence-{measured.key()}")
    bare = {"equivalence": _bare(file)}
    _kept_pictures(file, bare, figure_of_equivalence)
    return _bare(file)


def reconstructions(run: PlannedRun, root: epath.PathLike) -> Rows:
    """E10: the first test images, as they are, shuffled, and restored, which are kept as arrays.

    Returns:
        Rows of ``{"label"}``; those of baselines also have their name, "baseline", and
        "mean_psnr", None for an exact one.
    """
    file = measured.path(run.folder(root), RECONSTRUCTIONS)

    def compute() -> Rows:
        rows = unshuffle.reconstructions([run.folder(root)], examples=_EXAMPLES)
        arrays = {f"images_{i}": row.images.astype(np.float16) for i, row in enumerate(rows)}
        arrays |= {f"psnr_{i}": row.psnr for i, row in enumerate(rows) if row.psnr is not None}
        measured.write_arrays(measured.arrays_path(file), arrays)
        return [{"label": row.label, **_of_baseline(row)} for row in rows]

    return measured.kept(file, compute)


def _of_baseline(row: unshuffle.Row) -> dict[str, Any]:
    if row.mean_psnr is None:
        return {}
    exact = not math.isfinite(row.mean_psnr)
    return {"baseline": row.source, "mean_psnr": None if exact else row.mean_psnr}


def picture_of_reconstructions(records: Sequence[Record], root: epath.PathLike) -> epath.Path:
    """E10: the images, what precedes the runs, and each run's reconstructions in one picture.

    Args:
        records: runs of one model and data set, with their reconstructions.
        root: the sweep's folder.

    Returns:
        The picture's path without suffix.
    """
    names = [record.name for record in records]
    file = _picture(root, f"reconstructions-{measured.key(names)}")

    def compute() -> list[str]:
        rows = [_restored(record) for record in records]
        shown = [*rows[0][:-1], *(own[-1] for own in rows)]
        plots.save(unshuffle.figure(shown), _bare(file))
        return names

    measured.kept(file, compute)
    return _bare(file)


def _restored(record: Record) -> list[unshuffle.Row]:
    arrays = record.arrays(RECONSTRUCTIONS)
    return [
        unshuffle.Row(row["label"], arrays[f"images_{i}"], arrays.get(f"psnr_{i}"))
        for i, row in enumerate(record.measurements[RECONSTRUCTIONS])
    ]


def _picture(root: epath.PathLike, name: str) -> epath.Path:
    return epath.Path(root) / "pictures" / f"{name}.json"


def _bare(file: epath.Path, ending: str = "") -> epath.Path:
    return file.parent / f"{file.name.removesuffix('.json')}{ending}"
