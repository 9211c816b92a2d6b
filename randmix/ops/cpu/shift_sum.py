"""Depthwise convolution for XLA:CPU as a sum of shifted products.

XLA:CPU has no fast grouped convolution. With 8 x 8 kernels, 128 channels, 32 x 32 maps and batch 32
on two cores, the forward pass took 388 ms with it and 7 to 10 ms with the form here; both gradients
took 1,079 and 30 ms. What makes the difference:

- Each piece is a call that XLA must not inline. Otherwise XLA fuses the padding, and the activation
  before it, into each of the k^2 products and computes them k^2 times; an `optimization_barrier`
  doesn't prevent that.
- The weight gradient is summed one kernel row at a time with the columns unrolled. Each pass then
  writes k columns of sums, instead of an entire map for each of the k^2 kernel positions.
- From 6 x 6 kernels on, two neighbouring columns are summed at once, as the two parts of a complex
  number. XLA:CPU computes each array in its own loop, where every product loads one value of x and
  one of the kernel: twice the loads that can keep up with the products. The two parts of a complex
  number share one loop, the values of the kernel and most values of x. In that form, channels are
  in blocks of 16 (one AVX-512 register), so that the rows under a kernel stay in the first-level
  cache; the blocks are formed in the padding pass, which is needed anyway. For smaller kernels,
  separating the parts costs more than this gains. The order of summation is the same, and the
  results came out bit-identical.

None of this helps on a GPU or a TPU, where such a program moves five times as much memory as a
grouped convolution; `randmix.ops.depthwise` compiles it for CPUs only.

Images are [N, H, W, C] and kernels [k, k, C, m]; sums are float32.
"""

import math

import jax
import jax.numpy as jnp

from randmix.ops import match_rank
from randmix.ops.convolution import Geometry, same_padding
from randmix.ops.cpu import not_inlined

Array = jax.Array

# Columns unrolled in one pass of the weight gradient; wider maps are cut into windows this wide or
# narrower.
_COLUMNS = 32
# The kernel size from which columns are summed in pairs, and the channels per block in that form.
_PAIRS_FROM = 6
_LANES = 16


def convolve(x: Array, kernel: Array, stride: int) -> Array:
    """Depthwise convolution with 'same' padding: [N, H', W', C m] in ``x.dtype``."""
    k, _, _, multiplier = kernel.shape
    x, kernel, dtype = jnp.repeat(x, multiplier, axis=-1), kernel.reshape(k, k, -1), x.dtype
    y = _correlate(x, kernel, padding=same_padding(k), stride=stride, flip=False)
    return y.astype(dtype)


def input_gradient(g: Array, kernel: Array, geometry: Geometry) -> Array:
    """Cotangent of x in ``g.dtype``, given g, that of the result of `convolve`."""
    k, _, channels, multiplier = kernel.shape
    lo, hi = same_padding(k)
    kernel, g = kernel.reshape(k, k, -1), _dilate(g, geometry)
    dx = _correlate(g, kernel, padding=(hi, lo), stride=1, flip=True)
    return dx.reshape(*dx.shape[:-1], channels, multiplier).sum(-1).astype(g.dtype)


def weight_gradient(x: Array, g: Array, geometry: Geometry) -> Array:
    """Cotangent of the kernel, [k, k, C, m] in float32, given x and g as above."""
    k, _, _, multiplier = geometry.kernel.shape
    lo, hi = same_padding(k)
    count = math.ceil(x.shape[2] / _COLUMNS)
    spare = -x.shape[2] % count
    g = pad(_dilate(g, geometry), rows=(0, 0), columns=(0, spare))
    x = pad(jnp.repeat(x, multiplier, axis=-1), rows=(lo, hi), columns=(lo, hi + spare))
    x, g = _windows(x, count, overlap=k - 1), _windows(g, count, overlap=0)
    rows = [_kernel_row(x, g, row=row, kernel_size=k) for row in range(k)]
    return _sum_rows(*rows).reshape(geometry.kernel.shape)


def _dilate(g: Array, geometry: Geometry) -> Array:
    """Inserts zeros where the stride skipped positions, so that gradients only handle stride 1."""
    stride = geometry.stride
    if stride == 1:
        return g
    inner = [
        (0, n - stride * (short - 1) - 1, stride - 1)
        for n, short in zip(geometry.x.shape[1:3], g.shape[1:3], strict=True)
    ]
    return jax.lax.pad(g, jnp.zeros((), g.dtype), [(0, 0, 0), *inner, (0, 0, 0)])


def _windows(x: Array, count: int, *, overlap: int) -> Array:
    """Cuts the columns into overlapping windows, stacked along the batch axis."""
    if count == 1:
        return x
    width = (x.shape[2] - overlap) // count
    return jnp.concatenate([x[:, :, i * width : (i + 1) * width + overlap] for i in range(count)])


