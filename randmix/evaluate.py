"""The work of ``python -m randmix evaluate``: a run on a full split, clean or under attack."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from randmix import attacks, ranges
from randmix.analysis import robustness, spectrum
from randmix.analysis.robustness import report
from randmix.data import feeds
from randmix.errors import UserError, check_choice
from randmix.runtime import distributed, progress
from randmix.training import evaluation, loading, runs


def main(options: Any) -> None:
    """Evaluates a workdir with the options of ``commands/evaluate.py``."""
    arguments = None if options.attacks is None else _attack_flags(options)
    distributed.start(
        options.coordinator,
        options.num_processes,
        options.process_id,
        heartbeat_timeout=options.heartbeat_timeout,
        saves_when_stopped=False,
    )
    with distributed.shared_errors():
        runs.read_config(options.workdir)
    # Outside shared_errors: in it, the processes wait for each other.
    run = loading.load(options.workdir, best=options.best, step=options.step, ema=options.ema)
    with distributed.shared_errors():
        split = evaluation.open_split(
            run,
            options.split,
            name=options.data,
            data_dir=options.data_dir,
            force=options.force,
        )
    got, total = split.examples(options.examples), split.examples()
    step = run.step if options.best else options.step
    out = options.workdir if step is None else f"{options.workdir}/step_{step}"
    if options.ema:
        out = f"{out}/ema"
    if options.smoothing:
        run = dataclasses.replace(
            run, variables=spectrum.smooth_filters(run.variables, options.smoothing)
        )
        out = f"{out}/smoothing_{options.smoothing:g}"
    about = {
        "workdir": options.workdir,
        "step": run.step,
        **({"weights": "average"} if run.ema else {}),
        "data": f"{split.data_set.name}, {options.split}",
        "examples": f"all {total:,}" if got == total else f"the first {got:,} of {total:,}",
    }
    batch_size = options.batch_size or run.config.batch_size // run.config.accumulate
    if arguments is not None or options.smoothing:
        # The composition of two Gaussians is a Gaussian whose variance is the sum.
        own = run.config.model.get("smoothing_index", 0.0)
        about["smoothing_index"] = math.hypot(own, options.smoothing)
    if arguments is None:
        metrics = evaluation.evaluate_run(
            run, split, batch_size=batch_size, examples=options.examples
        )
        _count_skipped(about, split)
        print(progress.table([{**about, **progress.metrics_row(metrics)}]))
    else:
        images = split.arrays(options.examples)
        _count_skipped(about, split)
        _attack(run, images, about, {**arguments, "batch_size": batch_size}, options.out or out)


def _count_skipped(about: dict[str, Any], split: feeds.Split) -> None:
    """Notes how many damaged records were left out, if any were."""
    if skipped := distributed.union(split.skipped):
        about["skipped"] = f"{len(skipped):,}"


def _attack(
    run: loading.Run,
    data: dict[str, np.ndarray],
    about: Mapping[str, Any],
    arguments: Mapping[str, Any],
    folder: str,
) -> None:
    """Measures, writes and prints the accuracy under attack."""
    if not runs.build_task(run.config, run.model, data["image"].shape[1:]).has_accuracy:
        raise UserError(
            f"{about['workdir']}: a run with the task {run.config.task!r}, allowed under attack "
            "are runs with the task 'classification'; leave --attacks out"
        )
    print("  ".join(f"{name}: {value}" for name, value in about.items()), flush=True)
    with distributed.shared_errors():
        if distributed.is_primary():
            report.require_writable(folder)  # before hours of work, not after
    settings = robustness.Settings(**arguments)
    curves = robustness.measure(run.model, run.variables, data, settings, track=progress.track)
    if not distributed.is_primary():
        return
    files = report.write(curves, folder, about)
    print(report.text(curves))
    print("wrote", ", ".join(map(str, files)))


def _attack_flags(options: Any) -> dict[str, Any]:
    """Checks the attacks' flags and returns them as arguments of ``robustness.Settings``."""
    names = [name.strip() for name in options.attacks if name.strip()]
    if not names:
        raise UserError(f"--attacks is empty; allowed are {', '.join(attacks.ATTACKS)}")
    for name in names:
        check_choice("--attacks", name, attacks.ATTACKS)
    check_choice("--norm", options.norm, attacks.NORMS)
    if "square" in names:
        attacks.require_linf(options.norm)
    return {
        "attacks": tuple(name for name in attacks.ATTACKS if name in (*names, "noise")),
        "epsilons": _epsilons(options.epsilons, options.norm),
        "norm": options.norm,
        "seed": options.seed,
        "strong_examples": options.strong_examples,
        "pgd": {
            name: getattr(options, f"pgd_{name}")
            for name in ("steps", "step_size", "random_start", "restarts")
        },
        "targeted": {"steps": options.targeted_steps, "targets": options.targeted_classes},
        "square": {"queries": options.square_queries},
        "strong": {name: getattr(options, f"strong_{name}") for name in ("steps", "restarts")},
    }


def _epsilons(words: list[str], norm: str) -> tuple[float, ...]:
    """Parses the radii, sorted and without duplicates."""
    if not any(word.strip() for word in words):
        raise UserError("--epsilons is empty; give some, for example --epsilons=0,2,8")
    allowed = ranges.numbers(0, 255 if norm == "linf" else ranges.FLOAT32, unit=" (in 1/255)")
    epsilons = set()
    for word in words:
        try:
            epsilon = float(word)
        except ValueError:
            epsilon = -1.0
        if epsilon not in allowed:
            raise UserError(f"--epsilons: got {word!r}, allowed are numbers, {allowed}")
        epsilons.add(epsilon)
    return tuple(sorted(epsilons))
