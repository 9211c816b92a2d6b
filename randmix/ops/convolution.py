"""Convolutions with 'same' padding that skip the gradients of frozen arrays.

A frozen array is one that isn't differentiated: stopped, closed over, or not an argument of
`jax.grad`. JAX informs the operator (`symbolic_zeros=True`), which then neither computes that
gradient nor saves what only that gradient needs; no argument of a model says what is frozen. The
weight gradient runs under a name scope, so the compiled text shows whether a step contains one.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax

Array = jax.Array


class Geometry(NamedTuple):
    """What a backward pass must know about arrays that weren't saved.

    Attributes:
        x: shape [N, H, W, C] and dtype of the input.
        kernel: shape [k, k, C, m] (depthwise) or [k, k, C, C_out] (dense) and dtype of the kernel.
        stride: stride of rows and columns.
    """

    x: jax.ShapeDtypeStruct
    kernel: jax.ShapeDtypeStruct
    stride: int


class Form(NamedTuple):
    """One implementation of a convolution, which is linear in x and in the kernel.

    Attributes:
        result: from x, kernel and the stride.
        input_gradient: the cotangent of x, from that of the result and kernel.
        weight_gradient: the cotangent of the kernel, from x and the cotangent of the result.
    """

    result: Callable[[Array, Array, int], Array]
    input_gradient: Callable[[Array, Array, Geometry], Array]
    weight_gradient: Callable[[Array, Array, Geometry], Array]


class Forms(NamedTuple):
    """The forms of a convolution by platform, and the name scope of its weight gradient."""

    cpu: Form
    default: Form
    scope: str


def convolve(forms: Forms, x: Array, kernel: Array, stride: int) -> Array:
    """Convolves x with the kernel; supports reverse mode only: `jax.jvp` isn't defined.

    Args:
        forms: how the result and the gradients are computed.
        x: [N, H, W, C], any floating dtype.
        kernel: as the forms expect it.
        stride: stride of rows and columns, at least 1.

    Returns:
        [N, (H - 1) // stride + 1, (W - 1) // stride + 1, features] in ``x.dtype``.
    """
    shape, kernel_shape = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (x, kernel))
    return _convolve(forms, Geometry(shape, kernel_shape, stride), x, kernel)


def same_padding(kernel_size: int) -> tuple[int, int]:
    """Zeros before and after rows and columns, as with PyTorch's ``padding="same"``."""
    return (kernel_size - 1) // 2, kernel_size // 2


def same_convolution(x: Array, kernel: Array, stride: int, *, groups: int = 1) -> Array:
    """XLA's own convolution; the kernel is [k, k, C / groups, features] in ``x.dtype``."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[same_padding(kernel.shape[0])] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def transposed(result: Callable[[Array, Array, int], Array]) -> Form:
    """The form whose gradients are JAX's transposes of its result."""

    def input_gradient(g: Array, kernel: Array, geometry: Geometry) -> Array:
        transpose = jax.linear_transpose(lambda x: result(x, kernel, geometry.stride), geometry.x)
        return transpose(g)[0]

    def weight_gradient(x: Array, g: Array, geometry: Geometry) -> Array:
        transpose = jax.linear_transpose(
            lambda kernel: result(x, kernel, geometry.stride), geometry.kernel
        )
        return transpose(g)[0]

    return Form(result, input_gradient, weight_gradient)


# Jitted so that layers of equal shapes are traced once, inlined so that the program is the same.
@functools.partial(jax.jit, static_argnums=(0, 1, 3), inline=True)
def _run(part: str, forms: Forms, arrays: tuple[Array, Array], static: Geometry | int) -> Array:
    """Computes one part of a form, that of the platform that the program is compiled for."""
    cpu, default = (getattr(form, part) for form in (forms.cpu, forms.default))
    if cpu is default:
        return default(*arrays, static)
    # Decided at lowering, not by `jax.default_backend()`: a machine with only CPUs can compile for
    # a TPU pod.
    return jax.lax.platform_dependent(
        *arrays, cpu=lambda *a: cpu(*a, static), default=lambda *a: default(*a, static)
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _convolve(forms: Forms, geometry: Geometry, x: Array, kernel: Array) -> Array:
    return _run("result", forms, (x, kernel), geometry.stride)


def _forward(forms, geometry, x, kernel):
    saved = (x.value if kernel.perturbed else None, kernel.value if x.perturbed else None)
    return _convolve(forms, geometry, x.value, kernel.value), saved


def _backward(forms, geometry, saved, g):
    x, kernel = saved
    if isinstance(g, jax.custom_derivatives.SymbolicZero):
        return None, None
    dx = dkernel = None
    if kernel is not None:
        dx = _run("input_gradient", forms, (g, kernel), geometry)
    if x is not None:
        with jax.named_scope(forms.scope):
            dkernel = _run("weight_gradient", forms, (x, g), geometry)
    return dx, dkernel


_convolve.defvjp(_forward, _backward, symbolic_zeros=True)
