"""Channel mixing: a 1x1 convolution written as one matrix product."""

import jax
import jax.numpy as jnp


def pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Mixes the channels of every pixel: ``y[..., o] = sum_c x[..., c] kernel[c, o]``.

    A product, not a convolution: a `vmap` over models stays a (batched) product, where a vmapped 1x1
    convolution becomes a grouped one, which the SPMD partitioner answers with an all-gather of the batch. For
    a CPU the pixels are flattened first, because XLA lowers a product with several leading axes to a slow
    loop there; elsewhere flattening would dictate a layout, and the copies that come with it.

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
    kernel = kernel.astype(x.dtype)
    return jax.lax.platform_dependent(x, kernel, cpu=_flat_product, default=jnp.dot)


def patch_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Mixes every patch of p x p pixels into one: a p x p convolution of stride p, without padding.

    Args:
        x: [N, H, W, C], any floating dtype; p divides H and W.
        kernel: [p, p, C, C_out], cast to ``x.dtype``.

    Returns:
        [N, H/p, W/p, C_out] in ``x.dtype``. For a CPU it is a product of rearranged patches; a TPU would copy the
        images four times for that.
    """
    return jax.lax.platform_dependent(
        x, kernel.astype(x.dtype), cpu=_product_of_patches, default=_strided_convolution
    )


def _flat_product(x, kernel):
    return jnp.dot(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], kernel.shape[1])


def _product_of_patches(x, kernel):
    (n, h, w, c), p = x.shape, kernel.shape[0]
    patches = x.reshape(n, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5)
    return _flat_product(
        patches.reshape(n, h // p, w // p, p * p * c), kernel.reshape(p * p * c, -1)
    )


def _strided_convolution(x, kernel):
    p = kernel.shape[0]
    return jax.lax.conv_general_dilated(
        x, kernel, (p, p), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
