"""Filter banks: initial values of depthwise filters, whether learned or frozen.

A bank is an initialiser ``bank(key, shape, dtype) -> kernel`` for a depthwise kernel of shape
[k, k, C] or [k, k, C, m]. Figure 3 of the paper (experiment E3) compares ``random`` ("Different"),
``same``, ``box`` and ``identity``; the others come from the sources that their docstrings name.

The filters that see the same input compete to describe it, and so form one bank: the m filters of a
channel in [k, k, C, m], and in [k, k, C], with one filter per channel, all C filters of the layer.
With a rank, a bank has that many different filters, repeated in turn. They are orthogonal, so its
numerical rank is exact, and they are repeated, not mixed, because a mixture of impulses isn't an
impulse: the spectrum of ``delta`` stays flat at every rank.

Except for the paper's ``box`` and ``identity``, every filter has or averages `NORM`.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from randmix.errors import UserError
from randmix.models.parameters import uniform_fan_in

Array = jax.Array
Bank = Callable[..., Array]

# Root mean square of the L2 norms of the filters of `random`, uniform in +-1 / k.
NORM = 1 / math.sqrt(3)

# Pixels over which the weights of `gaussian` are correlated.
CORRELATION_LENGTH = 1.0


def random(
    key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32, *, rank: int | None = None
) -> Array:
    """Independent filters, uniform in +-1 / k: PyTorch's default, where fan_in is k^2.

    With a rank they are drawn so, and then made orthogonal within a bank and of norm `NORM`. Nine
    independent filters of 3 x 3 would have a numerical rank of 8 in one of seven draws: their
    least singular value is then below 1 % of the largest.
    """
    k = side(shape)
    if rank is None:
        return uniform_fan_in(k * k)(key, shape, dtype)
    banks, size = _banks(shape)
    drawn = jax.random.uniform(key, (banks, k * k, rank), jnp.float32, -1, 1)
    directions, factors = jnp.linalg.qr(drawn)
    # QR fixes the signs of its columns; these are those of the draw.
    directions *= jnp.sign(jnp.diagonal(factors, axis1=-2, axis2=-1))[:, None, :]
    turns = np.arange(size) % rank
    return (NORM * directions[:, :, turns].transpose(1, 0, 2)).reshape(shape).astype(dtype)


def same(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    """One set of m filters (one filter for [k, k, C]), drawn as in `random`, for all channels."""
    k = side(shape)
    return jnp.broadcast_to(random(key, (k, k, 1, *shape[3:]), dtype), shape)


def box(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    """Filters that average their k x k window: 1 / k^2 everywhere."""
    k = side(shape)
    return jnp.full(shape, 1 / (k * k), dtype)


def identity(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    """Filters that pass their channel unchanged under 'same' padding.

    They are 1 at row and column (k - 1) // 2, where that padding centres a filter, and 0 elsewhere.
    """
    centre = (side(shape) - 1) // 2
    return jnp.zeros(shape, dtype).at[centre, centre].set(1)


def delta(
    key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32, *, rank: int | None = None
) -> Array:
    """Impulses: each filter shifts its channel by a few pixels, and its spectrum is flat.

    The pixels of a bank are drawn without replacement; where it has more than k^2 filters, they
    come again in the same order. Shifts in place of filters are those of Wu et al., "Shift",
    arXiv 1711.08141.
    """
    k = side(shape)
    banks, size = _banks(shape)
    order = jnp.argsort(jax.random.uniform(key, (banks, k * k)), axis=1)
    pixels = order[:, np.arange(size) % (rank or size) % (k * k)]
    return (NORM * jax.nn.one_hot(pixels, k * k, axis=0)).reshape(shape).astype(dtype)


def dct(
    key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32, *, rank: int | None = None
) -> Array:
    """The basis of the two-dimensional DCT-II (Ahmed et al., 1974), the lowest frequencies first.

    The order is that of JPEG's zigzag. A layer's filters, channel by channel, take the k^2 basis
    functions in turn, so that with m = k^2 each channel has all of them. The key isn't used.
    """
    return _in_turn(_cosines(side(shape)), shape, dtype, rank)


def gaussian(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    """Normally distributed filters whose neighbouring weights are correlated.

    The covariance of two weights at distance d is NORM^2 / k^2 exp(-d^2 / (2 l^2)) with
    l = `CORRELATION_LENGTH`, a stationary kernel and a product over rows and columns: A Z A^T has
    it, if Z is white and A A^T is the covariance along one axis. After Trockman et al.,
    "Understanding the Covariance Structure of Convolutional Filters", arXiv 2210.03651, who sample
    filters from a covariance in closed form; this simpler form is ours.
    """
    k = side(shape)
    white = jax.random.normal(key, shape, jnp.float32)
    root = jnp.asarray(_root_of_covariance(k), jnp.float32)
    filters = jnp.einsum(
        "ia,jb,ab...->ij...", root, root, white, precision=jax.lax.Precision.HIGHEST
    )
    return (NORM / k * filters).astype(dtype)


def gaussian8(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    """Eight fixed filters, taken in turn: a Gaussian and its derivatives.

    They are the products of a Gaussian's derivatives of orders 0, 1 and 2 along rows and columns,
    without the pair (2, 2), in rising total order. Its standard deviation is k / 5 pixels. The
    choice is ours, after arXiv 2509.11711, which trains ImageNet models with eight fixed filters.
    The key isn't used.

    Raises:
        UserError: 1 x 1 filters, which have no derivatives.
    """
    k = side(shape)
    if k == 1:
        raise UserError("filters: got 'gaussian8' for 1 x 1 filters, allowed from 2 x 2 on")
    return _in_turn(_derivatives(k), shape, dtype)


def side(shape: tuple[int, ...]) -> int:
    """Returns the side k of square filters [k, k, ...]."""
    if len(shape) < 3 or shape[0] != shape[1]:
        raise ValueError(f"filters must be [k, k, C] or [k, k, C, m], got {list(shape)}")
    return shape[0]


def largest_rank(shape: tuple[int, ...]) -> int:
    """The largest rank of a bank of a layer: the number of its filters, or of their pixels."""
    return min(_banks(shape)[1], shape[0] * shape[1])


def _banks(shape: tuple[int, ...]) -> tuple[int, int]:
    """Returns the number of a layer's banks, and of the filters in each."""
    return (shape[2], shape[3]) if len(shape) == 4 else (1, shape[2])


