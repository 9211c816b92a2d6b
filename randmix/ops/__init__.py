"""Mixing operators, each fast form beside its plain reference."""

import jax.numpy as jnp


def sum_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype in which sums over arrays of ``dtype`` run: float32, or float64 for float64.

    >>> sum_dtype(jnp.bfloat16)
    dtype('float32')
    """
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)
