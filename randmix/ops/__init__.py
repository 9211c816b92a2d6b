"""Mixing operators, each with its plain reference beside the fast form."""

import jax
import jax.numpy as jnp


def sum_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype in which arrays of ``dtype`` are summed: float32, or float64 for float64.

    >>> sum_dtype(jnp.bfloat16)
    dtype('float32')
    """
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def match_rank(array: jax.Array, x: jax.Array) -> jax.Array:
    """Leading axes of length 1 up to the rank of ``x``: [C] to [1, 1, 1, C] beside [N, H, W, C]."""
    return jax.lax.broadcast_to_rank(array, x.ndim)
