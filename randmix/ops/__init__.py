"""Mixing operators, each with its plain reference beside the fast form.

They take arrays of any floating dtype and sum in float32, to which float64 is rounded.
"""

import jax


def match_rank(array: jax.Array, x: jax.Array) -> jax.Array:
    """Leading axes of length 1 up to the rank of ``x``: [C] to [1, 1, 1, C] beside [N, H, W, C]."""
    return jax.lax.broadcast_to_rank(array, x.ndim)
