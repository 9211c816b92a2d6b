"""What a frozen bank of filters restricts: how many directions it has, and which frequencies.

The filters that see the same input form a bank: the m filters of a channel in a kernel
[k, k, C, m], and in a kernel [k, k, C], with one filter a channel, all C filters of the layer.
Both measures here are means over the banks of a kernel, so that the two can be compared.
"""

import numpy as np
from numpy.typing import ArrayLike

from randmix.analysis.spectrum.envelopes import checked, effective_coverage, envelope

# Singular values up to this share of the largest count as zero.
RANK_THRESHOLD = 0.01

# A mean over frequencies needs fewer of them than a picture: for 3 x 3 filters the coverage differs
# from that at 512 by less than 0.001.
_SIZE = 128


def rank(kernels: ArrayLike, threshold: float = RANK_THRESHOLD) -> float:
    """Numerical rank of the banks of a kernel.

    Args:
        kernels: [k, k, C, m], C banks of m filters; [k, k, n], one bank of n filters; or [k, k].
        threshold: singular values of a bank, [k * k, m], count if they are larger than this share
            of the largest; in [0, 1).

    Returns:
        The mean over the banks of the number of singular values that count, at most m and k * k.

    Raises:
        UserError: there are no filters, or they aren't square, or hold NaN or infinity.

    >>> rank(np.ones((3, 3, 5)))
    1.0
    """
    return float(np.linalg.matrix_rank(_banks(kernels), rtol=threshold).mean())


def bank_coverage(kernels: ArrayLike, size: int | None = None) -> float:
    """Mean `effective_coverage` of the envelopes of the banks of a kernel.

    Args:
        kernels: [k, k, C, m], C banks of m filters; [k, k, n], one bank of n filters; or [k, k].
        size: filters are zero-padded to size x size; at least k. None for 128, or k if larger.

    Returns:
        A number in [0, 1].

    Raises:
        UserError: as `envelope` does.
    """
    k = np.shape(kernels)[0]
    size, banks = size or max(_SIZE, k), _banks(kernels)
    banks = banks.reshape(len(banks), k, k, -1)
    return float(np.mean([effective_coverage(envelope(bank, size)) for bank in banks]))


def _banks(kernels: ArrayLike) -> np.ndarray:
    """The banks [banks, k * k, filters] of a kernel in float64, or a UserError."""
    kernels = np.asarray(kernels)
    banks = kernels.shape[2] if kernels.ndim == 4 else 1
    filters = checked(kernels).reshape(len(kernels) ** 2, banks, -1)
    return np.moveaxis(filters.astype(np.float64), 1, 0)
