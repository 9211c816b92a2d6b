"""Random erasing (Zhong et al., arXiv 1708.04896), as in timm's mode "pixel"."""

from functools import partial

import jax
import jax.numpy as jnp

_ATTEMPTS = 10
_AREA = (0.02, 1 / 3)
_ASPECT = 0.3  # the lowest; the highest is 1 / 0.3


def random_erasing(
    keys: jax.Array,
    images: jax.Array,
    *,
    probability: float,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> jax.Array:
    """Fills a random rectangle of each image with noise.

    The rectangle's share of the area is uniform in 0.02..1/3, and the logarithm of its height over
    width is uniform between those of 0.3 and 1/0.3. The first of ten draws that is smaller than the
    image in both directions is used.

    Args:
        keys: [N] typed keys.
        images: [N, H, W, C] float32 in [0, 1].
        probability: the probability that an image is erased, in [0, 1].
        mean, std: the model's normalisation, one number per channel: the noise is standard normal
            after it. If they are empty, the noise is standard normal before it. The noise isn't
            clipped to [0, 1].

    Returns:
        [N, H, W, C] float32.
    """
    one = partial(
        _erase_one,
        probability=probability,
        mean=jnp.asarray(mean or (0.0,), jnp.float32),
        std=jnp.asarray(std or (1.0,), jnp.float32),
    )
    return jax.vmap(one)(keys, images)


def _erase_one(
    key: jax.Array, image: jax.Array, *, probability: float, mean: jax.Array, std: jax.Array
) -> jax.Array:
    height, width, _ = image.shape
    box_key, noise_key = jax.random.split(key)
    erased, top, left, h, w = draw_box(box_key, height=height, width=width, probability=probability)
    rows, columns = jnp.arange(height)[:, None, None], jnp.arange(width)[None, :, None]
    inside = (rows >= top) & (rows < top + h) & (columns >= left) & (columns < left + w)
    mean, std = (jax.lax.broadcast_to_rank(v, image.ndim) for v in (mean, std))
    noise = mean + std * jax.random.normal(noise_key, image.shape)
    return jnp.where(erased & inside, noise, image)


def draw_box(
    key: jax.Array, *, height: int, width: int, probability: float
) -> tuple[jax.Array, ...]:
    """Draws (whether to erase, [] bool; top, left, box height, box width, [] int32 each)."""
    # In one call: each call would be compiled separately.
    numbers = jax.random.uniform(key, (2 * _ATTEMPTS + 3,))
    area = (_AREA[0] + (_AREA[1] - _AREA[0]) * numbers[:_ATTEMPTS]) * (height * width)
    aspect = _ASPECT ** (1 - 2 * numbers[_ATTEMPTS:-3])
    h, w = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
    fits = (h < height) & (w < width)
    first = fits.argmax()
    h, w = h[first], w[first]
    top, left = jnp.floor(numbers[-3] * (height - h + 1)), jnp.floor(numbers[-2] * (width - w + 1))
    return (numbers[-1] < probability) & fits.any(), *(
        n.astype(jnp.int32) for n in (top, left, h, w)
    )
