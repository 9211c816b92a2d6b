"""Draws the filter banks for docs/models.md: ``python docs/images/banks.py``."""

from pathlib import Path

import jax
import numpy as np

from randmix.analysis import plots
from randmix.models import filters


@plots.style()
def figure():
    """The first nine 5 x 5 filters of a layer in each bank, relative to their largest weights."""
    figure = plots.new_figure(7, 1.15)
    for axes, name in zip(figure.subplots(1, len(filters.NAMES)), filters.NAMES, strict=True):
        kernel = np.asarray(filters.build(name)(jax.random.key(0), (5, 5, 9)))
        relative = np.moveaxis(kernel / np.abs(kernel).max((0, 1)), -1, 0)
        sheet = plots.tile(relative.reshape(3, 3, 5, 5))
        axes.imshow(sheet, cmap=plots.SIGNED_MAP, vmin=-1, vmax=1.4)
        axes.set(title=name, xticks=[], yticks=[])
        axes.grid(False)
        axes.spines[:].set_visible(False)
    return figure


if __name__ == "__main__":
    plots.save(figure(), Path(__file__).with_suffix(""))
