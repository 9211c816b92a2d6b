"""What is measured on trained runs and on random banks, kept in files so that a second call only reads.

    runs/NAME/measurements/attacks-KEY.json    accuracy under attack, and whether to believe it (E6, E7)
    runs/NAME/measurements/layers-KEY.json     coverage of each layer, with pictures (E9)
    pictures/...                               what is drawn of several runs or of none (E1, E7, E8, E10)

KEY is a hash of how it was measured: measured otherwise, it's measured anew beside the old one. A measurement that fails is
written to the run's measurements/failed.json and passed over.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from randmix import artifacts, eval_loop, plots, robustness, runs, spectrum, unshuffle
from randmix.compiled import Programs
from randmix.preemption import Preempted, StopSignals
from randmix.reproduce.plan import PlannedRun
from randmix.reproduce.presets import Preset
from randmix.robustness import sanity
from randmix.spectrum import figures as spectra

FAILED = "failed.json"
_FOLDER = "measurements"
# Changed whenever the meaning of what is kept changes.
_VERSION = 1


def key(*how: Any) -> str:
    """Eight hex digits of how something is measured."""
    text = json.dumps([_VERSION, *how], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def kept(file: epath.Path, compute: Callable[[], Any]) -> Any:
    """What a JSON file holds, computed and written where it doesn't exist."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        artifacts.write_atomically(file, json.dumps(compute(), indent=1) + "\n")
    return json.loads(file.read_text())


def measure(
    run: PlannedRun,
    root: epath.PathLike,
    preset: Preset,
    stop: StopSignals,
    programs: Programs | None = None,
) -> None:
    """Measures what the experiments of a finished run ask for.

    Args:
        run: which.
        root: the sweep's folder.
        preset: how it is attacked.
        stop: asked meanwhile.
        programs: the same for runs that differ only in their seed.

    Raises:
        Preempted: a signal came; what was finished is kept.
    """
    failures = {}
    for name, needed_by, function in (
        ("accuracy under attack", {"E6", "E7"}, lambda: attacks(run, root, preset, stop, programs)),
        ("spectrum of each layer", {"E9"}, lambda: layers(run, root)),
    ):
        if not needed_by & set(run.experiments):
            continue
        try:
            function()
        except Preempted:
            raise
        except Exception as error:  # the others may still succeed; the report names it
            failures[name] = f"{type(error).__name__}: {error}"
    file = run.folder(root) / _FOLDER / FAILED
    if failures:
        file.parent.mkdir(parents=True, exist_ok=True)
        artifacts.write_atomically(file, json.dumps(failures) + "\n")
    elif file.exists():
        file.unlink()


def failures(run: PlannedRun, root: epath.PathLike) -> dict[str, str]:
    """The measurements of a run that failed at last, and why."""
    file = run.folder(root) / _FOLDER / FAILED
    return json.loads(file.read_text()) if file.exists() else {}


def attack_settings(preset: Preset, batch_size: int) -> robustness.Settings:
    """How E6 and E7 attack."""
    attack = preset.attack
    return robustness.Settings(
        attacks=("noise", "fgsm", "pgd2", "strong"),
        epsilons=tuple(attack["epsilons"]),
        batch_size=batch_size,
        strong={"steps": attack["steps"], "restarts": attack["restarts"]},
    )


def attacks_file(run: PlannedRun, root: epath.PathLike, preset: Preset) -> epath.Path:
    """Where a run's accuracy under attack is kept."""
    return run.folder(root) / _FOLDER / f"attacks-{key(dict(preset.attack))}.json"


def attacks(
    run: PlannedRun,
    root: epath.PathLike,
    preset: Preset,
    stop: StopSignals,
    programs: Programs | None = None,
) -> dict[str, Any]:
    """Accuracy under noise, FGSM, PGD-2 and the strong attack at every epsilon of the preset, and the sanity checks.

    Returns:
        ``{"examples": ..., "clean": ..., "rows": [{"attack", "epsilon", "accuracy"}], "checks": [...]}``.
    """

    def compute() -> dict[str, Any]:
        trained = runs.load(run.folder(root))
        data = eval_loop.open_split(trained, "test").arrays(preset.attack["examples"])
        settings = attack_settings(preset, trained.config.batch_size)
        curves = robustness.measure(
            trained.model,
            trained.variables,
            data,
            settings,
            track=lambda items, *_: _stoppable(items, stop),
            programs=programs,
        )
        rows = [
            {"attack": name, "epsilon": epsilon, "accuracy": float(accuracy)}
            for name in settings.attacks
            for epsilon, accuracy in zip(settings.epsilons, curves.accuracy(name), strict=True)
        ]
        checks = [check._asdict() for check in sanity.checks(curves)]
        return {
            "examples": curves.examples,
            "clean": float(curves.clean),
            "rows": rows,
            "checks": checks,
        }

    return kept(attacks_file(run, root, preset), compute)