def _in_turn(
    filters: np.ndarray, shape: tuple[int, ...], dtype: jnp.dtype, rank: int | None = None
) -> Array:
    """Deals filters [k * k, count] to a layer in turn, each bank ``rank`` different ones."""
    banks, size = _banks(shape)
    different = rank or size
    turns = np.arange(banks)[:, None] * different + np.arange(size) % different
    chosen = NORM * filters[:, turns % filters.shape[1]]
    return jnp.asarray(chosen, jnp.float32).reshape(shape).astype(dtype)


@functools.cache
def _cosines(k: int) -> np.ndarray:
    """The orthonormal 2D DCT-II basis [k * k, k * k], one function per column, in zigzag order."""
    wave = np.cos(np.pi * np.arange(k)[:, None] * (np.arange(k) + 0.5) / k)
    wave /= np.linalg.norm(wave, axis=1, keepdims=True)
    # Along the diagonals of equal u + v, alternately downwards and upwards.
    order = sorted(np.ndindex(k, k), key=lambda uv: (sum(uv), uv[0] if sum(uv) % 2 else uv[1]))
    return np.stack([np.outer(wave[u], wave[v]).ravel() for u, v in order], axis=1)


@functools.cache
def _root_of_covariance(k: int) -> np.ndarray:
    """The symmetric root [k, k] of the covariance of `gaussian` along one axis."""
    distance = np.subtract.outer(np.arange(k), np.arange(k))
    values, vectors = np.linalg.eigh(np.exp(-((distance / CORRELATION_LENGTH) ** 2) / 2))
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


@functools.cache
def _derivatives(k: int) -> np.ndarray:
    """The filters of `gaussian8`, [k * k, 8], of norm 1."""
    x = (np.arange(k) - (k - 1) / 2) / (k / 5)
    orders = np.stack([np.ones(k), -x, x**2 - 1]) * np.exp(-(x**2) / 2)
    pairs = sorted(((a, b) for a, b in np.ndindex(3, 3) if a + b < 4), key=sum)
    filters = np.stack([np.outer(orders[a], orders[b]).ravel() for a, b in pairs], axis=1)
    return filters / np.linalg.norm(filters, axis=0)
