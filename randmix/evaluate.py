"""Evaluates a trained workdir on a full split, clean or under attack.

    python -m randmix.evaluate --workdir=runs/a
    python -m randmix.evaluate --workdir=runs/a --attacks=fgsm,pgd2
    python -m randmix.evaluate --workdir=runs/a --attacks=strong --epsilons=0,2,8 --examples=500
    python -m randmix.evaluate --workdir=runs/converted --data=cifar10

Without --attacks, prints the metrics of the latest checkpoint over every example of the split and
writes nothing. With --attacks, measures the accuracy at each epsilon (in 1/255, on pixels in
[0, 1]) and writes to --out

    attacks.csv         attack, epsilon, accuracy
    attacks.png, .svg   the curves
    attacks.json        the settings, and the verdicts of the sanity checks, which are also printed

Attacks:
    noise    moves each pixel up or down by epsilon at random; the control, always included
    fgsm     one step of size epsilon along the sign of the gradient
    pgd2     the paper's PGD-2: two such steps from the clean image, projected onto the ball
    pgd      projected gradient descent, configured by the --pgd_* flags
    strong   many steps and restarts on two losses; counts the worst result, other attacks included

--data names another data set, whose images and classes must be those that the run was trained on;
--force accepts other class names and another image size.

--smoothing=2 first smooths the run's spatial filters, and writes to a separate folder;
randmix.analysis.smoothing plots the effect of smoothing.

FGSM and PGD-2 measure sensitivity; robustness is the accuracy that remains under the strong attack.
That attack takes about 2 * steps * restarts passes through the model per example and epsilon, so
limit it with --examples.

On several hosts, start the same command on each, as with randmix.main: they share the work.

Exit status: 0 done, 2 a mistake in the command.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from absl import flags

from randmix import ranges
from randmix.errors import UserError, check_choice
from randmix.runtime import cli, distributed, host

if TYPE_CHECKING:
    import numpy as np

    from randmix.training.loading import Run

_RANGES = {
    "strong_steps": ranges.integers(1, ranges.INT32),
    "strong_restarts": ranges.integers(1, ranges.INT32),
    "pgd_steps": ranges.integers(1, ranges.INT32),
    "pgd_step_size": ranges.numbers(above=0),
    "pgd_restarts": ranges.integers(1, ranges.INT32),
    "smoothing": ranges.CONFIG["model.smoothing_index"],
}
EPSILONS = ("0", "0.5", "1", "2", "4", "8", "16", "32", "64")


def define_flags() -> None:
    """Defines the command line's flags; not on import, so that other programs can import this."""
    flags.DEFINE_string("workdir", None, "The folder of a run or of converted weights.")
    flags.DEFINE_bool(
        "best", False, "Use the checkpoint that scored best on held-out examples, not the latest."
    )
    flags.DEFINE_string("split", "test", "The split to evaluate: test | train.")
    flags.DEFINE_string("data", None, "The data set to evaluate on. Default: the run's.")
    flags.DEFINE_bool(
        "force", False, "Evaluate even if the class names or the image size aren't the run's."
    )
    flags.DEFINE_string("data_dir", None, "The folder of TFDS's data sets. Default: the run's.")
    flags.DEFINE_integer(
        "examples",
        None,
        "Use only this many examples, from the start of the split. Default: all.",
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "batch_size",
        None,
        "Images per batch, over all devices. Default: the run's.",
        lower_bound=1,
    )
    flags.DEFINE_list(
        "attacks", None, "One or more of noise, fgsm, pgd2, pgd and strong. Default: none."
    )
    flags.DEFINE_list("epsilons", list(EPSILONS), "Radii of the ball, in 1/255.")
    flags.DEFINE_string("norm", "linf", "The norm of the ball: linf | l2.")
    flags.DEFINE_string("out", None, "The folder for the attacks' results. Default: the workdir.")
    flags.DEFINE_integer(
        "seed", 0, "Seed of the noise and of random starts.", lower_bound=0, upper_bound=2**32 - 1
    )
    flags.DEFINE_integer("strong_steps", 50, "Steps per restart of the strong attack.")
    flags.DEFINE_integer("strong_restarts", 10, "Restarts of the strong attack.")
    flags.DEFINE_integer("pgd_steps", 10, "Steps of the pgd attack.")
    flags.DEFINE_float(
        "pgd_step_size", 0.25, "Step size of the pgd attack, as a multiple of epsilon."
    )
    flags.DEFINE_bool(
        "pgd_random_start",
        True,
        "Start the pgd attack at a random point of the ball, not at the clean image.",
    )
    flags.DEFINE_integer("pgd_restarts", 1, "Restarts of the pgd attack; the worst counts.")
    flags.DEFINE_float(
        "smoothing",
        0.0,
        "Smooth the spatial filters by this index first; see randmix.models.filters.smooth.",
    )
    flags.DEFINE_bool("tune_host", True, "On a CPU, tune malloc and XLA as in randmix.main.")
    distributed.define_flags()


