"""A depthwise-pointwise pair as one dense convolution."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from randmix.ops.cpu import dense as on_cpu
from randmix.ops.separable import compose, dense, separable, separable_reference

pytestmark = pytest.mark.slow

# x's shape, k, m, C_out, stride
CASES = {
    "3x3, m = 9": ((2, 8, 8, 4), 3, 9, 5, 1),
    "stride 2": ((2, 9, 8, 3), 3, 2, 4, 2),
    "7x7 stem": ((1, 16, 15, 3), 7, 3, 8, 2),
    "even, larger than the image": ((1, 3, 5, 2), 8, 1, 3, 1),
    "1x1": ((2, 4, 4, 3), 1, 2, 3, 1),
}


def draw(shape, seed):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def factors(case):
    x_shape, k, m, features, stride = CASES[case]
    return (
        draw(x_shape, 0),
        draw((k, k, x_shape[3], m), 1),
        draw((x_shape[3] * m, features), 2),
        stride,
    )


def two_steps_in_float64(x, depthwise_kernel, pointwise_kernel, g, stride):
    """PyTorch's grouped convolution, then its 1x1 convolution, and the cotangents of the three."""
    import torch

    k, _, c, m = depthwise_kernel.shape
    tensors = [
        torch.tensor(a, dtype=torch.float64, requires_grad=True)
        for a in (x, depthwise_kernel, pointwise_kernel)
    ]
    images, spatial, channel = tensors
    lo, hi = (k - 1) // 2, k - 1 - (k - 1) // 2
    padded = torch.nn.functional.pad(images.permute(0, 3, 1, 2), (lo, hi, lo, hi))
    between = torch.nn.functional.conv2d(
        padded, spatial.permute(2, 3, 0, 1).reshape(c * m, 1, k, k), stride=stride, groups=c
    )
    y = torch.nn.functional.conv2d(between, channel.T[:, :, None, None]).permute(0, 2, 3, 1)
    y.backward(torch.tensor(g, dtype=torch.float64))
    return [a.detach().numpy() for a in (y, *(tensor.grad for tensor in tensors))]


@functools.partial(jax.jit, static_argnames=("function", "stride"))
def result_and_gradients(function, x, depthwise_kernel, pointwise_kernel, g, stride):
    y, pull = jax.vjp(
        functools.partial(function, stride=stride), x, depthwise_kernel, pointwise_kernel
    )
    return y, *pull(g)


