"""Banks of random filters, and their envelopes in float64."""

import jax
import numpy as np

from randmix.models import filters


def bank(shape, seed=0):
    return np.asarray(filters.random(jax.random.key(seed), shape))


def reference(kernels, size):
    """The definition in float64, on the full plane of every filter."""
    singles = np.moveaxis(np.reshape(kernels, (*kernels.shape[:2], -1)), 2, 0).astype(np.float64)
    return np.fft.fftshift(abs(np.fft.fft2(singles, (size, size))).max(axis=0))
