"""Augmentations in pure JAX: batched, each example by its own key."""

from functools import partial

import jax
import jax.numpy as jnp


def crop_and_flip(keys: jax.Array, images: jax.Array, *, padding: int, flip: bool) -> jax.Array:
    """Random crop of the zero-padded image, then a random flip left to right.

    Args:
        keys: [N] typed keys.
        images: [N, H, W, C].
        padding: pixels on each side; the crop's corner is uniform in 0..2 * padding, in each direction.
        flip: whether to flip, with probability 1/2.

    Returns:
        [N, H, W, C] of the images' dtype.
    """
    return jax.vmap(partial(_crop_and_flip_one, padding=padding, flip=flip))(keys, images)


def _crop_and_flip_one(key: jax.Array, image: jax.Array, *, padding: int, flip: bool) -> jax.Array:
    h, w, c = image.shape
    corner_key, flip_key = jax.random.split(key)
    if padding:
        padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
        y, x = jax.random.randint(corner_key, (2,), 0, 2 * padding + 1)
        image = jax.lax.dynamic_slice(padded, (y, x, jnp.zeros_like(x)), (h, w, c))
    if flip:
        image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
    return image
