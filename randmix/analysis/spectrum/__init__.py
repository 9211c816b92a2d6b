"""Spectral coverage of filter banks: section 3.1 of the paper and its figures 1, 8 and 9.

>>> import jax
>>> from randmix.models import filters
>>> from randmix.analysis import spectrum
>>> bank = filters.random(jax.random.key(0), (8, 8, 64))
>>> spectrum.coverage(spectrum.envelope(bank)) > spectrum.coverage(spectrum.envelope(bank[..., :1]))
True

Modules, from the bottom up:

- `envelopes`: spectral envelopes of arrays of filters, and their measures.
- `restriction`: rank and coverage of the banks of a layer.
- `variables`: the depthwise filters among a model's variables.
- `figures`: the figures.
- `command`: the work of ``python -m randmix spectrum``.
"""

from randmix.analysis.spectrum.envelopes import (
    coverage,
    effective_coverage,
    envelope,
    mean_coverage,
    mean_frequency,
    radial_profile,
)
from randmix.analysis.spectrum.restriction import bank_coverage, rank
from randmix.analysis.spectrum.variables import layers, smooth_filters

__all__ = [
    "bank_coverage",
    "coverage",
    "effective_coverage",
    "envelope",
    "layers",
    "mean_coverage",
    "mean_frequency",
    "radial_profile",
    "rank",
    "smooth_filters",
]
