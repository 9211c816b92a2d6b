"""Depthwise convolution as Pallas kernels, which Triton compiles for a GPU.

The package doesn't use them: nobody has measured yet that they are faster than cuDNN.
`benchmarks/depthwise.py` measures it.

Images stay [N, H, W, C], channels last. A program of the grid has a tile of columns x channels, on
a few rows at a time. Each row that it loads serves all kernel rows that it meets; other programs
load the same values again, from the caches. What lies beyond an image is masked and counts as zero,
so nothing is padded in memory. Products are summed in float32. The input gradient is the same
kernel with flipped filters. For the weight gradient, each program sums the products of a few
images, and a second program adds these sums: no atomic additions, so the bits are always the same.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from randmix.ops.convolution import same_padding

Array = jax.Array

# Powers of two, as Triton asks for: most columns and channels of a tile.
_COLUMNS, _CHANNELS = 16, 64
_ROWS = 4  # results of so many rows at a time
_BLOCKS = 64  # most groups of images in the weight gradient, each with a sum of its own


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise(x: Array, kernel: Array, interpret: bool = False) -> Array:
    """Depthwise cross-correlation with 'same' padding and stride 1, as `randmix.ops.depthwise`.

    Args:
        x: [N, H, W, C], any floating dtype.
        kernel: [k, k, C], any floating dtype.
        interpret: whether to interpret the kernels, on any device, instead of compiling them.

    Returns:
        [N, H, W, C] in ``x.dtype``.
    """
    before, _ = same_padding(kernel.shape[0])
    return _correlate(x, kernel, before, interpret)


def _forward(x: Array, kernel: Array, interpret: bool) -> tuple[Array, tuple[Array, Array]]:
    return depthwise(x, kernel, interpret), (x, kernel)


def _backward(interpret: bool, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    _, after = same_padding(kernel.shape[0])
    dx = _correlate(g, kernel[::-1, ::-1], after, interpret)
    return dx.astype(x.dtype), _weight_gradient(x, g, kernel.shape[0], interpret).astype(
        kernel.dtype
    )


depthwise.defvjp(_forward, _backward)


def _correlate(x: Array, kernel: Array, before: int, interpret: bool) -> Array:
    """The cross-correlation with ``before`` zeros above and left of each image."""
    n, h, w, c = x.shape
    tile = _Tile.of(x.shape)
    y = pl.pallas_call(
        functools.partial(_correlate_tile, tile=tile, k=kernel.shape[0], before=before),
        out_shape=jax.ShapeDtypeStruct((x.size,), x.dtype),
        grid=(n * tile.down, tile.across, tile.deep),
        compiler_params=triton.CompilerParams(),  # Triton, not Mosaic
        interpret=interpret,
    )(x.reshape(-1), kernel.astype(jnp.float32).reshape(-1))
    return y.reshape(x.shape)


def _correlate_tile(x, kernel, y, *, tile, k, before):
    image, part = _divide(pl.program_id(0), tile.down)
    row, column, channel = part * _ROWS, pl.program_id(1), pl.program_id(2)
    channels, exists = tile.channels(channel)

    def add_column(j, sums):
        """Adds the products with column j of the kernel."""
        rows = tile.load(x, image, row - before, _ROWS + k - 1, column, j - before, channel)
        weights = [
            triton.load(kernel.at[(i * k + j) * tile.shape[-1] + channels], mask=exists, other=0.0)[
                None
            ]
            for i in range(k)
        ]
        return [
            total + sum(rows[r + i] * weights[i] for i in range(k)) for r, total in enumerate(sums)
        ]

    sums = jax.lax.fori_loop(0, k, add_column, [tile.zeros()] * _ROWS)
    for total, (offsets, inside) in zip(
        sums, tile.places(image, row, _ROWS, column, 0, channel), strict=True
    ):
        triton.store(y.at[offsets], total.astype(y.dtype), mask=inside)


def _weight_gradient(x: Array, g: Array, k: int, interpret: bool) -> Array:
    """The cotangent of the kernel, [k, k, C] float32, given that of the result."""
    n, h, w, c = x.shape
    tile = _Tile.of(x.shape)
    images = pl.cdiv(n, _BLOCKS)
    blocks = pl.cdiv(n, images)
    sums = pl.pallas_call(
        functools.partial(_sum_products, tile=tile, k=k, images=images),
        out_shape=jax.ShapeDtypeStruct((blocks * k * k * c,), jnp.float32),
        grid=(blocks, k, tile.deep),
        compiler_params=triton.CompilerParams(),
        interpret=interpret,
    )(x.reshape(-1), g.reshape(-1))
    return sums.reshape(blocks, k, k, c).sum(0)


def _sum_products(x, g, sums, *, tile, k, images):
    block, j, channel = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    before, _ = same_padding(k)

    def add_tile(index, totals):
        """Adds the products of one tile, for all rows of column j of the kernel."""
        index, column = _divide(index, tile.across)
        image, part = _divide(index, tile.down)
        image, row = block * images + image, part * _ROWS
        cotangents = tile.load(g, image, row, _ROWS, column, 0, channel)
        rows = tile.load(x, image, row - before, _ROWS + k - 1, column, j - before, channel)
        return [
            total + sum(rows[r + i] * cotangents[r] for r in range(_ROWS))
            for i, total in enumerate(totals)
        ]

    tiles = images * tile.down * tile.across
    channels, exists = tile.channels(channel)
    for i, total in enumerate(jax.lax.fori_loop(0, tiles, add_tile, [tile.zeros()] * k)):
        here = sums.at[((block * k + i) * k + j) * tile.shape[-1] + channels]
        triton.store(here, total.sum(0), mask=exists)


class _Tile(NamedTuple):
    """Size of a tile of columns x channels, and of images [N, H, W, C], which are flat arrays."""

    size: tuple[int, int]
    shape: tuple[int, int, int, int]

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> "_Tile":
        n, h, w, c = shape
        columns, channels = (2 ** math.ceil(math.log2(size)) for size in (w, c))
        return cls((min(columns, _COLUMNS), min(channels, _CHANNELS)), (n, h, w, c))

    @property
    def down(self) -> int:
        """Groups of rows in an image."""
        return pl.cdiv(self.shape[1], _ROWS)

    @property
    def across(self) -> int:
        """Tiles in a row."""
        return pl.cdiv(self.shape[2], self.size[0])

    @property
    def deep(self) -> int:
        """Tiles in a pixel's channels."""
        return pl.cdiv(self.shape[3], self.size[1])

    def zeros(self):
        return jnp.zeros(self.size, jnp.float32)

    def channels(self, channel):
        """The channels of a tile, and whether they exist."""
        channels = channel * self.size[1] + jnp.arange(self.size[1])
        return channels, channels < self.shape[3]

    def places(self, image, row, rows, column, shift, channel):
        """Offsets in the flat images for each of the rows, and which of them are in the image.

        The tile is number ``column`` of a row, shifted by so many columns, and number ``channel``.
        """
        n, h, w, c = self.shape
        channels, exists = self.channels(channel)
        columns = column * self.size[0] + shift + jnp.arange(self.size[0])
        inside = ((columns >= 0) & (columns < w))[:, None] & exists[None]
        offsets = columns[:, None] * c + channels[None]
        return [
            ((image * h + r) * (w * c) + offsets, inside & ((image < n) & (r >= 0) & (r < h)))
            for r in (row + i for i in range(rows))
        ]

    def load(self, images, *where):
        """Values at the places of each row, float32; zeros beyond the image."""
        return [
            triton.load(images.at[offsets], mask=inside, other=0.0).astype(jnp.float32)
            for offsets, inside in self.places(*where)
        ]


def _divide(index, by):
    """Quotient and remainder; JAX's lowering for Triton fails on some operands of `//` and `%`."""
    return jax.lax.div(index, jnp.int32(by)), jax.lax.rem(index, jnp.int32(by))
