"""Shears, translations and rotations: one gather by a matrix an image.

A matrix (a, b, c, d, e, f) is Pillow's: the pixel with its middle at (x, y) is taken from the image at
(a x + b y + c, d x + e y + f), or is the fill where that lies outside.
"""

from functools import partial

import jax
import jax.numpy as jnp

NEAREST, BILINEAR = "nearest", "bilinear"

Number = float | jax.Array
Matrix = tuple[Number, ...]


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
    images: jax.Array, matrices: jax.Array, fill: tuple[int, ...], *, interpolation: str = BILINEAR
) -> jax.Array:
    """Takes every pixel from where its image's matrix says.

    Args:
        images: [N, H, W, C] uint8.
        matrices: [N, 6] float32.
        fill: C numbers in 0..255, what lies outside of the image.
        interpolation: NEAREST or BILINEAR; static. Both have Pillow's edges and roundings, its 16.16 fixed-point
            positions for NEAREST; BILINEAR in single precision, which gives 1 more or less in few pixels.

    Returns:
        [N, H, W, C] uint8.
    """
    one = {NEAREST: _nearest, BILINEAR: _bilinear}[interpolation]
    return jax.vmap(partial(one, fill=jnp.asarray(fill, jnp.uint8)))(images, matrices)


def _bilinear(image: jax.Array, matrix: jax.Array, fill: jax.Array) -> jax.Array:
    h, w, _ = image.shape
    x, y = jnp.arange(w) + 0.5, (jnp.arange(h) + 0.5)[:, None]
    a, b, c, d, e, f = matrix
    x, y = a * x + b * y + c, d * x + e * y + f
    inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
    x, y = x - 0.5, y - 0.5
    left, top = jnp.floor(x), jnp.floor(y)
    across, down = (x - left)[..., None], (y - top)[..., None]

    def row(dy: int) -> jax.Array:
        near, far = (_take(image, left.astype(jnp.int32) + dx, top.astype(jnp.int32) + dy) for dx in (0, 1))
        return near + (far - near) * across

    upper = row(0)
    value = (upper + (row(1) - upper) * down).astype(jnp.uint8)  # cut off, not rounded
    return jnp.where(inside[..., None], value, fill)


def _take(image: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Pixels [..., C] float32 at whole positions; outside, those of the edge."""
    h, w, c = image.shape
    index = jnp.clip(y, 0, h - 1) * w + jnp.clip(x, 0, w - 1)
    return image.reshape(h * w, c)[index].astype(jnp.float32)


def _nearest(image: jax.Array, matrix: jax.Array, fill: jax.Array) -> jax.Array:
    h, w, _ = image.shape
    a, b, c, d, e, f = matrix
    start = jnp.stack([c + a * 0.5 + b * 0.5, f + d * 0.5 + e * 0.5])
    step_x, step_y, start = (
        jnp.floor(v * 65536 + 0.5).astype(jnp.int32) for v in (jnp.stack([a, d]), jnp.stack([b, e]), start)
    )
    xs, ys = jnp.arange(w), jnp.arange(h)[:, None]
    x, y = ((start[i] + step_x[i] * xs + step_y[i] * ys) >> 16 for i in (0, 1))
    inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
    return jnp.where(inside[..., None], _take(image, x, y).astype(jnp.uint8), fill)
