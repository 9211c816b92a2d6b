"""``python -m randmix evaluate``."""

from typing import Any

from absl import flags

from randmix import ranges
from randmix.commands import Command, shared
from randmix.errors import UserError

HELP = """
    python -m randmix evaluate --workdir=runs/a
    python -m randmix evaluate --workdir=runs/a --attacks=fgsm,pgd2
    python -m randmix evaluate --workdir=runs/a --attacks=strong --epsilons=0,2,8 --examples=500
    python -m randmix evaluate --workdir=runs/converted --data=cifar10

Without --attacks, prints the metrics of the latest checkpoint (with --best, of the best one) over
every example of the split and writes nothing. With --attacks, measures the accuracy at each epsilon
(in 1/255, on pixels in [0, 1]) and writes to --out

    attacks.csv         attack, epsilon, accuracy, number of examples
    attacks.png, .svg   the curves
    attacks.npz         whether each image is still classified correctly, at each epsilon
    attacks.json        the settings, and the verdicts of the sanity checks, which are also printed

Attacks:
    noise    moves each pixel up or down by epsilon at random; the control, always included
    fgsm     one step of size epsilon along the sign of the gradient
    pgd2     the paper's PGD-2: two such steps from the clean image, projected onto the ball
    pgd      projected gradient descent, configured by the --pgd_* flags
    targeted projected gradient descent towards each of the likeliest wrong classes in turn
    square   the Square Attack: random search that sees the logits alone, never a gradient
    strong   many steps and restarts on two losses; an example counts as right only if no attack
             that is measured changes that

--data names another data set. Its image size and classes must be those of the run's own data set;
--force accepts other class names and another image size.

--step=200 evaluates another checkpoint than the latest; config.keep_checkpoints says how many a run
keeps. With --attacks, the results then go to WORKDIR/step_200.

--ema evaluates the moving average of the weights, of a run with config.ema. With --attacks, the
results then go to WORKDIR/ema.

--smoothing=2 first smooths the run's spatial filters; with --attacks, the results then go to
WORKDIR/smoothing_2, and python -m randmix spectrum --folders plots the effect of smoothing.

FGSM and PGD-2 measure sensitivity; robustness is the accuracy that remains under the strong attack.
That attack takes about 2 * steps * restarts passes through the model per example and epsilon, so
it, targeted, square and noise attack only the first --strong_examples. A model hides its gradients
if square or targeted fools examples that the other attacks don't; a check then fails.

On several hosts, start the same command on each, as in training: they share the work.

Exit status: 0 done, 2 a mistake in the command.
"""

_RANGES = {
    "strong_examples": ranges.integers(1, ranges.INT32),
    "strong_steps": ranges.integers(1, ranges.INT32),
    "strong_restarts": ranges.integers(1, ranges.INT32),
    "pgd_steps": ranges.integers(1, ranges.INT32),
    "pgd_step_size": ranges.numbers(above=0),
    "pgd_restarts": ranges.integers(1, ranges.INT32),
    "targeted_steps": ranges.integers(1, ranges.INT32),
    "targeted_classes": ranges.integers(1, ranges.INT32),
    "square_queries": ranges.integers(1, ranges.INT32),
    "smoothing": ranges.CONFIG["model.smoothing_index"],
}


def define_flags() -> None:
    """Defines the flags of the command."""
    shared.workdir("The folder of a run or of converted weights.")
    flags.DEFINE_bool(
        "best", False, "Use the checkpoint that scored best on held-out examples, not the latest."
    )
    flags.DEFINE_integer(
        "step", None, "Use the checkpoint of this step, not the latest.", lower_bound=1
    )
    flags.DEFINE_bool("ema", False, "Use the moving average of the weights.")
    flags.DEFINE_string("split", "test", "The split to evaluate: test | train.")
    flags.DEFINE_string("data", None, "The data set to evaluate on. Default: the run's.")
    flags.DEFINE_bool(
        "force", False, "Evaluate even if the class names or the image size aren't the run's."
    )
    shared.data_dir("the run's")
    shared.examples(None, "Use only this many examples, from the start of the split. Default: all.")
    flags.DEFINE_integer(
        "batch_size",
        None,
        "Images per batch, over all devices. Default: the run's.",
        lower_bound=1,
    )
    flags.DEFINE_list(
        "attacks",
        None,
        "One or more of noise, fgsm, pgd2, pgd, targeted, square and strong. Default: none.",
    )
    flags.DEFINE_list("epsilons", "0,0.5,1,2,4,8,16,32,64", "Radii of the ball, in 1/255.")
    flags.DEFINE_string("norm", "linf", "The norm of the ball: linf | l2.")
    shared.out(
        None,
        "The folder for the attacks' results. Default: the workdir, or in it step_N with --best or "
        "--step, ema with --ema, smoothing_I with --smoothing.",
    )
    shared.seed(0, "Seed of the noise and of random starts.")
    flags.DEFINE_integer(
        "strong_examples", 500, "Examples for the attacks strong, square, targeted and noise."
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
    flags.DEFINE_integer("targeted_steps", 20, "Steps of the targeted attack for each class.")
    flags.DEFINE_integer("targeted_classes", 9, "Wrong classes that the targeted attack tries.")
    flags.DEFINE_integer("square_queries", 1000, "Queries of the square attack.")
    flags.DEFINE_float("smoothing", 0.0, "Smooth the spatial filters by this index first.")
    shared.host_settings()
    shared.processes()


def prepare(options: Any) -> None:
    """Checks the numbers and makes the host settings."""
    shared.require(options, "workdir", "runs/a")
    if options.best and options.step is not None:
        raise UserError(
            "--step: got one with --best, which names another checkpoint; leave one out"
        )
    for flag, allowed in _RANGES.items():
        ranges.check(f"--{flag}", getattr(options, flag), allowed)
    if options.attacks is not None and options.pgd_restarts > 1 and not options.pgd_random_start:
        raise UserError(
            f"--pgd_restarts: got {options.pgd_restarts} without a random start, which would all "
            "end the same; allowed 1, or --pgd_random_start"
        )
    shared.check_processes(options)
    shared.tune_host(options)
    shared.keep_compiled(options)


COMMAND = Command(HELP, "randmix.evaluate", define_flags, prepare=prepare)
