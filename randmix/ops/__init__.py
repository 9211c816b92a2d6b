"""Mixing operators, each with its plain reference beside the fast form."""

import jax.numpy as jnp


def sum_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype in which arrays of ``dtype`` are summed: float32, or float64 for float64.

    >>> sum_dtype(jnp.bfloat16)
    dtype('float32')
    """
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)
