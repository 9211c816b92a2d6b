"""Depthwise convolution for XLA:CPU: a sum of shifted products.

XLA:CPU has no quick grouped convolution: with 8 x 8 kernels, 128 channels, 32 x 32 maps and batch 32 the
result took 388 ms with it and 7 to 10 ms with the form here, both gradients 1,079 and 30 ms, on two cores.
What makes the difference:

- Each piece is a call that XLA must not inline. Otherwise it fuses the padding, and the activation
  before that, into every one of the k^2 products, and computes them k^2 times; an
  `optimization_barrier` doesn't stop it.
- The weight gradient is summed one kernel row at a time with the columns unrolled, so that each pass
  writes k columns of sums and not a whole map for each of the k^2 kernel positions.
- From 6 x 6 kernels on, two neighbouring columns are summed at once, as the two parts of a complex number.
  XLA:CPU computes one array in a loop, where each product loads a value of x and one of the kernel: twice the
  loads that keep pace with the products. The parts of a number are one loop, and share the kernel's values and most
  of x's. Channels lie in blocks of 16 there (one AVX-512 register), so that the rows under a kernel stay in the
  first-level cache; padding makes the blocks in the pass that it needs anyhow. For smaller kernels, taking the
  parts apart costs more than that gains. The order of the sums is the same, and they came out bit for bit the same.

None of this helps on a GPU or a TPU, where such a program moves five times the memory of a grouped
convolution: `randmix.ops.depthwise` compiles it for CPU alone.

Images are [N, H, W, C] and kernels [k, k, C, m]; sums are float32 (float64 for float64).
"""

import math

import jax
import jax.numpy as jnp

from randmix.ops import sum_dtype
from randmix.ops.calls import not_inlined

Array = jax.Array

# Columns unrolled in one pass of the weight gradient; wider maps are cut into windows no wider than this.
_COLUMNS = 32
# The kernel size from which columns are summed in pairs, and the channels of a block there.
_PAIRS_FROM = 6
_LANES = 16


def convolve(x: Array, kernel: Array, stride: int) -> Array:
    """The 'same' depthwise convolution: [N, (H - 1) // stride + 1, (W - 1) // stride + 1, C m]."""
    k, _, _, multiplier = kernel.shape
    lo, hi = (k - 1) // 2, k // 2
    x, kernel, dtype = jnp.repeat(x, multiplier, axis=-1), kernel.reshape(k, k, -1), x.dtype
    return _correlate(x, kernel, padding=(lo, hi), stride=stride, flip=False).astype(dtype)


def input_gradient(g: Array, kernel: Array, size: tuple[int, int], stride: int) -> Array:
    """The cotangent of x, [N, *size, C], given g, that of `convolve`'s result."""
    k, _, channels, multiplier = kernel.shape
    lo, hi = (k - 1) // 2, k // 2
    kernel = kernel.reshape(k, k, -1)
    dx = _correlate(_dilate(g, size, stride), kernel, padding=(hi, lo), stride=1, flip=True)
    return dx.reshape(*dx.shape[:-1], channels, multiplier).sum(-1).astype(g.dtype)


def weight_gradient(x: Array, g: Array, kernel_size: int, stride: int) -> Array:
    """The cotangent of the kernel, [k, k, C, m], in the sums' dtype."""
    k, (_, _, width, channels) = kernel_size, x.shape
    lo, hi = (k - 1) // 2, k // 2
    multiplier = g.shape[-1] // channels
    count = math.ceil(width / _COLUMNS)
    spare = -width % count
    g = pad(_dilate(g, x.shape[1:3], stride), rows=(0, 0), columns=(0, spare))
    x = pad(jnp.repeat(x, multiplier, axis=-1), rows=(lo, hi), columns=(lo, hi + spare))
    x, g = _windows(x, count, overlap=k - 1), _windows(g, count, overlap=0)
    rows = [_kernel_row(x, g, row=row, kernel_size=k) for row in range(k)]
    return _sum_rows(*rows).reshape(k, k, channels, multiplier)


def _dilate(g: Array, size: tuple[int, int], stride: int) -> Array:
    """g with zeros where the stride left positions out, so that the gradients know only stride 1."""
    if stride == 1:
        return g
    inner = [
        (0, n - stride * (short - 1) - 1, stride - 1)
        for n, short in zip(size, g.shape[1:3], strict=True)
    ]
    return jax.lax.pad(g, jnp.zeros((), g.dtype), [(0, 0, 0), *inner, (0, 0, 0)])