@pytest.mark.parametrize("function", [separable, separable_reference])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_two_steps_in_float64(case, function):
    x, spatial, channel, stride = factors(case)
    g = draw((x.shape[0], -(-x.shape[1] // stride), -(-x.shape[2] // stride), channel.shape[1]), 3)
    got = result_and_gradients(function, x, spatial, channel, g, stride)
    for array, reference in zip(
        got, two_steps_in_float64(x, spatial, channel, g, stride), strict=True
    ):
        np.testing.assert_allclose(array, reference, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_two_steps(case):
    x, spatial, channel, stride = factors(case)
    g = draw((x.shape[0], -(-x.shape[1] // stride), -(-x.shape[2] // stride), channel.shape[1]), 3)
    composed, two_steps = (
        result_and_gradients(function, x, spatial, channel, g, stride)
        for function in (separable, separable_reference)
    )
    for array, reference in zip(composed, two_steps, strict=True):
        np.testing.assert_allclose(array, reference, rtol=2e-4, atol=2e-4)


def test_the_composed_kernel_is_that_of_the_appendix():
    _, spatial, channel, _ = factors("3x3, m = 9")
    expected = np.zeros((3, 3, 4, 5))
    for c in range(4):
        for j in range(9):
            expected[:, :, c] += spatial[:, :, c, j, None].astype(np.float64) * channel[c * 9 + j]
    np.testing.assert_allclose(compose(spatial, channel), expected, rtol=1e-5, atol=1e-5)


def test_kernels_that_do_not_belong_together_are_refused():
    message = r"after depthwise \[3, 3, 4, 2\] must be \[8, C_out\], got \[4, 10\]"
    with pytest.raises(ValueError, match=message):
        compose(np.ones((3, 3, 4, 2)), np.ones((4, 10)))
    with pytest.raises(ValueError, match=r"must be \[k, k, C, m\], got \[3, 3, 4\]"):
        compose(np.ones((3, 3, 4)), np.ones((4, 10)))


@pytest.mark.parametrize(
    ("trained", "convolutions"), [((0,), 2), ((0, 1), 3), ((0, 2), 3), ((0, 1, 2), 3), ((1, 2), 2)]
)
def test_the_dense_weight_gradient_is_computed_once_and_only_if_asked_for(trained, convolutions):
    """A separate convolution on a TPU, none on a CPU."""
    x, spatial, channel, _ = factors("3x3, m = 9")
    traced = jax.jit(jax.grad(lambda *a: jnp.square(separable(*a)).sum(), trained)).trace(
        x, spatial, channel
    )
    program = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert program.count("stablehlo.convolution") == convolutions
    program = traced.lower(lowering_platforms=("cpu",))
    assert program.as_text().count("stablehlo.convolution") == 1 + (0 in trained)
    named = re.search(r"dense_weight_gradient\b", program.as_text(debug_info=True))
    assert bool(named) == (trained != (0,))


# x's shape, C_out, k, stride; bytes of patches at a time
PATCHES = {
    "some images at a time": ((12, 8, 8, 16), 4, 3, 1, 4 * 8 * 8 * 144 * 4),
    "image by image": ((3, 9, 8, 3), 5, 3, 2, 1),
    "kernel row by row": ((4, 6, 7, 40), 2, 3, 2, 2**20),
    "7x7": ((4, 16, 15, 3), 4, 7, 2, 2 * 8 * 8 * 147 * 4),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("case", PATCHES)
def test_the_weight_gradient_of_patches_is_that_of_the_convolution(case, dtype, monkeypatch):
    shape, features, k, stride, at_a_time = PATCHES[case]
    monkeypatch.setattr(on_cpu, "_PATCHES", at_a_time)
    x, kernel = jnp.asarray(draw(shape, 0), dtype), jnp.zeros((k, k, shape[-1], features), dtype)
    y, pull = jax.vjp(lambda kernel: dense(x, kernel, stride=stride), kernel)
    g = jnp.asarray(draw(y.shape, 1), dtype)
    (got,) = pull(g)
    assert got.dtype == dtype
    patches = jax.lax.conv_general_dilated_patches(
        x.astype(jnp.float32),
        (k, k),
        (stride, stride),
        [((k - 1) // 2, k // 2)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    expected = np.einsum(
        "nhwp,nhwo->po", np.asarray(patches, np.float64), np.asarray(g, np.float64)
    )
    expected = expected.reshape(shape[-1], k, k, features).transpose(1, 2, 0, 3)
    rounding = 1e-5 if dtype == jnp.float32 else 2**-8
    np.testing.assert_allclose(got.astype(jnp.float32), expected, rtol=rounding, atol=1e-4)


def test_on_a_cpu_convolutions_inside_a_loop_are_the_quick_ones():
    """XLA:CPU has a quick form for this order of axes, which it restores only outside loops."""
    x, spatial, channel, _ = factors("3x3, m = 9")
    gradient = jax.grad(lambda x: jnp.square(separable(x, spatial, channel)).sum())
    climb = jax.jit(lambda x: jax.lax.fori_loop(0, 3, lambda _, x: x + gradient(x), x))
    orders = re.findall(
        r" convolution\(.*dim_labels=(\w+->\w+)", climb.lower(x).compile().as_text()
    )
    assert set(orders) == {"b01f_01io->b01f"}
    assert len(orders) >= 2


def test_frozen_factors_keep_no_input_for_the_backward_pass():
    x, spatial, channel, _ = factors("3x3, m = 9")

    def saved_shapes(function, *arguments):
        return [leaf.shape for leaf in jax.tree.leaves(jax.vjp(function, *arguments)[1])]

    assert x.shape not in saved_shapes(lambda x: separable(x, spatial, channel), x)
    assert x.shape in saved_shapes(lambda channel: separable(x, spatial, channel), channel)


def test_in_bfloat16_one_rounding_beats_two():
    x, spatial, channel, _ = factors("3x3, m = 9")
    x = jnp.asarray(x, jnp.bfloat16)
    exact = separable(x.astype(jnp.float32), spatial, channel)

    def error(function):
        y = function(x, spatial, channel)
        assert y.dtype == jnp.bfloat16
        return float(
            jnp.sqrt(jnp.square(y.astype(jnp.float32) - exact).mean() / jnp.square(exact).mean())
        )

    assert error(separable) < error(separable_reference) < 2**-7
    assert error(separable) < 2**-8


def test_a_batch_over_eight_devices_is_never_gathered(monkeypatch):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    # The weight gradient in two rounds of eight images, one per device.
    monkeypatch.setattr(on_cpu, "_PATCHES", 8 * 4 * 4 * 72 * 4)
    x, spatial, channel = draw((16, 4, 4, 8), 0), draw((3, 3, 8, 9), 1), draw((72, 8), 2)
    gradient = jax.jit(
        jax.grad(lambda *a: jnp.sin(separable(jnp.sin(a[0]), *a[1:])).sum(), (0, 1, 2))
    )
    whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    sharded = [
        jax.device_put(a, s)
        for a, s in zip((x, spatial, channel), (split, whole, whole), strict=True)
    ]
    compiled = gradient.lower(*sharded).compile()
    text = compiled.as_text()
    assert "all-gather" not in text
    assert " while(" in text
    for a, b in zip(gradient(x, spatial, channel), compiled(*sharded), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("x", "spatial", "channel", "stride", "message"),
    [
        ((4, 4, 2), (3, 3, 2, 9), (18, 4), 1, r"x must be \[N, H, W, C\], got \[4, 4, 2\]"),
        (
            (1, 4, 4, 2),
            (3, 3, 2),
            (18, 4),
            1,
            r"the depthwise kernel must be \[k, k, C, m\], got \[3, 3, 2\]",
        ),
        ((1, 4, 4, 2), (3, 3, 3, 9), (27, 4), 1, r"got \[3, 3, 3, 9\]"),
        (
            (1, 4, 4, 2),
            (3, 3, 2, 9),
            (9, 4),
            1,
            r"depthwise \[3, 3, 2, 9\] must be \[18, C_out\], got \[9, 4\]",
        ),
        ((1, 4, 4, 2), (3, 3, 2, 9), (18, 4), 0, "stride must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(x, spatial, channel, stride, message):
    with pytest.raises(ValueError, match=message):
        separable(jnp.zeros(x), jnp.zeros(spatial), jnp.zeros(channel), stride=stride)
