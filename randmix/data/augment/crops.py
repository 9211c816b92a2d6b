"""Random crops and flips, with one key per example."""

from functools import partial

import jax
import jax.numpy as jnp

_ATTEMPTS = 10


def crop_and_flip(keys: jax.Array, images: jax.Array, *, padding: int, flip: bool) -> jax.Array:
    """Crops each zero-padded image at random, then flips it left to right at random.

    Args:
        keys: [N] typed keys.
        images: [N, H, W, C].
        padding: pixels on each side; the crop's corner is uniform in 0..2 * padding on each axis.
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


def resized_crop(keys: jax.Array, images: jax.Array, *, scale: float, aspect: float) -> jax.Array:
    """Random crop of each image, resized to the image's size; torchvision's RandomResizedCrop.

    The crop's share of the area is uniform in [scale, 1], and the logarithm of its aspect ratio
    (width over height) is uniform between those of 1/aspect and aspect. The first of ten draws that
    fits is used, or else the full image. Resizing is bilinear and rounds after each direction, as
    Pillow does; a few pixels differ from Pillow's, by 1.

    Args:
        keys: [N] typed keys.
        images: [N, H, W, C] uint8.
        scale: in (0, 1].
        aspect: 1 or more.

    Returns:
        [N, H, W, C] uint8.
    """
    _, height, width, _ = images.shape
    boxes = jax.vmap(partial(draw_box, height=height, width=width, scale=scale, aspect=aspect))(
        keys
    )
    return jax.vmap(_resize_box)(images, *boxes)


def draw_box(
    key: jax.Array, *, height: int, width: int, scale: float, aspect: float
) -> tuple[jax.Array, ...]:
    """Draws (top, left, box height, box width), [] int32 each."""
    # In one call: each call would be compiled separately.
    numbers = jax.random.uniform(key, (2 * _ATTEMPTS + 2,))
    area = (scale + (1 - scale) * numbers[:_ATTEMPTS]) * (height * width)
    ratio = aspect ** (2 * numbers[_ATTEMPTS:-2] - 1)
    h, w = jnp.round(jnp.sqrt(area / ratio)), jnp.round(jnp.sqrt(area * ratio))
    fits = (h <= height) & (w <= width) & (h > 0) & (w > 0)
    first = fits.argmax()
    h, w = jnp.where(fits.any(), h[first], height), jnp.where(fits.any(), w[first], width)
    top, left = jnp.floor(numbers[-2] * (height - h + 1)), jnp.floor(numbers[-1] * (width - w + 1))
    return tuple(number.astype(jnp.int32) for number in (top, left, h, w))


def _resize_box(
    image: jax.Array, top: jax.Array, left: jax.Array, h: jax.Array, w: jax.Array
) -> jax.Array:
    height, width, _ = image.shape
    # An accelerator's default precision would round both 0..255 and the weights to eight bits.
    einsum = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    # Round half up after each direction.
    rows = jnp.floor(
        einsum("xj,ijc->ixc", _stretch(left, w, width), image.astype(jnp.float32)) + 0.5
    )
    return jnp.floor(einsum("yi,ixc->yxc", _stretch(top, h, height), rows) + 0.5).astype(jnp.uint8)


def _stretch(start: jax.Array, length: jax.Array, size: int) -> jax.Array:
    """Linear-interpolation weights [size, size] that stretch start..start + length to 0..size."""
    places = jnp.arange(size, dtype=jnp.float32)
    source = (places + 0.5) * (length / size) - 0.5
    # Pixels outside the box are never read: its edge pixels repeat.
    source = start.astype(jnp.float32) + jnp.clip(source, 0, (length - 1).astype(jnp.float32))
    return jnp.maximum(0, 1 - jnp.abs(source[:, None] - places[None]))
