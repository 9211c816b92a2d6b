"""Activation functions by name."""

from collections.abc import Callable

import jax

Array = jax.Array


def gelu(x: Array) -> Array:
    """Exact GELU, x Phi(x), with erf: XLA computes it faster than the erfc of `jax.nn.gelu`."""
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


def _identity(x: Array) -> Array:
    return x


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "relu": jax.nn.relu,
    "identity": _identity,
}
