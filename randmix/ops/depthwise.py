"""Spatial mixing: a depthwise convolution that skips the gradients of frozen kernels.

A frozen kernel is one that isn't differentiated: stopped, closed over, or not an argument of
`jax.grad`. JAX informs the operator (`symbolic_zeros=True`), which then neither saves its input for
the weight gradient nor computes that gradient; no argument of the model says what is frozen. The
weight gradient runs under the name scope ``depthwise_weight_gradient``, so the compiled text shows
whether a step contains one.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from randmix.ops import shift_sum, sum_dtype

Array = jax.Array


def depthwise(x: Array, kernel: Array, *, stride: int = 1, method: str | None = None) -> Array:
    """Depthwise cross-correlation with 'same' padding: each channel has its own m kernels.

    Rows and columns are padded with (k - 1) // 2 zeros before and k - 1 - (k - 1) // 2 after, as
    with PyTorch's ``padding="same"``: one less at the top and left for even k. A kernel may be
    larger than the image. Supports reverse mode only: `jax.jvp` isn't defined.

    Args:
        x: [N, H, W, C], any floating dtype.
        kernel: [k, k, C] or [k, k, C, m], any floating dtype.
        stride: stride of rows and columns, at least 1.
        method: None selects "shift_sum" in programs compiled for a CPU and "grouped" elsewhere.
            Either name forces that form; "grouped", XLA's own convolution, is the plain reference.

    Returns:
        [N, H', W', C m] in ``x.dtype``, H' = (H - 1) // stride + 1 and likewise for W'. Channel
        c m + j is channel c of x filtered by kernel[:, :, c, j]. Products are summed in float32
        (float64 for float64), and so is the weight gradient ("grouped" rounds it to ``x.dtype``
        once).

    Raises:
        ValueError: shapes or dtypes don't fit, the stride is below 1, or the method is unknown.
    """
    _check(x, kernel, stride, method)
    shape = kernel.shape if kernel.ndim == 4 else (*kernel.shape, 1)
    kernel = kernel.astype(sum_dtype(x.dtype)).reshape(shape)
    _, height, width, _ = x.shape
    return _depthwise(_Geometry((height, width), shape[0], stride, method), x, kernel)


def _check(x, kernel, stride, method):
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
    if method is not None and method not in METHODS:
        raise ValueError(f"unknown method {method!r}; choose one of {', '.join(METHODS)}, or None")


class _Geometry(NamedTuple):
    """What the backward pass must know if neither x nor the kernel was saved."""

    size: tuple[int, int]
    kernel_size: int
    stride: int
    method: str | None


class _Method(NamedTuple):
    """One implementation; see `randmix.ops.shift_sum` for the three signatures."""

    convolve: Callable
    input_gradient: Callable
    weight_gradient: Callable


def _grouped(x, kernel, stride):
    k, _, channels, multiplier = kernel.shape
    return jax.lax.conv_general_dilated(
        x,
        kernel.reshape(k, k, 1, channels * multiplier).astype(x.dtype),
        window_strides=(stride, stride),
        padding=[((k - 1) // 2, k // 2)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=channels,
    )


def _grouped_input_gradient(g, kernel, size, stride):
    # One kernel per channel at a time, because a grouped convolution with more than one input per
    # group makes the SPMD partitioner gather the entire batch.
    multiplier = kernel.shape[-1]
    x = jax.ShapeDtypeStruct((g.shape[0], *size, kernel.shape[2]), g.dtype)
    return sum(
        jax.linear_transpose(lambda x, j=j: _grouped(x, kernel[..., j, None], stride), x)(
            g[..., j::multiplier]
        )[0]
        for j in range(multiplier)
    )


def _grouped_weight_gradient(x, g, kernel_size, stride):
    channels = x.shape[-1]
    shape = (kernel_size, kernel_size, channels, g.shape[-1] // channels)
    kernel = jax.ShapeDtypeStruct(shape, sum_dtype(x.dtype))
    return jax.linear_transpose(lambda kernel: _grouped(x, kernel, stride), kernel)(g)[0]


METHODS = {
    "grouped": _Method(_grouped, _grouped_input_gradient, _grouped_weight_gradient),
    "shift_sum": _Method(shift_sum.convolve, shift_sum.input_gradient, shift_sum.weight_gradient),
}


def _run(name, method, arrays, *static):
    """Calls one function of a method, by default of the method for the target platform."""

    def function(method):
        return lambda *arrays: getattr(METHODS[method], name)(*arrays, *static)

    if method is not None:
        return function(method)(*arrays)
    # Decided at lowering, not by `jax.default_backend()`: a machine with only CPUs can compile for
    # a TPU pod.
    return jax.lax.platform_dependent(
        *arrays, cpu=function("shift_sum"), default=function("grouped")
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _depthwise(geometry, x, kernel):
    return _run("convolve", geometry.method, (x, kernel), geometry.stride)


def _forward(geometry, x, kernel):
    saved = (x.value if kernel.perturbed else None, kernel.value if x.perturbed else None)
    return _depthwise(geometry, x.value, kernel.value), saved


def _backward(geometry, saved, g):
    x, kernel = saved
    size, k, stride, method = geometry
    if isinstance(g, jax.custom_derivatives.SymbolicZero):
        return None, None
    dx = dkernel = None
    if kernel is not None:
        dx = _run("input_gradient", method, (g, kernel), size, stride)
    if x is not None:
        with jax.named_scope("depthwise_weight_gradient"):
            dkernel = _run("weight_gradient", method, (x, g), k, stride)
    return dx, dkernel


_depthwise.defvjp(_forward, _backward, symbolic_zeros=True)
