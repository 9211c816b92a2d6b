"""Random erasing (Zhong et al., arXiv 1708.04896) as timm has it in its mode "pixel"."""

from functools import partial

import jax
import jax.numpy as jnp

_ATTEMPTS = 10
_AREA = (0.02, 1 / 3)
_ASPECT = 0.3  # the least; the largest is 1 / 0.3


def random_erasing(
    keys: jax.Array,
    images: jax.Array,
    *,
    probability: float,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> jax.Array:
    """Fills a random rectangle of an image with noise.

    Its share of the area is uniform in 0.02..1/3, the logarithm of height over width between those of 0.3 and 1/0.3;
    the first of ten draws that is smaller than the image in both directions is taken.

    Args:
        keys: [N] typed keys.
        images: [N, H, W, C] float32 in [0, 1].
        probability: that an image is erased.
        mean, std: a number a channel, the model's normalisation: the noise is normal, with mean 0 and standard
            deviation 1, after it. Without them it is so before it. It isn't cut off to [0, 1].

    Returns:
        [N, H, W, C] float32.
    """
    mean, std = (
        jnp.asarray(v or default, jnp.float32) for v, default in ((mean, (0.0,)), (std, (1.0,)))
    )
    one = partial(_erase_one, probability=probability, mean=mean, std=std)
    return jax.vmap(one)(keys, images)


def _erase_one(
    key: jax.Array, image: jax.Array, *, probability: float, mean: jax.Array, std: jax.Array
) -> jax.Array:
    height, width, _ = image.shape
    box_key, noise_key = jax.random.split(key)
    erased, top, left, h, w = draw_box(box_key, height=height, width=width, probability=probability)
    rows, columns = jnp.arange(height)[:, None, None], jnp.arange(width)[None, :, None]
    inside = (rows >= top) & (rows < top + h) & (columns >= left) & (columns < left + w)
    noise = mean + std * jax.random.normal(noise_key, image.shape)
    return jnp.where(erased & inside, noise, image)


def draw_box(
    key: jax.Array, *, height: int, width: int, probability: float
) -> tuple[jax.Array, ...]:
    """Draws (whether to erase, top, left, box height, box width)."""
    numbers = jax.random.uniform(
        key, (2 * _ATTEMPTS + 3,)
    )  # all at once: each call is compiled anew
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
