"""Spectral envelopes of filter banks, and what they are measured by (paper, section 3.1).

The envelope of a bank is the largest magnitude, over its filters, of the two-dimensional Fourier transform of each
filter padded with zeros to 512 x 512. The paper shows envelopes and gives no number for "coverage"; here are one
for a threshold and one for all thresholds at once. Frequencies are in cycles a pixel, from -0.5 up to 0.5.
"""

import numpy as np
from numpy.typing import ArrayLike

from randmix.errors import UserError

SIZE = 512  # the paper's padding

# Half of the largest magnitude, -6 dB. One random 8 x 8 filter has about a quarter of all frequencies above it, 64
# have nearly all; at 0.25 and at 0.7 one or the other end of figure 1 is flat.
THRESHOLD = 0.5

# How many numbers a chunk's spectra have: one plane of 512 x 257. Larger chunks were slower.
_CHUNK = 2**17


def envelope(kernels: ArrayLike, size: int = SIZE) -> np.ndarray:
    """The spectral envelope of a bank of filters.

    The envelope of two banks together is the maximum of theirs, and no frequency's value falls when filters are
    added. Filters are taken in small chunks: memory doesn't grow with the bank.

    Args:
        kernels: [k, k, ...], one filter for each of the trailing indices: a depthwise kernel [k, k, C] or
            [k, k, C, m], or one filter [k, k]. Any real dtype.
        size: filters are padded with zeros to size x size; at least k.

    Returns:
        [size, size] float32 from 0; rows are vertical frequencies and columns horizontal ones,
        (index - size // 2) / size cycles a pixel: frequency zero is at [size // 2, size // 2].

    Raises:
        UserError: no filters, filters that aren't square, are larger than ``size`` or hold NaN or infinity.

    >>> envelope([[1, 1], [1, 1]], size=4)[2]
    array([0.      , 2.828427, 4.      , 2.828427], dtype=float32)
    """
    bank = _checked(np.asarray(kernels), size)
    half = np.zeros((size, size // 2 + 1), np.float32)
    chunk = max(1, _CHUNK // half.size)
    for start in range(0, bank.shape[2], chunk):
        filters = np.moveaxis(bank[:, :, start : start + chunk], 2, 0).astype(np.float32)
        if not np.isfinite(filters).all():
            raise UserError(
                "filter bank: got weights that are NaN or infinite; allowed are finite numbers"
            )
        spectra = np.fft.rfft2(filters, (size, size))
        np.maximum(half, np.abs(spectra).max(axis=0), out=half)
    return _whole_plane(half)


def coverage(envelope: ArrayLike, threshold: float = THRESHOLD) -> float:
    """The share of frequencies at which an envelope is over ``threshold`` times its own maximum.

    Relative to its own maximum, since only the frequencies' weights among each other tell what a bank lets
    through: the next layer scales. So a filter that is added can also lower it, by a higher peak.

    Args:
        envelope: any array of values from 0.
        threshold: from 0 up to, but not including, 1.

    Returns:
        From 0 to 1: 1 for a flat envelope, 0 for a bank of zeros.

    Raises:
        UserError: another threshold.

    >>> coverage([4.0, 2.5, 1.0, 2.0])
    0.5
    """
    if not 0 <= threshold < 1:
        raise UserError(f"threshold: got {threshold!r}, allowed from 0 up to, but not including, 1")
    envelope = np.asarray(envelope)
    return float(np.mean(envelope > threshold * envelope.max()))


def mean_coverage(envelope: ArrayLike) -> float:
    """The coverage averaged over all thresholds from 0 to 1, which is the envelope's mean over its maximum.

    Returns:
        From 0 to 1: 1 for a flat envelope, 0 for a bank of zeros.

    >>> mean_coverage([4.0, 2.0, 0.0, 2.0])
    0.5
    """
    envelope = np.asarray(envelope, np.float64)
    peak = envelope.max()
    return float(envelope.mean() / peak) if peak else 0.0


def mean_frequency(envelope: ArrayLike) -> float:
    """The mean distance from frequency zero, weighted by the envelope's square: where its energy lies.

    Args:
        envelope: [size, size], as `envelope` gives it.

    Returns:
        Cycles a pixel, from 0 to 0.71; 0.38 for a flat envelope. 0 for a bank of zeros.
    """
    energy = np.square(np.asarray(envelope, np.float64))
    total = energy.sum()
    return float((energy * _radius(len(energy))).sum() / total) if total else 0.0


def radial_profile(envelope: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The mean of an envelope over rings around frequency zero, out to the corners of the plane.

    Args:
        envelope: [size, size], as `envelope` gives it.

    Returns:
        ``(frequencies, means)``, both [max(1, size // 8)] float64: the middle of each ring in cycles a pixel, and the
        mean there.
    """
    envelope = np.asarray(envelope, np.float64)
    size = len(envelope)
    edges = np.linspace(0, np.sqrt(0.5), max(1, size // 8) + 1)
    radius = _radius(size)
    sums, _ = np.histogram(radius, edges, weights=envelope)
    counts, _ = np.histogram(radius, edges)
    return (edges[:-1] + edges[1:]) / 2, sums / np.maximum(counts, 1)


def _checked(kernels: np.ndarray, size: int) -> np.ndarray:
    """The bank as [k, k, filters], or a UserError."""
    if kernels.ndim < 2 or kernels.shape[0] != kernels.shape[1]:
        raise UserError(
            f"filter bank: got shape {list(kernels.shape)}, allowed are square filters [k, k, ...]"
        )
    if not kernels.size:
        raise UserError(
            f"filter bank: got shape {list(kernels.shape)}, which has no filters; give one or more"
        )
    if kernels.shape[0] > size:
        raise UserError(
            f"filter bank: got filters {list(kernels.shape[:2])}, allowed up to size = {size}"
        )
    return kernels.reshape(*kernels.shape[:2], -1)


def _whole_plane(half: np.ndarray) -> np.ndarray:
    """The plane with frequency zero at its centre, of what ``rfft2`` keeps of it: [size, size // 2 + 1].

    A real filter's magnitudes at opposite frequencies are equal.
    """
    size = len(half)
    opposite = -np.arange(size)  # the row of the opposite vertical frequency
    others = half[opposite][:, 1 : (size + 1) // 2]
    return np.fft.fftshift(np.concatenate([half, others[:, ::-1]], axis=1))


def _radius(size: int) -> np.ndarray:
    """The distance of each frequency of the plane from frequency zero."""
    frequency = (np.arange(size) - size // 2) / size
    return np.hypot(frequency[:, None], frequency)
