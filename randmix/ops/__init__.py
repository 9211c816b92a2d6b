"""Mixing operators, each with its plain reference beside the fast form.

They take arrays of any floating dtype. Convolutions round their kernels to float32 and sum in it;
`pointwise` and `patch_product` compute in the dtype of x.
"""

import jax


def match_rank(array: jax.Array, x: jax.Array) -> jax.Array:
    """Leading axes of length 1 up to the rank of ``x``: [C] to [1, 1, 1, C] beside [N, H, W, C]."""
    return jax.lax.broadcast_to_rank(array, x.ndim)
