"""Filter banks: initial values of spatial filters, whether learned or frozen.

A bank is an initialiser ``bank(key, shape, dtype) -> kernel`` for a depthwise kernel of shape
[k, k, C] or [k, k, C, m]. Figure 3 of the paper (experiment E3) compares ``random`` ("Different"),
``same``, ``box`` and ``identity``. Section 4.3.3 smooths random filters, which is the bank
``smoothed``; `smooth` does it for the filters of a trained model.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from randmix import ranges
from randmix.errors import UserError, check_choice
from randmix.models.parameters import uniform_fan_in

Array = jax.Array
Bank = Callable[..., Array]

# Standard deviation of the smoothing Gaussian in pixels, per unit of the smoothing index.
SIGMA_PER_INDEX = 0.5


def build(name: str, *, index: float = 0.0, keep_norm: bool = True) -> Bank:
    """Returns a bank by name.

    Args:
        name: a name in `NAMES`.
        index: strength of the smoothing by ``smoothed``, 0 to 1000; see `smooth`. At 0,
            ``smoothed`` equals ``random``.
        keep_norm: whether smoothing keeps the L2 norm of each filter.

    Returns:
        An initialiser ``bank(key, shape, dtype=float32)``.

    Raises:
        UserError: the name is unknown, the index is out of range, or a non-zero index
            is given for another bank than ``smoothed``.

    >>> build("identity")(jax.random.key(0), (2, 2, 1))[..., 0]
    Array([[1., 0.],
           [0., 0.]], dtype=float32)
    """
    check_choice("filters", name, NAMES)
    ranges.check("smoothing index", index, ranges.MODEL["smoothing_index"])
    if name == "smoothed":
        return _Smoothed(index, keep_norm)
    if index:
        raise UserError(
            f"filters: got smoothing index {index} for {name!r}; only 'smoothed' has an index"
        )
    return BANKS[name]


@dataclasses.dataclass(frozen=True)
class _Smoothed:
    """The bank "smoothed"; banks with equal settings compare equal, as a model's fields must."""

    index: float
    keep_norm: bool

    def __call__(self, key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        return smooth(random(key, shape, dtype), self.index, keep_norm=self.keep_norm)


def random(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    """Independent filters, uniform in +-1 / k: PyTorch's default, where fan_in is k^2."""
    k = _side(shape)
    return uniform_fan_in(k * k)(key, shape, dtype)


def same(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    """One set of m filters (one filter for [k, k, C]), drawn as in `random`, for all channels."""
    k = _side(shape)
    return jnp.broadcast_to(random(key, (k, k, 1, *shape[3:]), dtype), shape)


def box(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    """Filters that average their k x k window: 1 / k^2 everywhere."""
    k = _side(shape)
    return jnp.full(shape, 1 / (k * k), dtype)


def identity(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    """Filters that pass their channel unchanged under 'same' padding.

    They are 1 at row and column (k - 1) // 2, where that padding centres a filter, and 0 elsewhere.
    """
    centre = (_side(shape) - 1) // 2
    return jnp.zeros(shape, dtype).at[centre, centre].set(1)


def smooth(kernels: Array, index: float, *, keep_norm: bool = True) -> Array:
    """Convolves each filter with a Gaussian, keeping its k x k support (paper, section 4.3.3).

    The standard deviation of the Gaussian is ``SIGMA_PER_INDEX * index`` pixels, and the filter is
    mirrored at its edges. The convolution is then a product in the filter's cosine basis: the
    component of frequency w is multiplied by exp(-(sigma w)^2 / 2). A higher index therefore always
    moves a filter to lower frequencies and doesn't change its sum. Padding with zeros would instead
    truncate large Gaussians to boxes, whose side lobes restore high frequencies.

    Args:
        kernels: [k, k, ...], one filter for each of the trailing indices; random or trained.
        index: strength of the smoothing, 0 to 1000; 0 changes nothing.
        keep_norm: whether to rescale each filter to its original L2 norm; otherwise it keeps its
            sum.

    Returns:
        Filters of the same shape and dtype.

    Raises:
        UserError: the index is out of range.
        ValueError: the filters aren't square.
    """
    ranges.check("smoothing index", index, ranges.MODEL["smoothing_index"])
    k = _side(kernels.shape)
    kernels = jnp.asarray(kernels)
    if index == 0:
        return kernels
    wide = kernels.astype(jnp.float32)
    matrix = jnp.asarray(_mirrored_gaussian(k, SIGMA_PER_INDEX * index), jnp.float32)
    low = jnp.einsum(
        "ia,jb,ab...->ij...", matrix, matrix, wide, precision=jax.lax.Precision.HIGHEST
    )
    if keep_norm:
        norm, low_norm = _norm(wide), _norm(low)
        low = low * jnp.where(low_norm > 0, norm / jnp.where(low_norm > 0, low_norm, 1), 0)
    return low.astype(kernels.dtype)


BANKS: dict[str, Bank] = {"random": random, "same": same, "box": box, "identity": identity}
NAMES = (*BANKS, "smoothed")


def _mirrored_gaussian(k: int, sigma: float) -> np.ndarray:
    """Matrix [k, k] of a Gaussian convolution of k mirrored samples; the DCT-II diagonalises it."""
    frequency = np.pi * np.arange(k) / k
    basis = np.cos(frequency[:, None] * (np.arange(k) + 0.5))
    basis /= np.linalg.norm(basis, axis=1, keepdims=True)
    return basis.T @ (np.exp(-((sigma * frequency) ** 2) / 2)[:, None] * basis)


def _norm(kernels: Array) -> Array:
    return jnp.sqrt(jnp.square(kernels).sum((0, 1), keepdims=True))


def _side(shape: tuple[int, ...]) -> int:
    if len(shape) < 3 or shape[0] != shape[1]:
        raise ValueError(f"filters must be [k, k, C] or [k, k, C, m], got {list(shape)}")
    return shape[0]