def _windows(x: Array, count: int, *, overlap: int) -> Array:
    """Cuts the columns into windows that overlap, stacked on the batch axis."""
    if count == 1:
        return x
    width = (x.shape[2] - overlap) // count
    return jnp.concatenate([x[:, :, i * width : (i + 1) * width + overlap] for i in range(count)])


def _correlate(
    x: Array, kernel: Array, *, padding: tuple[int, int], stride: int, flip: bool
) -> Array:
    """Correlates each channel of x with its k x k taps, [k, k, C], turned by 180 degrees if `flip`.

    padding: the zeros before and after both rows and columns.
    """
    if kernel.shape[0] < _PAIRS_FROM or x.shape[-1] % _LANES:
        return _shift_sum(pad(x, rows=padding, columns=padding), kernel, stride=stride, flip=flip)
    before, after = padding
    width = (x.shape[2] + before + after - kernel.shape[0]) // stride + 1
    x = _pad_blocks(x, rows=padding, columns=(before, after + stride * (width % 2)))
    return _unpair(_pair_sum(x, kernel, stride=stride, flip=flip))[:, :, :width]


@not_inlined
def pad(x: Array, *, rows: tuple[int, int], columns: tuple[int, int]) -> Array:
    """x with zeros around it, in the sums' dtype."""
    return jnp.pad(x.astype(sum_dtype(x.dtype)), ((0, 0), rows, columns, (0, 0)))


@not_inlined
def _shift_sum(x: Array, kernel: Array, *, stride: int, flip: bool) -> Array:
    """Correlates each channel of a padded x with its k x k taps, turned by 180 degrees if `flip`.

    kernel: [k, k, C]. It is turned in here, where XLA reads it backwards: turned before the call it is a
    copy, with which the sum took 17 ms and not 12 (8 x 32 x 32 x 512, k = 8).
    """
    k = kernel.shape[0]
    kernel = kernel[::-1, ::-1] if flip else kernel
    height, width = x.shape[1] - k + 1, x.shape[2] - k + 1
    return sum(
        x[:, i : i + height : stride, j : j + width : stride] * kernel[i, j]
        for i in range(k)
        for j in range(k)
    )


@not_inlined
def _pad_blocks(x: Array, *, rows: tuple[int, int], columns: tuple[int, int]) -> Array:
    """x with zeros around it, in the sums' dtype, its channels in blocks: [N, C / _LANES, H', W', _LANES]."""
    n, height, width, channels = x.shape
    x = x.astype(sum_dtype(x.dtype)).reshape(n, height, width, channels // _LANES, _LANES)
    edges = [(0, 0, 0), (0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0)]
    return jax.lax.pad(x.transpose(0, 3, 1, 2, 4), jnp.zeros((), x.dtype), edges)


@not_inlined
def _pair_sum(x: Array, kernel: Array, *, stride: int, flip: bool) -> Array:
    """`_shift_sum` of what `_pad_blocks` gives, columns 2 i and 2 i + 1 as a complex number.

    Returns:
        [N, C / _LANES, H, W / 2, _LANES].
    """
    k, _, channels = kernel.shape
    kernel = kernel[::-1, ::-1] if flip else kernel
    kernel = kernel.reshape(k, k, channels // _LANES, 1, 1, _LANES)
    height, width = x.shape[2] - k + 1, x.shape[3] - k + 1

    def every_second(first):
        last = width - stride + first
        return sum(
            x[:, :, i : i + height : stride, j + first : j + last : 2 * stride] * kernel[i, j]
            for i in range(k)
            for j in range(k)
        )

    return jax.lax.complex(every_second(0), every_second(stride))


def _unpair(pairs: Array) -> Array:
    """The columns of `_pair_sum` side by side, [N, H, W, C]."""
    # Inlined: the addition of a residual branch is then part of this pass.
    n, blocks, height, width, _ = pairs.shape
    columns = [
        part.transpose(0, 2, 3, 1, 4).reshape(n, height, width, blocks * _LANES)
        for part in (pairs.real, pairs.imag)
    ]
    return jnp.stack(columns, axis=3).reshape(n, height, 2 * width, blocks * _LANES)


@not_inlined
def _kernel_row(x: Array, g: Array, *, row: int, kernel_size: int) -> Array:
    """Sums over the columns of x g for one row of the kernel: [N, H, k, C]."""
    _, height, width, _ = g.shape
    x = x[:, row : row + height]
    return sum(
        x[:, :, column : column + kernel_size] * g[:, :, column, None] for column in range(width)
    )


@not_inlined
def _sum_rows(*rows: Array) -> Array:
    """The rows' sums over batch and height: [k, k, C]."""
    return jnp.stack([row.sum((0, 1)) for row in rows])
