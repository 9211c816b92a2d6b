"""Value mappings of a channel: tables of 256 entries, and one lookup for all operations.

Results equal those of Pillow's ImageOps exactly, except for autocontrast: Pillow computes it in
double precision and falls 1 short of some integer quotients.
"""

import functools
import operator

import jax
import jax.numpy as jnp

NONE, AUTOCONTRAST, EQUALIZE = range(3)


def apply(
    images: jax.Array, stretch: jax.Array, add: jax.Array, threshold: jax.Array, bits: jax.Array
) -> jax.Array:
    """Looks up every value in its image's table.

    Args:
        images: [N, H, W, C] uint8.
        stretch: [N] int32; NONE, AUTOCONTRAST or EQUALIZE. The latter two ignore ``add``,
            ``threshold`` and ``bits``.
        add: [N] int32, for solarize-add: added to values below 128, up to 255; 0 changes nothing.
        threshold: [N] int32, for solarize: values from it upwards are inverted; 0 inverts all, 256
            none.
        bits: [N] int32 in 0..8, for posterize: the number of leading bits to keep.

    Returns:
        [N, H, W, C] uint8.
    """
    # Chosen at lowering, as in `randmix.ops.depthwise`: gathers and scatters are slow on a TPU.
    counts = jax.lax.platform_dependent(
        images, tpu=_histograms_by_comparison, default=jax.vmap(histograms)
    )
    tables = jax.vmap(_tables)(counts, stretch, add, threshold, bits)
    return jax.lax.platform_dependent(
        tables, images, tpu=_look_up_by_selection, default=jax.vmap(_look_up)
    )


def _tables(
    counts: jax.Array, stretch: jax.Array, add: jax.Array, threshold: jax.Array, bits: jax.Array
) -> jax.Array:
    """One image's tables, [C, 256] uint8, from its histograms [C, 256]."""
    fixed = jnp.broadcast_to(_fixed(add, threshold, bits), counts.shape)
    tables = jnp.stack([fixed, jax.vmap(autocontrast)(counts), jax.vmap(equalize)(counts)])
    return tables[stretch].astype(jnp.uint8)


def _look_up(tables: jax.Array, image: jax.Array) -> jax.Array:
    """[C, 256] and [H, W, C] uint8 -> [H, W, C] uint8."""
    *_, c = image.shape
    # A flat table makes an index one number.
    return tables.reshape(-1)[image.astype(jnp.int32) + 256 * jnp.arange(c)[None, None]]


def _look_up_by_selection(tables: jax.Array, images: jax.Array) -> jax.Array:
    """Batched `_look_up` by selection: [N, C, 256] and [N, H, W, C] -> [N, H, W, C] uint8.

    A word packs four entries, and each bit of the value halves the 64 candidate words.
    """
    n, c, _ = tables.shape
    entries = tables.astype(jnp.uint32).reshape(n, 1, 1, c, 64, 4)
    shifts = jax.lax.broadcast_to_rank(jnp.arange(0, 32, 8, dtype=jnp.uint32), entries.ndim)
    words = (entries << shifts).sum(-1, dtype=jnp.uint32)
    words = [words[..., i] for i in range(64)]
    values = images.astype(jnp.uint32)
    for bit in range(2, 8):
        is_set = values >> bit & 1 == 1
        words = [
            jnp.where(is_set, odd, even) for even, odd in zip(words[::2], words[1::2], strict=True)
        ]
    return (words[0] >> 8 * (values & 3)).astype(jnp.uint8)


def histograms(image: jax.Array) -> jax.Array:
    """Counts each value in each channel of an image [H, W, C] uint8; returns [C, 256] int32."""
    *_, c = image.shape
    index = (image.astype(jnp.int32) + 256 * jnp.arange(c)[None, None]).reshape(-1)
    # Flat and in bounds: 7 ns per value on a CPU; a matrix product of one-hot digits takes 70.
    return jnp.zeros(c * 256, jnp.int32).at[index].add(1, mode="promise_in_bounds").reshape(c, 256)


def _histograms_by_comparison(images: jax.Array) -> jax.Array:
    """Batched `histograms` without a scatter: [N, H, W, C] uint8 -> [N, C, 256] int32."""
    _, h, *_ = images.shape
    # An eight-bit counter holds up to 255.
    counts = (_count(images[:, start : start + 255]) for start in range(0, h, 255))
    return functools.reduce(operator.add, counts)


def _count(images: jax.Array) -> jax.Array:
    """Histograms of up to 255 rows: a word counts four values, so 64 comparisons cover 256."""
    n, _, _, c = images.shape
    values = images.astype(jnp.uint32)[:, None]
    ours = values >> 2 == jnp.arange(64, dtype=jnp.uint32)[None, :, None, None, None]
    columns = jnp.where(ours, jnp.uint32(1) << 8 * (values & 3), 0).sum(2, dtype=jnp.uint32)
    shifts = jnp.arange(0, 32, 8, dtype=jnp.uint32)[None, None, :, None, None]
    counters = columns[:, :, None] >> shifts & 255
    return counters.sum(3, dtype=jnp.int32).reshape(n, 256, c).swapaxes(1, 2)


def _fixed(add: jax.Array, threshold: jax.Array, bits: jax.Array) -> jax.Array:
    values = jnp.arange(256)
    values = jnp.where(values < 128, jnp.minimum(values + add, 255), values)
    values = jnp.where(values < threshold, values, 255 - values)
    return values & ~((1 << (8 - bits)) - 1)


def autocontrast(counts: jax.Array) -> jax.Array:
    """Table that stretches the occurring values to 0..255: [256] int32 from counts [256]."""
    values = jnp.arange(256)
    low, high = (counts > 0).argmax(), 255 - (counts[::-1] > 0).argmax()
    spread = jnp.clip((values - low) * 255 // jnp.maximum(high - low, 1), 0, 255)
    return jnp.where(high > low, spread, values)


def equalize(counts: jax.Array) -> jax.Array:
    """Table that spreads the pixels evenly over 0..255: [256] int32 from counts [256]."""
    values = jnp.arange(256)
    last = jnp.where(values == 255 - (counts[::-1] > 0).argmax(), counts, 0).sum()
    step = (counts.sum() - last) // 255
    below = jnp.cumsum(counts) - counts
    even = jnp.minimum((below + step // 2) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, even, values)
