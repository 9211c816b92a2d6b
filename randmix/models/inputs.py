"""How images enter a model: in [0, 1], normalised by the model's own numbers."""

import jax
import jax.numpy as jnp

from randmix.errors import UserError


def normalize(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """(images - mean) / std, a number a channel; without numbers the images as they are."""
    if not mean:
        return images
    return (images - jnp.asarray(mean, images.dtype)) / jnp.asarray(std, images.dtype)


def check_channels(channels: int, *, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Raises a UserError where images of so many channels don't fit the normalisation."""
    for name, numbers in (("mean", mean), ("std", std)):
        if numbers and len(numbers) != channels:
            raise UserError(
                f"{name}: got {len(numbers)} numbers, allowed {channels} (one a channel) or none"
            )