def _correlate(
    x: Array, kernel: Array, *, padding: tuple[int, int], stride: int, flip: bool
) -> Array:
    """Correlates each channel of x with its k x k taps, [k, k, C], rotated by 180° if `flip`.

    padding: the number of zeros before and after both rows and columns.
    """
    if kernel.shape[0] < _PAIRS_FROM or x.shape[-1] % _LANES:
        return _shift_sum(pad(x, rows=padding, columns=padding), kernel, stride=stride, flip=flip)
    before, after = padding
    width = (x.shape[2] + before + after - kernel.shape[0]) // stride + 1
    x = _pad_blocks(x, rows=padding, columns=(before, after + stride * (width % 2)))
    return _unpair(_pair_sum(x, kernel, stride=stride, flip=flip))[:, :, :width]


@not_inlined
def pad(x: Array, *, rows: tuple[int, int], columns: tuple[int, int]) -> Array:
    """Pads x with zeros and casts it to float32.

    Args:
        x: [N, H, W, C], any floating dtype.
        rows: number of zero rows before and after.
        columns: number of zero columns before and after.
    """
    return jnp.pad(x.astype(jnp.float32), ((0, 0), rows, columns, (0, 0)))


@not_inlined
def _shift_sum(x: Array, kernel: Array, *, stride: int, flip: bool) -> Array:
    """Correlates each channel of a padded x with its k x k taps, rotated by 180° if `flip`.

    The kernel, [k, k, C], is rotated inside the call, where XLA reads it backwards. Rotated before
    the call it is copied, and the sum took 17 ms instead of 12 (8 x 32 x 32 x 512, k = 8).
    """
    k = kernel.shape[0]
    kernel = kernel[::-1, ::-1] if flip else kernel
    height, width = x.shape[1] - k + 1, x.shape[2] - k + 1
    return sum(  # pyright: ignore[reportReturnType] (k >= 1, so it is no int 0)
        x[:, i : i + height : stride, j : j + width : stride] * match_rank(kernel[i, j], x)
        for i in range(k)
        for j in range(k)
    )


@not_inlined
def _pad_blocks(x: Array, *, rows: tuple[int, int], columns: tuple[int, int]) -> Array:
    """Like `pad`, with the channels in blocks: [N, C / _LANES, H', W', _LANES]."""
    n, height, width, channels = x.shape
    x = x.astype(jnp.float32).reshape(n, height, width, channels // _LANES, _LANES)
    edges = [(0, 0, 0), (0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0)]
    return jax.lax.pad(x.transpose(0, 3, 1, 2, 4), jnp.zeros((), x.dtype), edges)


@not_inlined
def _pair_sum(x: Array, kernel: Array, *, stride: int, flip: bool) -> Array:
    """`_shift_sum` of the result of `_pad_blocks`, columns 2 i and 2 i + 1 as a complex number.

    Returns:
        [N, C / _LANES, H, W / 2, _LANES] complex.
    """
    k, _, channels = kernel.shape
    kernel = kernel[::-1, ::-1] if flip else kernel
    kernel = kernel.reshape(k, k, channels // _LANES, 1, 1, _LANES)
    height, width = x.shape[2] - k + 1, x.shape[3] - k + 1

    def every_second(first):
        last = width - stride + first
        return sum(
            x[:, :, i : i + height : stride, j + first : j + last : 2 * stride]
            * match_rank(kernel[i, j], x)
            for i in range(k)
            for j in range(k)
        )

    return jax.lax.complex(every_second(0), every_second(stride))


def _unpair(pairs: Array) -> Array:
    """Separates the columns that `_pair_sum` combined: [N, H, W, C]."""
    # Inlined, so that the addition of a residual branch is part of this pass.
    n, blocks, height, width, _ = pairs.shape
    columns = [
        part.transpose(0, 2, 3, 1, 4).reshape(n, height, width, blocks * _LANES)
        for part in (pairs.real, pairs.imag)
    ]
    return jnp.stack(columns, axis=3).reshape(n, height, 2 * width, blocks * _LANES)


@not_inlined
def _kernel_row(x: Array, g: Array, *, row: int, kernel_size: int) -> Array:
    """Sums of x g over the columns for one row of the kernel: [N, H, k, C]."""
    _, height, width, _ = g.shape
    x = x[:, row : row + height]
    return sum(  # pyright: ignore[reportReturnType] (width >= 1, so it is no int 0)
        x[:, :, column : column + kernel_size] * g[:, :, column, None] for column in range(width)
    )


@not_inlined
def _sum_rows(*rows: Array) -> Array:
    """Sums of the rows over batch and height: [k, k, C]."""
    return jnp.stack([row.sum((0, 1)) for row in rows])
