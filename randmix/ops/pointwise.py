"""Channel mixing: a 1x1 convolution written as one matrix product."""

import jax
import jax.numpy as jnp


def pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Mixes the channels of every pixel: ``y[..., o] = sum_c x[..., c] kernel[c, o]``.

    The pixels are flattened before the product. XLA:CPU lowers a product with several leading axes to a
    slow loop, and a `vmap` over models then stays a (batched) product, where a vmapped 1x1 convolution
    becomes a grouped one, which the SPMD partitioner answers with an all-gather of the batch.

    Args:
        x: [..., C_in], any floating dtype.
        kernel: [C_in, C_out], cast to ``x.dtype``.

    Returns:
        [..., C_out] in ``x.dtype``. XLA accumulates bfloat16 products in float32; asking for that with
        ``preferred_element_type`` would turn the two products of the backward pass into float32 ones.

    Raises:
        ValueError: the kernel isn't [C_in, C_out].
    """
    if kernel.ndim != 2 or kernel.shape[0] != x.shape[-1]:
        raise ValueError(
            f"a pointwise kernel for x {list(x.shape)} is [{x.shape[-1]}, C_out], got {list(kernel.shape)}"
        )
    flat = x.reshape(-1, x.shape[-1])
    return jnp.dot(flat, kernel.astype(x.dtype)).reshape(*x.shape[:-1], kernel.shape[1])
