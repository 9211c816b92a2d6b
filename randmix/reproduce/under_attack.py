"""Accuracy under attack of trained runs and of their checkpoints, stored in files beside them.

runs/NAME/measurements/attacks-KEY.json    accuracy under attack and sanity checks (E6, E7)
runs/NAME/measurements/attacks-KEY.npz     the outcome for each image, see ``robustness.load``
runs/NAME/measurements/fgsm-KEY.json, .npz FGSM alone, likewise (of experiments in Preset.radii)
runs/NAME/measurements/step-S-KEY.json     FGSM on the checkpoint of step S (claim 4e)
runs/NAME/measurements/step-S-KEY.npz      the outcome for each image, likewise
runs/NAME/measurements/steps-KEY.json      the steps of all checkpoints, once they are measured
"""

import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
from etils import epath

from randmix.analysis import robustness
from randmix.analysis.robustness import bits, report, sanity
from randmix.experiments import measured
from randmix.experiments.plan import PlannedRun
from randmix.reproduce.presets import Preset
from randmix.runtime import progress
from randmix.runtime.preemption import Preempted, StopSignals
from randmix.training import evaluation, loading
from randmix.training.compiled import Programs
from randmix.workdir import artifacts

_SECONDS = 60  # between two lines on the progress


def keeps_its_way(run: PlannedRun) -> bool:
    """Whether checkpoints of a run are attacked as well: an undefended one of E6 that keeps some.

    Two are kept in any case.
    """
    return (
        "E6" in run.experiments
        and run.settings.get("keep_checkpoints", 2) > 2
        and not run.settings.get("defense.epsilon")
    )


def attacks_name(preset: Preset) -> str:
    """Name of the measurement of accuracy under attack; its arrays are the outcomes."""
    return f"attacks-{measured.key(dict(preset.attack))}"


def fgsm_name(preset: Preset) -> str:
    """Name of the measurement of accuracy under FGSM alone."""
    return f"fgsm-{_how(preset)}"


def step_name(preset: Preset, step: int) -> str:
    """Name of the measurement of a checkpoint; see ``attacked_checkpoints``."""
    return f"step-{step}-{_how(preset)}"


def steps_name(preset: Preset) -> str:
    """Name of the list of a run's checkpoints, which is kept once all of them are measured."""
    return f"steps-{_how(preset)}"


def _how(preset: Preset) -> str:
    return measured.key(preset.attack["epsilons"], preset.attack["examples"])


def attacks(
    run: PlannedRun,
    root: epath.PathLike,
    preset: Preset,
    stop: StopSignals,
    programs: Programs | None = None,
    *,
    only_fgsm: bool = False,
) -> dict[str, Any]:
    """Accuracy under every attack but "pgd" at every epsilon of the preset.

    The other arguments and the errors are those of ``measurements.measure``.

    Args:
        only_fgsm: attack by FGSM alone, for which only the preset's epsilons and examples matter.

    Returns:
        ``{"examples", "clean", "rows": [{"attack", "epsilon", "accuracy", "examples"}, ...],
        "checks", "seconds", "device", "cores"}``: epsilons in 1/255, accuracies in [0, 1] over that
        many examples, the sanity checks as dicts, and what the measurement took on which machine.
    """
    if only_fgsm:
        settings = _only_fgsm(run, preset)
        return _attacked(fgsm_name(preset), run, root, preset, settings, stop, programs)
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
    return _attacked(attacks_name(preset), run, root, preset, settings, stop, programs)


def _only_fgsm(run: PlannedRun, preset: Preset) -> robustness.Settings:
    return robustness.Settings(
        attacks=("fgsm",),
        epsilons=tuple(preset.attack["epsilons"]),
        batch_size=run.config.batch_size,
    )


def attacked_checkpoints(
    run: PlannedRun,
    root: epath.PathLike,
    preset: Preset,
    stop: StopSignals,
    programs: Programs | None = None,
) -> None:
    """Accuracy under FGSM of every checkpoint that the run has kept, for claim 4e.

    PGD-2 would take four times as long, and no claim asks for it at checkpoints. Each checkpoint's
    numbers are stored once, so a call that is stopped resumes. Arguments and errors are those of
    ``measurements.measure``; of the preset's attacks, only epsilons and examples matter.
    """
    settings, programs = _only_fgsm(run, preset), programs or Programs()
    steps = loading.kept_steps(run.folder(root))
    for step in steps:
        name = step_name(preset, step)
        _attacked(name, run, root, preset, settings, stop, programs, step)
    measured.kept(measured.path(run.folder(root), steps_name(preset)), lambda: steps)


def _attacked(
    name: str,
    run: PlannedRun,
    root: epath.PathLike,
    preset: Preset,
    settings: robustness.Settings,
    stop: StopSignals,
    programs: Programs | None,
    step: int | None = None,
) -> dict[str, Any]:
    """Measures a run, or its checkpoint of a step, unless both files are there."""

    file = measured.path(run.folder(root), name)
    bits_file = measured.arrays_path(file)

    def compute() -> dict[str, Any]:
        began = time.monotonic()
        trained = loading.load(run.folder(root), step=step)
        data = evaluation.open_split(trained, "test").arrays(preset.attack["examples"])
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
        bits.write(bits_file, curves)
        return {
            "examples": curves.examples,
            "clean": float(curves.clean),
            "rows": report.rows(curves),
            "checks": [check._asdict() for check in sanity.checks(curves)],
            "seconds": round(time.monotonic() - began, 2),
            **artifacts.machine(jax.devices()),
        }

    if file.exists() and not bits_file.exists():
        file.unlink()
    return measured.kept(file, compute)


def _stoppable(items: Iterable[Any], stop: StopSignals) -> Iterator[Any]:
    for item in items:
        if stop.signalled:
            raise Preempted("stopped during a measurement, which will start over")
        yield item