def main(argv: list[str]) -> None:
    """Evaluates the workdir that the command line names."""
    options = flags.FLAGS
    if options.tune_host:
        host.tune()
    # Only now import modules that import JAX.
    from randmix.analysis import spectrum
    from randmix.runtime import progress
    from randmix.training import evaluation as eval_loop
    from randmix.training import loading, runs

    if len(argv) > 1:
        raise UserError(f"got {argv[1]!r}, allowed are flags only; see --help")
    if not options.workdir:
        raise UserError("--workdir is missing; give one, for example --workdir=runs/a")
    for flag, allowed in _RANGES.items():
        ranges.check(f"--{flag}", getattr(options, flag), allowed)
    arguments = None if options.attacks is None else _attack_flags(options)
    distributed.start(saves_when_stopped=False)
    with distributed.shared_errors():
        runs.read_config(options.workdir)
    # Outside shared_errors: in it, the processes wait for each other.
    run = loading.load(options.workdir, best=options.best)
    with distributed.shared_errors():
        split = eval_loop.open_split(
            run,
            options.split,
            name=options.data,
            data_dir=options.data_dir,
            force=options.force,
        )
    got, total = split.examples(options.examples), split.examples()
    out = options.out or options.workdir
    if options.smoothing:
        run = dataclasses.replace(
            run, variables=spectrum.smooth_filters(run.variables, options.smoothing)
        )
        out = options.out or f"{options.workdir}/smoothing_{options.smoothing:g}"
    about = {
        "workdir": options.workdir,
        "step": run.step,
        "data": f"{split.data_set.name}, {options.split}",
        "examples": f"all {total:,}" if got == total else f"the first {got:,} of {total:,}",
    }
    batch_size = options.batch_size or run.config.batch_size
    if arguments is not None or options.smoothing:
        # The composition of two Gaussians is a Gaussian whose variance is the sum.
        about["smoothing_index"] = math.hypot(run.config.model.smoothing_index, options.smoothing)
    if arguments is None:
        metrics = eval_loop.evaluate_run(
            run, split, batch_size=batch_size, examples=options.examples
        )
        print(progress.table([{**about, **progress.metrics_row(metrics)}]))
    else:
        _attack(
            run, split.arrays(options.examples), about, {**arguments, "batch_size": batch_size}, out
        )


def _attack(
    run: "Run",
    data: "dict[str, np.ndarray]",
    about: Mapping[str, Any],
    arguments: Mapping[str, Any],
    folder: str,
) -> None:
    """Measures, writes and prints the accuracy under attack."""
    from randmix.analysis import robustness
    from randmix.analysis.robustness import report
    from randmix.runtime import progress
    from randmix.training import tasks

    if run.config.task != tasks.CLASSIFICATION.name:
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


def _attack_flags(options: flags.FlagValues) -> dict[str, Any]:
    """Checks the attacks' flags and returns them as arguments of ``robustness.Settings``."""
    from randmix import attacks

    names = [name.strip() for name in options.attacks if name.strip()]
    if not names:
        raise UserError(f"--attacks is empty; allowed are {', '.join(attacks.ATTACKS)}")
    for name in names:
        check_choice("--attacks", name, attacks.ATTACKS)
    check_choice("--norm", options.norm, attacks.NORMS)
    if options.pgd_restarts > 1 and not options.pgd_random_start:
        raise UserError(
            f"--pgd_restarts: got {options.pgd_restarts} without a random start, which would all "
            "end the same; allowed 1, or --pgd_random_start"
        )
    return {
        "attacks": tuple(name for name in attacks.ATTACKS if name in (*names, "noise")),
        "epsilons": _epsilons(options.epsilons, options.norm),
        "norm": options.norm,
        "seed": options.seed,
        "pgd": {
            name: options[f"pgd_{name}"].value
            for name in ("steps", "step_size", "random_start", "restarts")
        },
        "strong": {name: options[f"strong_{name}"].value for name in ("steps", "restarts")},
    }


def _epsilons(words: list[str], norm: str) -> tuple[float, ...]:
    """Parses the radii, sorted and without duplicates."""
    if not any(word.strip() for word in words):
        raise UserError(
            f"--epsilons is empty; give some, for example --epsilons={','.join(EPSILONS)}"
        )
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


if __name__ == "__main__":
    define_flags()
    cli.run(main)
