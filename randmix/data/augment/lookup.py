"""Operations that give each value of a channel another one: tables of 256 entries, and one gather for all of them.

Values are those of Pillow's ImageOps, tables included: exact, but for autocontrast, where Pillow's arithmetic is
double precision's and falls 1 short of some quotients that are whole.
"""

import jax
import jax.numpy as jnp

NONE, AUTOCONTRAST, EQUALIZE = range(3)


def apply(
    images: jax.Array, stretch: jax.Array, add: jax.Array, threshold: jax.Array, bits: jax.Array
) -> jax.Array:
    """Looks every value up in its image's table.

    Args:
        images: [N, H, W, C] uint8.
        stretch: [N] int32; NONE, AUTOCONTRAST or EQUALIZE, where the others must be as they change nothing.
        add: [N] int32, solarize-add: added to values below 128, up to 255; 0 changes nothing.
        threshold: [N] int32, solarize: this and higher values are inverted; 0 inverts all, 256 none.
        bits: [N] int32 in 0..8, posterize: the leading bits that are kept.

    Returns:
        [N, H, W, C] uint8.
    """
    return jax.vmap(_apply_one)(images, stretch, add, threshold, bits)


def _apply_one(
    image: jax.Array, stretch: jax.Array, add: jax.Array, threshold: jax.Array, bits: jax.Array
) -> jax.Array:
    *_, c = image.shape
    counts = histograms(image)
    fixed = jnp.broadcast_to(_fixed(add, threshold, bits), (c, 256))
    tables = jnp.stack([fixed, jax.vmap(autocontrast)(counts), jax.vmap(equalize)(counts)])[stretch]
    # One flat table, so that an index is one number.
    return tables.astype(jnp.uint8).reshape(-1)[image.astype(jnp.int32) + 256 * jnp.arange(c)]


def histograms(image: jax.Array) -> jax.Array:
    """How often each value occurs in each channel of [H, W, C] uint8: [C, 256] int32."""
    *_, c = image.shape
    index = (image.astype(jnp.int32) + 256 * jnp.arange(c)).reshape(-1)
    # Flat and in bounds: 7 ns a value on a CPU, where a matrix product of one-hot digits takes 70.
    return jnp.zeros(c * 256, jnp.int32).at[index].add(1, mode="promise_in_bounds").reshape(c, 256)


def _fixed(add: jax.Array, threshold: jax.Array, bits: jax.Array) -> jax.Array:
    values = jnp.arange(256)
    values = jnp.where(values < 128, jnp.minimum(values + add, 255), values)
    values = jnp.where(values < threshold, values, 255 - values)
    return values & ~((1 << (8 - bits)) - 1)


def autocontrast(counts: jax.Array) -> jax.Array:
    """The table, [256] int32 in 0..255, that spreads the values that occur over 0..255."""
    values = jnp.arange(256)
    low, high = (counts > 0).argmax(), 255 - (counts[::-1] > 0).argmax()
    spread = jnp.clip((values - low) * 255 // jnp.maximum(high - low, 1), 0, 255)
    return jnp.where(high > low, spread, values)


def equalize(counts: jax.Array) -> jax.Array:
    """The table, [256] int32 in 0..255, that spreads the pixels evenly over 0..255."""
    values = jnp.arange(256)
    last = counts[255 - (counts[::-1] > 0).argmax()]
    step = (counts.sum() - last) // 255
    below = jnp.cumsum(counts) - counts
    even = jnp.minimum((below + step // 2) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, even, values)
