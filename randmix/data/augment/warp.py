"""Shears, translations and rotations: resampling by one matrix per image.

A matrix (a, b, c, d, e, f) is Pillow's: the pixel with its centre at (x, y) is read from the image
at (a x + b y + c, d x + e y + f), or is the fill colour if that lies outside.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from randmix.data.augment import shears

NEAREST, BILINEAR = "nearest", "bilinear"

Number = float | jax.Array
Matrix = tuple[Number, ...]
Take = Callable[[jax.Array, jax.Array], jax.Array]


def shear_x(amount: Number) -> Matrix:
    """Matrix that moves rows left, by ``amount`` pixels more per row."""
    return (1.0, amount, 0.0, 0.0, 1.0, 0.0)


def shear_y(amount: Number) -> Matrix:
    """Matrix that moves columns up, by ``amount`` pixels more per column."""
    return (1.0, 0.0, 0.0, amount, 1.0, 0.0)


def translation(x: Number, y: Number) -> Matrix:
    """Matrix that moves the image left by ``x`` and up by ``y`` pixels."""
    return (1.0, 0.0, x, 0.0, 1.0, y)


def rotation(degrees: Number, height: int, width: int) -> Matrix:
    """Matrix that rotates the image counterclockwise around its centre."""
    angle = -jnp.deg2rad(degrees)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x, y = width / 2, height / 2
    return (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y)


def apply(
    images: jax.Array,
    matrices: jax.Array,
    fill: tuple[int, ...],
    *,
    interpolation: str = BILINEAR,
    steepest: float = 1.0,
) -> jax.Array:
    """Resamples each image by its matrix.

    Args:
        images: [N, H, W, C] uint8.
        matrices: [N, 6] float32, from this module's functions.
        fill: C numbers in 0..255, the colour outside the image.
        interpolation: NEAREST or BILINEAR; static. Both follow Pillow's edges and rounding. NEAREST
            uses its 16.16 fixed-point positions; BILINEAR uses single precision, so a few pixels
            differ by 1.
        steepest: an upper bound of the matrices' |b| and |d|, in 0..1; static. A lower bound is
            less work for a TPU.

    Returns:
        [N, H, W, C] uint8.
    """
    program = partial(_apply, fill=fill, interpolation=interpolation)
    # Chosen at lowering, as in `randmix.ops.depthwise`.
    return jax.lax.platform_dependent(
        images,
        matrices,
        tpu=partial(program, pixels=partial(shears.pixels, steepest=steepest)),
        default=partial(program, pixels=_gather),
    )


def _apply(
    images: jax.Array,
    matrices: jax.Array,
    *,
    fill: tuple[int, ...],
    interpolation: str,
    pixels: Callable[[jax.Array, jax.Array], Take],
) -> jax.Array:
    """``apply`` with a function that reads pixels, such as ``shears.pixels``."""
    sample = {NEAREST: _nearest, BILINEAR: _bilinear}[interpolation]

    def one(image: jax.Array, matrix: jax.Array) -> jax.Array:
        h, w, _ = image.shape
        value, inside = sample(pixels(image, matrix), matrix, h, w)
        outside = jax.lax.broadcast_to_rank(jnp.asarray(fill, jnp.uint8), image.ndim)
        return jnp.where(inside[..., None], value.astype(jnp.uint8), outside)

    return jax.vmap(one)(images, matrices)


def _bilinear(take: Take, matrix: jax.Array, h: int, w: int) -> tuple[jax.Array, jax.Array]:
    """Returns values [H, W, C] float32, to be truncated, and a mask of the inside, [H, W] bool."""
    x = (jnp.arange(w, dtype=jnp.float32) + 0.5)[None]
    y = (jnp.arange(h, dtype=jnp.float32) + 0.5)[:, None]
    a, b, c, d, e, f = matrix
    x, y = a * x + b * y + c, d * x + e * y + f
    inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
    x, y = x - 0.5, y - 0.5
    left, top = jnp.floor(x), jnp.floor(y)
    across, down = (x - left)[..., None], (y - top)[..., None]

    def row(dy: int) -> jax.Array:
        x, y = left.astype(jnp.int32), top.astype(jnp.int32) + dy
        near, far = (take(x + dx, y).astype(jnp.float32) for dx in (0, 1))
        return near + (far - near) * across

    upper = row(0)
    return upper + (row(1) - upper) * down, inside


def _nearest(take: Take, matrix: jax.Array, h: int, w: int) -> tuple[jax.Array, jax.Array]:
    """See ``_bilinear``; the values are integers."""
    a, b, c, d, e, f = matrix
    start = jnp.stack([c + a * 0.5 + b * 0.5, f + d * 0.5 + e * 0.5])
    step_x, step_y, start = (
        jnp.floor(v * 65536 + 0.5).astype(jnp.int32)
        for v in (jnp.stack([a, d]), jnp.stack([b, e]), start)
    )
    xs, ys = jnp.arange(w)[None], jnp.arange(h)[:, None]
    x, y = ((start[i] + step_x[i] * xs + step_y[i] * ys) >> 16 for i in (0, 1))
    return take(x, y), (x >= 0) & (x < w) & (y >= 0) & (y < h)


def _gather(image: jax.Array, matrix: jax.Array) -> Take:
    """``shears.pixels`` for any matrix, with a gather."""
    del matrix
    h, w, c = image.shape

    def take(x: jax.Array, y: jax.Array) -> jax.Array:
        return image.reshape(h * w, c)[jnp.clip(y, 0, h - 1) * w + jnp.clip(x, 0, w - 1)]

    return take
