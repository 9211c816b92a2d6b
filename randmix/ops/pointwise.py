"""Channel mixing: 1x1 convolutions as matrix products, and the patch stem."""

import jax
import jax.numpy as jnp


def pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Mixes the channels of every pixel: ``y[..., o] = sum_c x[..., c] kernel[c, o]``.

    This is a product instead of a convolution, so that it stays a (batched) product under a `vmap`
    over models. A vmapped 1x1 convolution becomes a grouped one, for which the SPMD partitioner
    all-gathers the batch. On a CPU the pixels are flattened first, because XLA lowers a product
    with several leading axes to a slow loop; on other platforms flattening would dictate a layout
    and cause copies.

    Args:
        x: [..., C_in], any floating dtype.
        kernel: [C_in, C_out], cast to ``x.dtype``.

    Returns:
        [..., C_out] in ``x.dtype``. XLA accumulates bfloat16 products in float32 by itself;
        requesting that with ``preferred_element_type`` would make the two products of the backward
        pass float32 products.

    Raises:
        ValueError: the kernel isn't [C_in, C_out].
    """
    if kernel.ndim != 2 or kernel.shape[0] != x.shape[-1]:
        raise ValueError(
            f"a pointwise kernel for x {list(x.shape)} must be [{x.shape[-1]}, C_out], "
            f"got {list(kernel.shape)}"
        )
    kernel = kernel.astype(x.dtype)
    return jax.lax.platform_dependent(x, kernel, cpu=_flat_product, default=jnp.dot)


def patch_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Maps every patch of p x p pixels to one pixel: a p x p convolution of stride p, no padding.

    On a CPU it is computed as a product of rearranged patches, for which a TPU would copy the
    images four times.

    Args:
        x: [N, H, W, C], any floating dtype; p must divide H and W.
        kernel: [p, p, C, C_out], cast to ``x.dtype``.

    Returns:
        [N, H/p, W/p, C_out] in ``x.dtype``.
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
