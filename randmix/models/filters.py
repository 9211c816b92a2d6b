"""Initial spatial filters from plain values: a bank by name, its rank and its smoothing.

``models.banks`` has the banks. `smooth` (section 4.3.3) applies to each of them, and to the filters
of a trained model; `Transplant` is the bank of the filters of another model.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from randmix import ranges
from randmix.errors import UserError, check_choice
from randmix.models import banks
from randmix.models.banks import Array, random
from randmix.models.parameters import Initializer

__all__ = [
    "BANKS",
    "NAMES",
    "RANKED",
    "SIGMA_PER_INDEX",
    "Smoothing",
    "Transplant",
    "build",
    "random",
    "smooth",
]

# Standard deviation of the smoothing Gaussian in pixels, per unit of the smoothing index.
SIGMA_PER_INDEX = 0.5

BANKS: dict[str, banks.Bank] = {
    "random": banks.random,
    "same": banks.same,
    "box": banks.box,
    "identity": banks.identity,
    "delta": banks.delta,
    "dct": banks.dct,
    "gaussian": banks.gaussian,
    "gaussian8": banks.gaussian8,
}
NAMES = tuple(BANKS)
RANKED = ("random", "delta", "dct")  # the banks that can have any rank


@dataclasses.dataclass(frozen=True)
class Smoothing:
    """Strength of a smoothing, callable on filters; see `smooth` for the attributes."""

    index: float = 0.0
    keep_norm: bool = True

    def __call__(self, kernels: Array) -> Array:
        """Returns the filters [k, k, ...] smoothed."""
        return smooth(kernels, self.index, keep_norm=self.keep_norm)

    def after(self, initializer: Initializer) -> Initializer:
        """Returns an initialiser that smooths the values of another one."""
        return lambda *arguments: self(initializer(*arguments))


@dataclasses.dataclass(frozen=True)
class Transplant:
    """Bank of the filters of another model's layers; two of the same digest are equal.

    A layer takes the filters of the layer of the same path and shape. Any other layer draws its
    filters, with replacement, from all those of its side k.

    Attributes:
        digest: identifies the filters, whatever place they were read from.
        kernels: [k, k, C] or [k, k, C, m] by path, such as "spatial/block_00/depthwise/kernel", or
            by any other name, which no layer has; None if they aren't available, and the
            initial values are then NaN.
    """

    digest: str
    kernels: Mapping[str, np.ndarray] | None = dataclasses.field(compare=False, repr=False)

    def draw(
        self, path: str, key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32
    ) -> Array:
        """Returns the filters of the layer whose kernel has this path.

        Raises:
            UserError: there are no filters of the layer's side.
        """
        k = banks.side(shape)
        if self.kernels is None:
            return jnp.full(shape, jnp.nan, dtype)
        own = self.kernels.get(path)
        if own is not None and own.shape == shape:
            return jnp.asarray(own, dtype)
        pool = [kernel.reshape(k, k, -1) for kernel in self.kernels.values() if len(kernel) == k]
        if not pool:
            sides = sorted({len(kernel) for kernel in self.kernels.values()})
            raise UserError(
                f"filters: got transplanted filters of side {', '.join(map(str, sides))} for a "
                f"layer of side {k}; set kernel_size to that of their model"
            )
        every = jnp.asarray(np.concatenate(pool, axis=2), dtype)
        return every[:, :, jax.random.randint(key, shape[2:], 0, every.shape[2])]


@dataclasses.dataclass(frozen=True)
class Filters:
    """Initialiser of depthwise filters, the result of `build`; equal settings compare equal.

    Attributes:
        bank: a function of ``models.banks``, or a `Transplant`.
        rank: the rank of each bank, or None; see `build`.
        smoothing: applied to what the bank gives.
    """

    bank: banks.Bank | Transplant
    rank: int | None
    smoothing: Smoothing

    def __call__(self, key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        """Returns the filters of a layer of unknown path."""
        return self.at("")(key, shape, dtype)

    def at(self, path: str) -> Initializer:
        """Returns the initialiser of the layer whose kernel has this path."""
        if isinstance(self.bank, Transplant):
            return self.smoothing.after(functools.partial(self.bank.draw, path))
        if self.rank is None:
            return self.smoothing.after(self.bank)
        return self.smoothing.after(self._ranked)

    def _ranked(self, key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
        allowed = ranges.integers(1, banks.largest_rank(shape), optional=True)
        ranges.check(f"filter rank of a layer {list(shape)}", self.rank, allowed)
        assert not isinstance(self.bank, Transplant), "build gives a transplant no rank"
        return self.bank(key, shape, dtype, rank=self.rank)


def build(
    bank: str | Transplant,
    *,
    rank: int | None = None,
    index: float = 0.0,
    keep_norm: bool = True,
) -> Filters:
    """Returns an initialiser of depthwise filters.

    Args:
        bank: a name in `NAMES`, or a `Transplant`.
        rank: number of linearly independent filters among the m filters of each channel of a kernel
            [k, k, C, m], or among all C filters of a kernel [k, k, C]; at least 1, at most the
            number of those filters and k^2. None leaves it to the bank. Only the banks in `RANKED`
            have a choice.
        index: strength of the smoothing, 0 to 1000; see `smooth`.
        keep_norm: whether smoothing keeps the L2 norm of each filter.

    Returns:
        An initialiser ``filters(key, shape, dtype=float32)``. It raises a UserError if the rank is
        too large for the shape.

    Raises:
        UserError: the name is unknown, the index or the rank is out of range, or the bank's rank
            can't be chosen.

    >>> build("identity")(jax.random.key(0), (2, 2, 1))[..., 0]
    Array([[1., 0.],
           [0., 0.]], dtype=float32)
    """
    ranges.check("smoothing index", index, ranges.MODEL["smoothing_index"])
    ranges.check("filter rank", rank, ranges.MODEL["filter_rank"])
    name = "transplanted filters" if isinstance(bank, Transplant) else bank
    if isinstance(bank, str):
        check_choice("filters", bank, NAMES)
    if rank is not None and name not in RANKED:
        raise UserError(
            f"filter rank: got {rank} for {name!r}, whose rank is fixed, allowed None; "
            f"the rank of {', '.join(RANKED)} can be chosen"
        )
    return Filters(
        BANKS[bank] if isinstance(bank, str) else bank, rank, Smoothing(index, keep_norm)
    )


def smooth(kernels: Array, index: float, *, keep_norm: bool = True) -> Array:
    """Convolves each filter with a Gaussian, keeping its k x k support (paper, section 4.3.3).

    The standard deviation of the Gaussian is ``SIGMA_PER_INDEX * index`` pixels, and the filter is
    mirrored at its edges. The convolution is then a product in the filter's cosine basis: the
    component of frequency w is multiplied by exp(-(sigma w)^2 / 2). A higher index therefore always
    moves a filter to lower frequencies and doesn't change its sum. Padding with zeros would instead
    truncate large Gaussians to boxes, whose side lobes restore high frequencies.

    The filters of a bank become more alike, so that its numerical rank falls in the end: orthogonal
    3 x 3 filters keep it up to index 2, where the highest component is multiplied by 1.2 %. The
    functions of the bank ``dct`` are multiplied by one factor each, which ``keep_norm`` undoes.

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
    k = banks.side(kernels.shape)
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


def _mirrored_gaussian(k: int, sigma: float) -> np.ndarray:
    """Matrix [k, k] of a Gaussian convolution of k mirrored samples; the DCT-II diagonalises it."""
    frequency = np.pi * np.arange(k) / k
    basis = np.cos(frequency[:, None] * (np.arange(k) + 0.5))
    basis /= np.linalg.norm(basis, axis=1, keepdims=True)
    return basis.T @ (np.exp(-((sigma * frequency) ** 2) / 2)[:, None] * basis)


def _norm(kernels: Array) -> Array:
    return jnp.sqrt(jnp.square(kernels).sum((0, 1), keepdims=True))
