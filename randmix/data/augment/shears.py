"""Pixels of moved images without a gather, which is what a TPU is worst at.

A matrix with a = e and a e - b d = 1 is three shears: of rows, of columns and of rows again (Paeth, A fast algorithm for
general raster rotation, Graphics Interface 1986). By whole pixels each of them moves every row, or column, by a number
of its own, in a few selections between shifted copies. The outcome isn't yet the image that is asked for, but every
pixel of that lies within two or three of its place, and whole numbers say where: it is selected from so many shifted
copies. Nothing is approximated; a gather gives the same pixels.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

# Of a shift, done by one pass over the image: 1.75 GB moved for 40 images at 224 x 224; by 1 bit 1.92, by 3 bits 1.89.
_DIGIT_BITS = 2


def pixels(
    image: jax.Array, matrix: jax.Array, *, steepest: float
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Prepares to take pixels from near where a matrix says.

    Args:
        image: [H, W, C] uint8, C at most 4; up to 4096 pixels high and wide.
        matrix: [6] float32 (a, b, c, d, e, f), of a shear, a translation or a rotation; see ``warp``.
        steepest: at least |b| and |d|, in 0..1; static. What is steeper gives wrong pixels.

    Returns:
        A function of two [H, W] int32, columns x and rows y: [H, W, C] uint32, the pixels at them, or at the edge where
        they lie outside. They must lie within 1 of (a u + b v + c - 1/2, d u + e v + f - 1/2), where (u, v) is the
        middle of the pixel in question, wherever that is inside of the image; elsewhere the result means nothing.
    """
    h, w, c = image.shape
    slope = steepest / (1 + math.sqrt(1 - steepest**2))
    # How far a pixel can be from its place: 1 from where the matrix says, in x and in y, and 1/2 by each rounding, all
    # under the shears that follow, which come to at most 1 and `steepest`; and 0.1 for the shears' own precision.
    rows_off, columns_off = int(1.6 + 1.5 * steepest), int(2.1 + steepest + slope / 2)
    reach = int(slope * ((h - 1) / 2 + rows_off) + 0.6)
    margin = reach + columns_off
    outer, middle, inner = _shears(matrix, h)

    # From the source to the place. What is shifted in from the other side is never selected.
    canvas_h, canvas_w = h + 2 * rows_off, w + 2 * margin
    rows, columns = jnp.arange(-rows_off, h + rows_off)[:, None], jnp.arange(-margin, w + margin)
    # A word has all channels of a pixel, so that they are moved at once.
    words = sum(image[..., i].astype(jnp.uint32) << 8 * i for i in range(c))
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
        down, right = row - jnp.arange(h)[:, None] + rows_off, column - jnp.arange(w) + columns_off
        near = [
            [words[i : i + h, j : j + w] for j in range(2 * columns_off + 1)]
            for i in range(2 * rows_off + 1)
        ]
        taken = _choose(down, [_choose(right, row) for row in near])
        return taken[..., None] >> jnp.arange(0, 8 * c, 8, dtype=jnp.uint32) & 255

    return take


def _shears(matrix: jax.Array, height: int) -> tuple[Callable[[jax.Array], jax.Array], ...]:
    """Three functions of whole numbers: (x, y) is taken from (u + outer(v), v), v = y + middle(u), u = x + inner(y).

    In 16.16 fixed point, for the same in a whole array as at one place, however a compiler fuses either. The inner
    one is around the middle row: it moves less far.
    """
    a, b, c, d, e, f = matrix
    slope, middle_row = b / (1 + a), (height - 1) / 2
    # From middles of pixels to their numbers.
    c, f = c + (a + b - 1) / 2, f + (d + e - 1) / 2
    return (
        _line(slope, c + slope * (middle_row - f)),
        _line(d, f + d * slope * middle_row),
        _line(slope, -slope * middle_row),
    )


def _line(slope: jax.Array, start: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """Rounds slope * position + start, as a function of the position."""
    slope, start = (jnp.round(v * 65536).astype(jnp.int32) for v in (slope, start + 0.5))
    return lambda position: (slope * position + start) >> 16


def _shift(words: jax.Array, amount: jax.Array, most: int, *, axis: int, size: int) -> jax.Array:
    """Takes ``size`` words from position ``amount`` on, in 0..most, of the words repeated along the axis."""
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
    """choices[index], place by place."""
    chosen = choices[0]
    for i, choice in enumerate(choices[1:], 1):
        chosen = jnp.where(index == i, choice, chosen)
    return chosen
