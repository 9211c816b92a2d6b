"""Shears, translations and rotations: pixels taken by a matrix an image.

A matrix (a, b, c, d, e, f) is Pillow's: the pixel with its middle at (x, y) is taken from the image at
(a x + b y + c, d x + e y + f), or is the fill where that lies outside.
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
    """Moves each row to the left by this many pixels a row."""
    return (1.0, amount, 0.0, 0.0, 1.0, 0.0)


def shear_y(amount: Number) -> Matrix:
    """Moves each column up by this many pixels a column."""
    return (1.0, 0.0, 0.0, amount, 1.0, 0.0)


def translation(x: Number, y: Number) -> Matrix:
    """Moves the image to the left and up by this many pixels."""
    return (1.0, 0.0, x, 0.0, 1.0, y)


def rotation(degrees: Number, height: int, width: int) -> Matrix:
    """Turns the image counterclockwise around its middle."""
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
    """Takes every pixel from where its image's matrix says.

    Args:
        images: [N, H, W, C] uint8.
        matrices: [N, 6] float32, of this module's functions.
        fill: C numbers in 0..255, what lies outside of the image.
        interpolation: NEAREST or BILINEAR; static. Both have Pillow's edges and roundings, its 16.16 fixed-point
            positions for NEAREST; BILINEAR in single precision, which gives 1 more or less in few pixels.
        steepest: at least the matrices' |b| and |d|, in 0..1; static. The less, the less a TPU has to do.

    Returns:
        [N, H, W, C] uint8.
    """
    program = partial(_apply, fill=fill, interpolation=interpolation)
    # Decided at lowering, as in `randmix.ops.depthwise`.
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
    """``apply`` by one way to take pixels: a function of an image and its matrix, as ``shears.pixels``."""
    sample = {NEAREST: _nearest, BILINEAR: _bilinear}[interpolation]

    def one(image: jax.Array, matrix: jax.Array) -> jax.Array:
        h, w, _ = image.shape
        value, inside = sample(pixels(image, matrix), matrix, h, w)
        return jnp.where(inside[..., None], value.astype(jnp.uint8), jnp.asarray(fill, jnp.uint8))

    return jax.vmap(one)(images, matrices)


def _bilinear(take: Take, matrix: jax.Array, h: int, w: int) -> tuple[jax.Array, jax.Array]:
    """Values [H, W, C] float32, to be cut off and not rounded, and what is inside, [H, W] bool."""
    x, y = jnp.arange(w) + 0.5, (jnp.arange(h) + 0.5)[:, None]
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
    """As ``_bilinear``; the values are whole."""
    a, b, c, d, e, f = matrix
    start = jnp.stack([c + a * 0.5 + b * 0.5, f + d * 0.5 + e * 0.5])
    step_x, step_y, start = (
        jnp.floor(v * 65536 + 0.5).astype(jnp.int32)
        for v in (jnp.stack([a, d]), jnp.stack([b, e]), start)
    )
    xs, ys = jnp.arange(w), jnp.arange(h)[:, None]
    x, y = ((start[i] + step_x[i] * xs + step_y[i] * ys) >> 16 for i in (0, 1))
    return take(x, y), (x >= 0) & (x < w) & (y >= 0) & (y < h)


def _gather(image: jax.Array, matrix: jax.Array) -> Take:
    """``shears.pixels`` of any matrix, by a gather."""
    del matrix
    h, w, c = image.shape

    def take(x: jax.Array, y: jax.Array) -> jax.Array:
        return image.reshape(h * w, c)[jnp.clip(y, 0, h - 1) * w + jnp.clip(x, 0, w - 1)]

    return take
