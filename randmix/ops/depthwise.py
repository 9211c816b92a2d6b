"""Spatial mixing: a depthwise convolution that skips the gradients of frozen kernels.

The weight gradient runs under the name scope ``depthwise_weight_gradient``; see
`randmix.ops.convolution`.
"""

import jax
import jax.numpy as jnp

from randmix.ops.convolution import Form, Forms, Geometry, convolve, same_convolution, transposed
from randmix.ops.cpu import shift_sum

Array = jax.Array

METHODS = ("auto", "grouped", "shift_sum")


def depthwise(x: Array, kernel: Array, *, stride: int = 1, method: str = "auto") -> Array:
    """Depthwise cross-correlation with 'same' padding: each channel has its own m kernels.

    Rows and columns are padded with (k - 1) // 2 zeros before and k - 1 - (k - 1) // 2 after, as
    with PyTorch's ``padding="same"``: one less at the top and left for even k. A kernel may be
    larger than the image. Supports reverse mode only: `jax.jvp` isn't defined.

    Args:
        x: [N, H, W, C], any floating dtype.
        kernel: [k, k, C] or [k, k, C, m], any floating dtype.
        stride: stride of rows and columns, at least 1.
        method: "auto" selects "shift_sum" in programs compiled for a CPU and "grouped" elsewhere.
            Either name forces that form; "grouped", XLA's own convolution, is the plain reference.

    Returns:
        [N, H', W', C m] in ``x.dtype``, H' = (H - 1) // stride + 1 and likewise for W'. Channel
        c m + j is channel c of x filtered by kernel[:, :, c, j]. Products are summed in float32,
        and so is the weight gradient ("grouped" rounds it to ``x.dtype`` once).

    Raises:
        ValueError: shapes or dtypes don't fit, the stride is below 1, or the method is unknown.
    """
    check(x, kernel, stride)
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; choose one of {', '.join(METHODS)}")
    shape = kernel.shape if kernel.ndim == 4 else (*kernel.shape, 1)
    kernel = kernel.astype(jnp.float32).reshape(shape)
    return convolve(_FORMS[method], x, kernel, stride)


def check(x: Array, kernel: Array, stride: int) -> None:
    """Raises a ValueError unless x, a depthwise kernel and the stride fit."""
    if x.ndim != 4:
        raise ValueError(f"x must be [N, H, W, C], got {list(x.shape)}")
    c, k = x.shape[-1], kernel.shape[0] if kernel.ndim else 0
    if kernel.ndim not in (3, 4) or 0 in kernel.shape or kernel.shape[:3] != (k, k, c):
        raise ValueError(
            f"a depthwise kernel for x {list(x.shape)} must be [k, k, {c}] or [k, k, {c}, m], "
            f"got {list(kernel.shape)}"
        )
    for name, array in (("x", x), ("kernel", kernel)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name} must be floating, got {array.dtype}; cast it first")
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")


def grouped(x: Array, kernel: Array, stride: int) -> Array:
    """XLA's grouped convolution; the kernel is [k, k, C, m]."""
    k, _, channels, multiplier = kernel.shape
    kernel = kernel.reshape(k, k, 1, channels * multiplier).astype(x.dtype)
    return same_convolution(x, kernel, stride, groups=channels)


def _grouped_input_gradient(g: Array, kernel: Array, geometry: Geometry) -> Array:
    # One kernel per channel at a time, because a grouped convolution with more than one input per
    # group makes the SPMD partitioner gather the entire batch.
    multiplier = kernel.shape[-1]
    return sum(  # pyright: ignore[reportReturnType] (m >= 1, so it is no int 0)
        _TRANSPOSED.input_gradient(g[..., j::multiplier], kernel[..., j, None], geometry)
        for j in range(multiplier)
    )


_TRANSPOSED = transposed(grouped)
_GROUPED = _TRANSPOSED._replace(input_gradient=_grouped_input_gradient)
_SHIFT_SUM = Form(shift_sum.convolve, shift_sum.input_gradient, shift_sum.weight_gradient)
_SCOPE = "depthwise_weight_gradient"
_FORMS = {
    "auto": Forms(cpu=_SHIFT_SUM, default=_GROUPED, scope=_SCOPE),
    "grouped": Forms(cpu=_GROUPED, default=_GROUPED, scope=_SCOPE),
    "shift_sum": Forms(cpu=_SHIFT_SUM, default=_SHIFT_SUM, scope=_SCOPE),
}
