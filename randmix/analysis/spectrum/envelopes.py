"""Spectral envelopes of filter banks and the measures of their coverage (section 3.1).

The envelope of a bank is the largest magnitude, over its filters, of the two-dimensional Fourier
transform of each filter zero-padded to 512 x 512. The paper shows envelopes but defines no number
for "coverage"; this module defines one for a given threshold, one averaged over all thresholds, and
`effective_coverage`, which doesn't depend on the envelope's largest value.
Frequencies are in cycles per pixel, in [-0.5, 0.5).
"""

import numpy as np
from numpy.typing import ArrayLike

from randmix.errors import UserError

SIZE = 512  # the paper's padding

# Half of the largest magnitude, -6 dB. One random 8 x 8 filter exceeds it at about a quarter of all
# frequencies, 64 filters at nearly all; at 0.25 or 0.7 one end of figure 1 would be flat.
THRESHOLD = 0.5

# Spectral values per chunk; larger chunks were slower. A half plane of 512 x 257, slightly more, is
# a chunk of its own.
_CHUNK = 2**17


def envelope(kernels: ArrayLike, size: int = SIZE) -> np.ndarray:
    """Spectral envelope of a bank of filters.

    The envelope of the union of two banks is the maximum of their envelopes; adding filters lowers
    it at no frequency. Filters are processed in chunks, so memory doesn't grow with the bank.

    Args:
        kernels: [k, k, ...] of any real dtype, one filter for each of the trailing indices: a
            depthwise kernel [k, k, C] or [k, k, C, m], or a single filter [k, k].
        size: filters are zero-padded to size x size; at least k.

    Returns:
        [size, size] float32, at least 0. Rows are vertical and columns horizontal frequencies,
        (index - size // 2) / size cycles per pixel: frequency zero is at [size // 2, size // 2].

    Raises:
        UserError: there are no filters, or they aren't square, are larger than ``size``, or hold
            NaN or infinity.

    >>> envelope([[1, 1], [1, 1]], size=4)[2]
    array([0.      , 2.828427, 4.      , 2.828427], dtype=float32)
    """
    bank = checked(np.asarray(kernels))
    if len(bank) > size:
        raise UserError(
            f"filter bank: got filters {list(bank.shape[:2])}, allowed up to size = {size}"
        )
    half = np.zeros((size, size // 2 + 1), np.float32)
    chunk = max(1, _CHUNK // half.size)
    for start in range(0, bank.shape[2], chunk):
        filters = np.moveaxis(bank[:, :, start : start + chunk], 2, 0).astype(np.float32)
        spectra = np.fft.rfft2(filters, (size, size))
        np.maximum(half, np.abs(spectra).max(axis=0), out=half)
    return _whole_plane(half)


def coverage(envelope: ArrayLike, threshold: float = THRESHOLD) -> float:
    """Share of frequencies at which an envelope exceeds ``threshold`` times its own maximum.

    The measure is relative because the next layer rescales: only the proportions between
    frequencies say what a bank lets through. An added filter can therefore lower the coverage, by
    raising the peak.

    Args:
        envelope: an array of any shape, its values at least 0.
        threshold: in [0, 1).

    Returns:
        A number in [0, 1]: 1 for a flat envelope, 0 for a bank of zeros.

    Raises:
        UserError: the threshold is out of range.

    >>> coverage([4.0, 2.5, 1.0, 2.0])
    0.5
    """
    if not 0 <= threshold < 1:
        raise UserError(f"threshold: got {threshold!r}, allowed from 0 up to, but not including, 1")
    envelope = np.asarray(envelope)
    return float(np.mean(envelope > threshold * envelope.max()))


def mean_coverage(envelope: ArrayLike) -> float:
    """Coverage averaged over all thresholds from 0 to 1: the envelope's mean over its maximum.

    Args:
        envelope: an array of any shape, its values at least 0.

    Returns:
        A number in [0, 1]: 1 for a flat envelope, 0 for a bank of zeros.

    >>> mean_coverage([4.0, 2.0, 0.0, 2.0])
    0.5
    """
    envelope = np.asarray(envelope, np.float64)
    peak = envelope.max()
    return float(envelope.mean() / peak) if peak else 0.0


def effective_coverage(envelope: ArrayLike) -> float:
    """Share of frequencies that a flat envelope of the same mean and energy would occupy.

    It is the squared mean of the envelope over the mean of its square. An envelope of one value at
    a share of the frequencies and zero at the others has that share, whatever the value. `coverage`
    and `mean_coverage` divide by the largest value, a single frequency of the bank, and so vary
    several times as much between random banks of one kind.

    Args:
        envelope: an array of any shape, its values at least 0.

    Returns:
        A number in [0, 1]: 1 for a flat envelope, 0 for a bank of zeros.

    >>> effective_coverage([3.0, 3.0, 0.0, 0.0])
    0.5
    """
    envelope = np.asarray(envelope, np.float64)
    energy = np.square(envelope).mean()
    return float(envelope.mean() ** 2 / energy) if energy else 0.0


def mean_frequency(envelope: ArrayLike) -> float:
    """Mean distance from frequency zero, weighted by the envelope's energy (its square).

    Args:
        envelope: [size, size], as `envelope` returns it.

    Returns:
        Cycles per pixel, from 0 to 0.71; 0.38 for a flat envelope, 0 for a bank of zeros.
    """
    energy = np.square(np.asarray(envelope, np.float64))
    total = energy.sum()
    return float((energy * _radius(len(energy))).sum() / total) if total else 0.0


def radial_profile(envelope: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Mean of an envelope over rings around frequency zero, out to the corners of the plane.

    Args:
        envelope: [size, size], as `envelope` returns it.

    Returns:
        ``(frequencies, means)``, both [max(1, size // 8)] float64: the middle of each ring in
        cycles per pixel, and the mean over the ring.
    """
    envelope = np.asarray(envelope, np.float64)
    size = len(envelope)
    edges = np.linspace(0, np.sqrt(0.5), max(1, size // 8) + 1)
    radius = _radius(size)
    sums, _ = np.histogram(radius, edges, weights=envelope)
    counts, _ = np.histogram(radius, edges)
    return (edges[:-1] + edges[1:]) / 2, sums / np.maximum(counts, 1)


def checked(kernels: np.ndarray) -> np.ndarray:
    """Returns the bank as [k, k, filters]; raises a UserError if it is malformed."""
    if kernels.ndim < 2 or kernels.shape[0] != kernels.shape[1]:
        raise UserError(
            f"filter bank: got shape {list(kernels.shape)}, allowed are square filters [k, k, ...]"
        )
    if not kernels.size:
        raise UserError(
            f"filter bank: got shape {list(kernels.shape)}, allowed is at least one filter"
        )
    if not np.isfinite(kernels.astype(np.float32, copy=False)).all():
        raise UserError(
            "filter bank: got weights that are NaN or infinite; allowed are finite numbers"
        )
    return kernels.reshape(*kernels.shape[:2], -1)


def _whole_plane(half: np.ndarray) -> np.ndarray:
    """Expands ``rfft2``'s half plane [size, size // 2 + 1], with frequency zero at the centre.

    The magnitudes of a real filter are equal at opposite frequencies.
    """
    size = len(half)
    opposite = -np.arange(size)  # the row of the opposite vertical frequency
    others = half[opposite][:, 1 : (size + 1) // 2]
    return np.fft.fftshift(np.concatenate([half, others[:, ::-1]], axis=1))


def _radius(size: int) -> np.ndarray:
    """Distance of each frequency of the plane from frequency zero, [size, size]."""
    frequency = (np.arange(size) - size // 2) / size
    return np.hypot(frequency[:, None], frequency)
