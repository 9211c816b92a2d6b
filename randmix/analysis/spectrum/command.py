"""The work of ``python -m randmix spectrum``."""

from typing import Any

import jax
import numpy as np
from etils import epath

from randmix import ranges
from randmix.analysis import plots, smoothing
from randmix.analysis.spectrum import figures
from randmix.analysis.spectrum.envelopes import SIZE
from randmix.analysis.spectrum.variables import layers
from randmix.models import filters
from randmix.training import loading


def main(options: Any) -> None:
    """Writes the figures of ``commands/spectrum.py``'s options and prints their files."""
    if options.folders:
        files = smoothing.draw(options.folders, options.attack, options.out)
    else:
        out = epath.Path(options.out)
        files = [
            file
            for name, picture in _pictures(options).items()
            for file in plots.save(picture.figure, out / name, picture.rows)
        ]
    for file in files:
        print(file)


def _pictures(options: Any) -> dict[str, figures.Picture]:
    """Returns the pictures of a run's filters or of random ones, by the names of their files."""
    if options.workdir:
        kernels = layers(loading.load(options.workdir).variables)
        if options.smoothing is None:
            return figures.layers(kernels)
        return figures.smoothing([*kernels.values()], options.smoothing)
    k = options.kernel_size
    ranges.check("--kernel_size", k, ranges.integers(1, SIZE))
    if options.smoothing is None:
        seeds = range(options.seed, options.seed + options.seeds)
        return figures.random_banks(options.random, kernel_size=k, seeds=seeds)
    bank = filters.random(jax.random.key(options.seed), (k, k, options.random[0]))
    return figures.smoothing([np.asarray(bank)], options.smoothing)