def _stoppable(items: Iterable[Any], stop: StopSignals) -> Iterator[Any]:
    for item in items:
        if stop.signalled:
            raise Preempted("stopped during a measurement, which starts anew")
        yield item


def layers(run: PlannedRun, root: epath.PathLike) -> list[dict[str, Any]]:
    """Coverage of each layer's filters; and beside it the pictures envelopes and filters."""
    folder = run.folder(root) / _FOLDER

    def compute() -> list[dict[str, Any]]:
        pictures = spectra.layers(spectrum.layers(runs.load(run.folder(root)).variables))
        for name, picture in pictures.items():
            plots.save(picture.figure, folder / name, picture.rows)
        return [dict(row) for row in pictures["envelopes"].rows]

    return kept(folder / f"layers-{key()}.json", compute)


def layer_pictures(run: PlannedRun, root: epath.PathLike) -> dict[str, epath.Path]:
    """The files that `layers` draws, without suffix, by name."""
    return {name: run.folder(root) / _FOLDER / name for name in ("envelopes", "filters")}


def random_banks(root: epath.PathLike, preset: Preset) -> tuple[list[dict[str, Any]], epath.Path]:
    """E1: coverage of random banks by size and seed, and where the picture is."""
    banks = preset.banks
    file = epath.Path(root) / "pictures" / f"random-{key(dict(banks))}.json"

    def compute() -> list[dict[str, Any]]:
        picture = spectra.random_banks(
            banks["counts"], kernel_size=banks["kernel_size"], seeds=range(banks["seeds"])
        )["random"]
        plots.save(picture.figure, _bare(file), picture.rows)
        return [dict(row) for row in picture.rows]

    return kept(file, compute), _bare(file)


def smoothed_filters(
    run: PlannedRun, root: epath.PathLike, preset: Preset
) -> tuple[list[dict[str, Any]], dict[str, epath.Path]]:
    """E7 and E8: the frozen random filters of a Chans run at three smoothing indices, measured and drawn.

    Smoothing is what the bank "smoothed" does to the same random numbers, so that these are the filters that the
    smoothed runs of the same seed were trained with.
    """
    file = epath.Path(root) / "pictures" / f"smoothing-{key(run.name, preset.shown)}.json"

    def compute() -> list[dict[str, Any]]:
        kernels = [*spectrum.layers(runs.load(run.folder(root)).variables).values()]
        pictures = spectra.smoothing(kernels, preset.shown)
        for name, picture in pictures.items():
            plots.save(
                picture.figure, _bare(file).parent / f"{_bare(file).name}-{name}", picture.rows
            )
        return [dict(row) for row in pictures["smoothing"].rows]

    rows = kept(file, compute)
    names = ("smoothing", "smoothing_profile")
    return rows, {name: _bare(file).parent / f"{_bare(file).name}-{name}" for name in names}


def reconstructions(group: Sequence[PlannedRun], root: epath.PathLike) -> epath.Path:
    """E10: truth, shuffled image, and what each run gives back, in one picture; returns where it is."""
    file = (
        epath.Path(root) / "pictures" / f"reconstructions-{key([run.name for run in group])}.json"
    )

    def compute() -> list[str]:
        folders = [run.folder(root) for run in group]
        rows = unshuffle.reconstructions(folders, examples=8)
        plots.save(unshuffle.figure(rows), _bare(file))
        return [run.name for run in group]

    kept(file, compute)
    return _bare(file)


def _bare(file: epath.Path) -> epath.Path:
    return file.parent / file.name.removesuffix(".json")


def provenance(results: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The devices and versions that runs were trained with, each once."""
    found: dict[str, set[str]] = {"device": set(), "versions": set()}
    for result in results:
        device = result["device"]
        found["device"].add(f"{device['count']} x {device['kind']} ({device['platform']})")
        found["versions"].add(
            ", ".join(f"{name} {value}" for name, value in result["versions"].items())
        )
    return {name: sorted(values) for name, values in found.items()}
