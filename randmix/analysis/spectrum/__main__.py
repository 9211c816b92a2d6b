"""Plots which frequencies filters cover, of a trained run or of random banks.

    python -m randmix.analysis.spectrum --workdir=runs/a
    python -m randmix.analysis.spectrum --random=1,4,16,64,256
    python -m randmix.analysis.spectrum --workdir=runs/a --smoothing=0,2,4
    python -m randmix.analysis.spectrum --random=128 --smoothing=0,2,4

The envelope of a bank is the largest magnitude, over its filters, of the Fourier transform of each
filter padded to 512 x 512. Its coverage is the share of frequencies at which it exceeds half of its
maximum; mean_coverage averages that share over all thresholds; mean_frequency is the mean
frequency, weighted by the envelope's energy, in cycles per pixel.

--workdir plots the envelope and a sample of the depthwise filters of each layer, with a table
(envelopes.png, .svg, .csv; filters.png, .svg). --random plots envelopes by bank size, and coverage
against bank size over several seeds (random.png, .svg, .csv). --smoothing plots the filters and
envelopes of one bank at several smoothing indices (smoothing.png, .svg, .csv), and the envelopes
against the distance from frequency zero (smoothing_profile.png, .svg, .csv); with --workdir the
bank holds the filters of all layers.

Exit status: 0 done, 2 a usage error.
"""

import math
from collections.abc import Callable

import jax
import numpy as np
from absl import flags
from etils import epath

from randmix.analysis import plots
from randmix.analysis.spectrum import figures
from randmix.analysis.spectrum.envelopes import SIZE
from randmix.analysis.spectrum.variables import layers
from randmix.errors import UserError
from randmix.models import filters
from randmix.runtime import cli
from randmix.training import loading

_RANDOM_ONLY = ("kernel_size", "seed", "seeds")
_MOST_FILTERS = 1_000_000


def define_flags() -> None:
    """Defines the command-line flags."""
    flags.DEFINE_string("workdir", None, "Folder of the run whose filters are plotted.")
    flags.DEFINE_list("random", None, "Sizes of random banks, for example 1,4,16,64,256.")
    flags.DEFINE_list("smoothing", None, "Smoothing indices, 0 or more, for example 0,2,4.")
    flags.DEFINE_string(
        "out", None, "Folder to write to. Default: WORKDIR/spectrum, or runs/spectrum."
    )
    flags.DEFINE_integer(
        "kernel_size",
        8,
        "With --random: side of the filters, in pixels.",
        lower_bound=1,
        upper_bound=SIZE,
    )
    flags.DEFINE_integer(
        "seed", 0, "With --random: the first seed.", lower_bound=0, upper_bound=2**32 - 1
    )
    flags.DEFINE_integer(
        "seeds", 5, "With --random: number of seeds.", lower_bound=1, upper_bound=1000
    )


def main(argv: list[str]) -> None:
    """Writes the figures that the command line asks for and prints their files."""
    options = flags.FLAGS
    if len(argv) > 1:
        raise UserError(f"got {argv[1]!r}, allowed are flags only; see --help")
    if (options.workdir is None) == (options.random is None):
        raise UserError("give either --workdir=RUN or --random=1,4,16,64,256; see --help")
    out = options.out or (
        epath.Path(options.workdir) / "spectrum" if options.workdir else "runs/spectrum"
    )
    for name, picture in _pictures().items():
        for file in plots.save(picture.figure, epath.Path(out) / name, picture.rows):
            print(file)


def _pictures() -> dict[str, figures.Picture]:
    options = flags.FLAGS
    indices = _numbers("smoothing", float, "numbers from 0", lambda index: 0 <= index < math.inf)
    allowed = f"whole numbers from 1 to {_MOST_FILTERS:,}"
    counts = _numbers("random", int, allowed, lambda count: 1 <= count <= _MOST_FILTERS)
    if counts is None:
        if given := [name for name in _RANDOM_ONLY if flags.FLAGS[name].present]:
            raise UserError(
                f"--{given[0]} applies to --random only; the filters of --workdir are fixed"
            )
        kernels = layers(loading.load(options.workdir).variables)
        return (
            figures.layers(kernels)
            if indices is None
            else figures.smoothing([*kernels.values()], indices)
        )
    k = options.kernel_size
    if indices is None:
        seeds = range(options.seed, options.seed + options.seeds)
        if seeds[-1] >= 2**32:
            raise UserError(
                f"--seeds: got {options.seeds} from --seed={options.seed} on, allowed up to "
                f"{2**32 - options.seed}, since the largest seed is 4294967295"
            )
        return figures.random_banks(counts, kernel_size=k, seeds=seeds)
    if len(counts) > 1 or flags.FLAGS["seeds"].present:
        raise UserError(
            "--smoothing plots one bank of one seed: give --random a single size, and no --seeds"
        )
    bank = filters.random(jax.random.key(options.seed), (k, k, counts[0]))
    return figures.smoothing([np.asarray(bank)], indices)


def _numbers(name: str, number: type, allowed: str, ok: Callable[[float], bool]) -> list | None:
    """Returns the numbers given to a flag, or None if the flag is absent."""
    words = flags.FLAGS[name].value
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


if __name__ == "__main__":
    define_flags()
    cli.run(main)
