"""Pixels of moved images without a gather, which is slow on a TPU.

A matrix with a = e and a e - b d = 1 decomposes into three shears: of rows, of columns and of rows
again (Paeth, A fast algorithm for general raster rotation, Graphics Interface 1986). Rounded to
whole pixels, each shear moves every row or column by its own amount, in a few selections between
shifted copies. The result isn't the requested image yet, but every pixel of that image lies within
two or three pixels of its place, at an integer offset that selects it from as many shifted copies.
Nothing is approximated; a gather yields the same pixels.
"""

import functools
import math
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp

# Bits of a shift per pass over the image. Memory traffic for 40 images at 224 x 224: 1.75 GB; with
# 1 bit 1.92 GB, with 3 bits 1.89 GB.
_DIGIT_BITS = 2


def pixels(
    image: jax.Array, matrix: jax.Array, *, steepest: float
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Prepares to read pixels from near the positions that a matrix maps to.

    Args:
        image: [H, W, C] uint8, C at most 4; up to 4096 pixels high and wide.
        matrix: [6] float32 (a, b, c, d, e, f) of a shear, translation or rotation; see ``warp``.
        steepest: an upper bound of |b| and |d|, in 0..1; static. Steeper matrices yield wrong
            pixels.

    Returns:
        A function of columns x and rows y, both [H, W] int32, that returns the pixels there, [H, W,
        C] uint32; positions outside the image read its edge. Positions must lie within 1 of
        (a u + b v + c - 1/2, d u + e v + f - 1/2), where (u, v) is the centre of the output pixel,
        if that is inside the image; elsewhere the result is undefined.
    """
    h, w, c = image.shape
    slope = steepest / (1 + math.sqrt(1 - steepest**2))
    # A pixel's largest distance from its place: 1 from the matrix's position, in x and in y, and
    # 1/2 from each rounding, all under the shears that follow, which amount to at most 1 and
    # `steepest`; and 0.1 for the precision of the shears themselves.
    rows_off, columns_off = int(1.6 + 1.5 * steepest), int(2.1 + steepest + slope / 2)
    reach = int(slope * ((h - 1) / 2 + rows_off) + 0.6)
    margin = reach + columns_off
    outer, middle, inner = _shears(matrix, h)

    # From the source to its place. Pixels that wrap around are never selected.
    canvas_h, canvas_w = h + 2 * rows_off, w + 2 * margin
    rows = jnp.arange(-rows_off, h + rows_off)[:, None]
    columns = jnp.arange(-margin, w + margin)[None]
    # A word packs all channels of a pixel, so they move together.
    words = functools.reduce(
        operator.add, (image[..., i].astype(jnp.uint32) << 8 * i for i in range(c))
    )
    words = _shift(
        words, (outer(jnp.arange(h)[:, None]) - margin) % w, w - 1, axis=1, size=canvas_w
    )
    words = _shift(words, (middle(columns) - rows_off) % h, h - 1, axis=0, size=canvas_h)
    words = _shift(words, inner(rows) + reach, 2 * reach, axis=1, size=w + 2 * columns_off)

    def take(x: jax.Array, y: jax.Array) -> jax.Array:
        x, y = jnp.clip(x, 0, w - 1), jnp.clip(y, 0, h - 1)
        column = x - outer(y)
        row = y - middle(column)
        column = column - inner(row)
        down = row - jnp.arange(h)[:, None] + rows_off
        right = column - jnp.arange(w)[None] + columns_off
        near = [
            [words[i : i + h, j : j + w] for j in range(2 * columns_off + 1)]
            for i in range(2 * rows_off + 1)
        ]
        taken = _choose(down, [_choose(right, row) for row in near])
        shifts = jnp.arange(0, 8 * c, 8, dtype=jnp.uint32)
        return taken[..., None] >> shifts[None, None] & 255

    return take


def _shears(matrix: jax.Array, height: int) -> tuple[Callable[[jax.Array], jax.Array], ...]:
    """The three shears (outer, middle, inner), functions of integers.

    Pixel (x, y) is read from (u + outer(v), v), where v = y + middle(u) and u = x + inner(y). They
    use 16.16 fixed point, so an array and a single position agree however a compiler fuses either.
    The inner shear is centred on the middle row, so it moves pixels less far.
    """
    a, b, c, d, e, f = matrix
    slope, middle_row = b / (1 + a), (height - 1) / 2
    # From pixel centres to pixel indices.
    c, f = c + (a + b - 1) / 2, f + (d + e - 1) / 2
    return (
        _line(slope, c + slope * (middle_row - f)),
        _line(d, f + d * slope * middle_row),
        _line(slope, -slope * middle_row),
    )


def _line(slope: jax.Array, start: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """Rounded slope * position + start, as a function of the integer position."""
    slope, start = (jnp.round(v * 65536).astype(jnp.int32) for v in (slope, start + 0.5))
    return lambda position: (slope * position + start) >> 16


def _shift(words: jax.Array, amount: jax.Array, most: int, *, axis: int, size: int) -> jax.Array:
    """Returns ``size`` words from ``amount`` in 0..most on, of the words tiled along the axis."""
    starts = range(0, most.bit_length(), _DIGIT_BITS)
    digits = 1 << _DIGIT_BITS
    needed = size + digits ** len(starts) - 1
    words = jnp.concatenate([words] * math.ceil(needed / words.shape[axis]), axis)
    for bit in reversed(starts):
        length = size + (1 << bit) - 1
        shifted = [
            jax.lax.slice_in_dim(words, i << bit, (i << bit) + length, axis=axis)
            for i in range(digits)
        ]
        words = _choose((amount >> bit) % digits, shifted)
    return jax.lax.slice_in_dim(words, 0, size, axis=axis)


def _choose(index: jax.Array, choices: list[jax.Array]) -> jax.Array:
    """Elementwise choices[index]."""
    chosen = choices[0]
    for i, choice in enumerate(choices[1:], 1):
        chosen = jnp.where(index == i, choice, chosen)
    return chosen
