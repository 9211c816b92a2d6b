"""``python -m randmix spectrum``."""

import math
from collections.abc import Callable
from typing import Any

from absl import flags

from randmix.commands import Command, shared
from randmix.errors import UserError

HELP = """
    python -m randmix spectrum --workdir=runs/a
    python -m randmix spectrum --random=1,4,16,64,256
    python -m randmix spectrum --workdir=runs/a --smoothing=0,2,4
    python -m randmix spectrum --random=128 --smoothing=0,2,4
    python -m randmix spectrum --folders=runs/s0,runs/s2 --attack=fgsm

Give one of --workdir, --random and --folders; with --smoothing, --random takes one size.

The envelope of a bank is the largest magnitude, over its filters, of the Fourier transform of each
filter padded to 512 x 512. Its coverage is the share of frequencies at which it exceeds half of its
maximum; mean_coverage averages that share over all thresholds; effective_coverage is the share that
a flat envelope of the same mean and energy would occupy, the steadiest of the three; mean_frequency
is the mean frequency, weighted by the envelope's energy, in cycles per pixel. The filters of one
channel, or in a layer with one filter per channel all of them, are a bank: rank is the number of
singular values above 1 % of the largest, and bank_coverage the effective coverage, both averaged
over banks.

--workdir plots the envelope and a sample of the depthwise filters of each layer, with a table
(envelopes.png, .svg, .csv; filters.png, .svg). --random plots envelopes by bank size, and coverage
against bank size over several seeds (random.png, .svg, .csv). --smoothing plots the filters and
envelopes of one bank at several smoothing indices (smoothing.png, .svg, .csv), and the envelopes
against the distance from frequency zero (smoothing_profile.png, .svg, .csv); with --workdir the
bank holds the filters of all layers.

--folders plots what smoothing gains under attack: the relative gain in accuracy over the baseline
against the smoothing index, one line per epsilon, and the clean accuracy (smoothing.png, .svg,
.csv). Each folder holds what python -m randmix evaluate --attacks wrote: of runs trained with
smoothed filters, or of one run whose filters were smoothed after training (evaluate --smoothing=2).
Exactly one folder must have smoothing index 0, the baseline.

Exit status: 0 done, 2 a mistake in the command.
"""

_MOST_FILTERS = 1_000_000
# What --workdir, --random and --folders have to themselves.
_SOURCES = {"workdir": (), "random": ("kernel_size", "seed", "seeds"), "folders": ("attack",)}


def define_flags() -> None:
    """Defines the flags of the command."""
    shared.workdir("Folder of the run whose filters are plotted.")
    flags.DEFINE_list("random", None, "Sizes of random banks, for example 1,4,16,64,256.")
    flags.DEFINE_list("smoothing", None, "Smoothing indices, 0 or more, for example 0,2,4.")
    flags.DEFINE_integer(
        "kernel_size",
        8,
        "With --random: side of the filters, in pixels.",
        lower_bound=1,
    )
    shared.seed(0, "With --random: the first seed.")
    shared.seeds(5, "With --random: number of seeds.")
    flags.DEFINE_list("folders", None, "Folders of attacked runs, one per smoothing index.")
    flags.DEFINE_string(
        "attack", "fgsm", "With --folders: the attack, which must have been measured."
    )
    shared.out(
        None,
        "The folder to write to. Default: WORKDIR/spectrum, runs/spectrum, or with --folders "
        "runs/smoothing.",
    )


def prepare(options: Any) -> None:
    """Checks which flags go together, makes numbers of words and sets the default folder."""
    given = options.given.intersection(_SOURCES)
    if len(given) != 1:
        raise UserError(
            "give one of --workdir=RUN, --random=1,4,16,64,256 and --folders=RUN,RUN; see --help"
        )
    (source,) = given
    for other, names in _SOURCES.items():
        for name in names:
            if other != source and name in options.given:
                raise UserError(f"--{name} applies to --{other} only, got --{source}")
    out = {"workdir": f"{options.workdir}/spectrum", "folders": "runs/smoothing"}
    options.out = options.out or out.get(source, "runs/spectrum")
    options.smoothing = _numbers(
        "smoothing", options.smoothing, float, "numbers from 0", lambda index: 0 <= index < math.inf
    )
    counts = f"whole numbers from 1 to {_MOST_FILTERS:,}"
    options.random = _numbers(
        "random", options.random, int, counts, lambda count: 1 <= count <= _MOST_FILTERS
    )
    if source == "random":
        _check_seeds(options)
    if source == "folders":
        _check_folders(options)


def _check_seeds(options: Any) -> None:
    if options.smoothing is not None and (len(options.random) > 1 or "seeds" in options.given):
        raise UserError(
            "--smoothing plots one bank of one seed: give --random a single size, and no --seeds"
        )
    most = shared.LARGEST_SEED + 1 - options.seed
    if options.smoothing is None and options.seeds > most:
        raise UserError(
            f"--seeds: got {options.seeds} from --seed={options.seed} on, allowed up to {most}, "
            f"since the largest seed is {shared.LARGEST_SEED}"
        )


def _check_folders(options: Any) -> None:
    if options.smoothing is not None:
        raise UserError("--smoothing smooths the filters of --workdir or --random, got --folders")
    if len(options.folders) < 2:
        raise UserError(
            f"--folders: got {len(options.folders)}, allowed two or more; "
            "for example --folders=runs/s0,runs/s2"
        )


def _numbers(
    name: str,
    words: list[str] | None,
    number: type,
    allowed: str,
    ok: Callable[[float], bool],
) -> list | None:
    """Returns the numbers given to a flag, or None if the flag is absent."""
    if words is None:
        return None
    mistake = UserError(f"--{name}={','.join(words)}: allowed are {allowed}, separated by commas")
    try:
        numbers = [number(word) for word in words]
    except ValueError as error:
        raise mistake from error
    if not numbers or not all(map(ok, numbers)):
        raise mistake
    return numbers


COMMAND = Command(HELP, "randmix.analysis.spectrum.command", define_flags, prepare=prepare)
