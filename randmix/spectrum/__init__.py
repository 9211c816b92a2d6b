"""Which frequencies a bank of filters covers: the paper's section 3.1, and figures 1, 8 and 9.

>>> import jax
>>> from randmix import filters, spectrum
>>> bank = filters.random(jax.random.key(0), (8, 8, 64))
>>> spectrum.coverage(spectrum.envelope(bank)) > spectrum.coverage(spectrum.envelope(bank[..., :1]))
True

The rooms, from below:

- `envelopes`: envelopes and their measures, on arrays.
- `variables`: the depthwise filters inside the variables of a model.
- `figures`: the pictures.
- `__main__`: ``python -m randmix.spectrum``.
"""

from randmix.spectrum.envelopes import (
    SIZE,
    THRESHOLD,
    coverage,
    envelope,
    mean_coverage,
    mean_frequency,
    radial_profile,
)
from randmix.spectrum.variables import layers, smooth_filters

__all__ = [
    "SIZE",
    "THRESHOLD",
    "coverage",
    "envelope",
    "layers",
    "mean_coverage",
    "mean_frequency",
    "radial_profile",
    "smooth_filters",
]
