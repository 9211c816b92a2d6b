"""Normalisation of input images, with constants that belong to the model."""

import jax
import jax.numpy as jnp

from randmix.errors import UserError
from randmix.ops import match_rank


def normalize(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """Returns (images - mean) / std, or the images unchanged if ``mean`` is empty.

    Args:
        images: [N, H, W, C] float in [0, 1].
        mean: one number per channel, or empty.
        std: one number per channel, or empty.
    """
    if not mean:
        return images
    centre, deviation = (match_rank(jnp.asarray(v, images.dtype), images) for v in (mean, std))
    return (images - centre) / deviation


def check_channels(channels: int, *, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Raises a UserError if images with that many channels don't fit the normalisation."""
    for name, numbers in (("mean", mean), ("std", std)):
        if numbers and len(numbers) != channels:
            raise UserError(
                f"{name}: got {len(numbers)} numbers, allowed {channels} (one per channel) or none"
            )
