"""Brightness, contrast, colour and sharpness, as in Pillow's ImageEnhance.

Each operation blends an image with a degenerate one that has less of the property. Values are
Pillow's; on machines that fuse multiplication and addition a few pixels differ by 1.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

# The degenerate images for brightness, contrast, colour and sharpness.
BLACK, MEAN, GRAY, SMOOTH = range(4)


def apply(
    images: jax.Array,
    degenerate: jax.Array,
    factor: jax.Array,
    *,
    degenerates: Sequence[int] = (BLACK, MEAN, GRAY, SMOOTH),
) -> jax.Array:
    """Blends each image with its degenerate one.

    Computes degenerate + factor * (image - degenerate), clipped to 0..255.

    Args:
        images: [N, H, W, C] uint8; C is 1 or 3. With C = 1 GRAY changes nothing.
        degenerate: [N] int32; BLACK, MEAN, GRAY or SMOOTH per image.
        factor: [N] float32; 0 yields the degenerate image, 1 the original, above 1 enhances.
        degenerates: the values that occur in ``degenerate``; static.

    Returns:
        [N, H, W, C] uint8.
    """
    n, *_ = images.shape
    column = (n, 1, 1, 1)
    gray = _gray(images)
    blended = {
        BLACK: lambda: jnp.zeros_like(gray),
        MEAN: lambda: _mean(gray),
        GRAY: lambda: gray,
        SMOOTH: lambda: _smooth(images.astype(jnp.int32)),
    }
    other = jnp.zeros(images.shape, jnp.int32)
    for kind in degenerates:
        other = jnp.where((degenerate == kind).reshape(column), blended[kind](), other)
    other = other.astype(jnp.float32)
    out = other + factor.astype(jnp.float32).reshape(column) * (images.astype(jnp.float32) - other)
    return jnp.clip(out, 0, 255).astype(jnp.uint8)


def color_jitter(keys: jax.Array, images: jax.Array, strength: float) -> jax.Array:
    """Random brightness, contrast and saturation in random order; torchvision's ColorJitter.

    Args:
        keys: [N] typed keys.
        images: [N, H, W, C] uint8; with C = 1 the saturation is unchanged.
        strength: factors are uniform in [max(0, 1 - strength), 1 + strength].

    Returns:
        [N, H, W, C] uint8.
    """

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        numbers = jax.random.uniform(key, (6,))
        low, high = max(0.0, 1 - strength), 1 + strength
        return numbers[:3].argsort(), low + (high - low) * numbers[3:]

    orders, factors = jax.vmap(draw)(keys)
    for place in range(3):
        images = apply(images, orders[:, place], factors[:, place], degenerates=(BLACK, MEAN, GRAY))
    return images


def _gray(images: jax.Array) -> jax.Array:
    """Luminance with Pillow's fixed-point weights, [N, H, W, 1] int32."""
    images = images.astype(jnp.int32)
    if images.shape[-1] == 1:
        return images
    red, green, blue = jnp.split(images, 3, axis=-1)
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def _mean(gray: jax.Array) -> jax.Array:
    """Mean rounded half up, [N, 1, 1, 1] int32; integer sums don't overflow up to 4M pixels."""
    _, h, w, _ = gray.shape
    return (2 * gray.sum((1, 2, 3), keepdims=True) + h * w) // (2 * h * w)


def _smooth(images: jax.Array) -> jax.Array:
    """Pillow's SMOOTH: the 3 x 3 mean with the centre counted five times; edges are unchanged."""
    n, h, w, c = images.shape
    if h < 3 or w < 3:
        return images
    rows = images[:, :-2] + images[:, 1:-1] + images[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * images[:, 1:-1, 1:-1]
    return images.at[:, 1:-1, 1:-1].set((2 * total + 13) // 26)
