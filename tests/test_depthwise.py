"""Depthwise convolution: values, gradients, and the savings of a frozen kernel."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from randmix.ops.depthwise import depthwise

SCOPE = "depthwise_weight_gradient"
# x's shape, kernel's shape, stride
CASES = {
    "3x3": ((2, 8, 8, 16), (3, 3, 16), 1),
    "even": ((2, 9, 7, 5), (8, 8, 5), 1),
    "larger than the image": ((1, 3, 2, 20), (9, 9, 20), 1),
    "multiplier": ((2, 5, 6, 3), (4, 4, 3, 2), 1),
    "stride 2": ((2, 9, 6, 4), (3, 3, 4, 3), 2),
    "stride 3, even": ((1, 8, 10, 2), (6, 6, 2), 3),
    "stride beyond the image": ((1, 4, 3, 2), (2, 2, 2), 5),
    "wide map": ((1, 3, 67, 2), (5, 5, 2), 1),
    "pairs": ((2, 5, 7, 32), (8, 8, 32), 1),
    "pairs, larger than the image": ((1, 3, 2, 16), (9, 9, 16), 1),
    "pairs, multiplier, stride 2": ((2, 8, 9, 8), (7, 7, 8, 2), 2),
    "pairs, stride 3, even": ((1, 8, 10, 16), (6, 6, 16), 3),
    "pairs, stride beyond the image": ((1, 4, 3, 16), (6, 6, 16), 5),
    "1x1": ((3, 4, 4, 3), (1, 1, 3), 1),
}


def draw(shape, seed):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def expected(x, kernel, g, stride):
    """The result and both cotangents in float64, from windows of the padded image."""
    x, kernel, g = (a.astype(np.float64) for a in (x, kernel, g))
    k = kernel.shape[0]
    kernel = kernel.reshape(*kernel.shape[:3], -1)
    lo, hi = (k - 1) // 2, k - 1 - (k - 1) // 2
    _, h, w, _ = x.shape
    padded = np.pad(x, ((0, 0), (lo, hi), (lo, hi), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (k, k), (1, 2))[
        :, ::stride, ::stride
    ]
    y = np.einsum("nhwcij,ijcm->nhwcm", windows, kernel)
    g = g.reshape(y.shape)
    dpadded = np.zeros_like(padded)
    for row in range(y.shape[1]):
        for column in range(y.shape[2]):
            here = np.s_[:, row * stride : row * stride + k, column * stride : column * stride + k]
            dpadded[here] += np.einsum("ncm,ijcm->nijc", g[:, row, column], kernel)
    dx = dpadded[:, lo : lo + h, lo : lo + w]
    return y.reshape(*y.shape[:3], -1), dx, np.einsum("nhwcij,nhwcm->ijcm", windows, g)


@functools.partial(jax.jit, static_argnames=("stride", "method"))
def result_and_gradients(x, kernel, g, stride=1, method="auto"):
    y, pull = jax.vjp(
        lambda x, kernel: depthwise(x, kernel, stride=stride, method=method), x, kernel
    )
    return y, *pull(g)


def output_shape(x, kernel, stride):
    n, h, w, c = x.shape
    return (
        n,
        (h - 1) // stride + 1,
        (w - 1) // stride + 1,
        c * (kernel.shape[3] if kernel.ndim == 4 else 1),
    )


@pytest.mark.parametrize("method", ["shift_sum", pytest.param("grouped", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_float64(case, method):
    x_shape, kernel_shape, stride = CASES[case]
    x, kernel = draw(x_shape, 0), draw(kernel_shape, 1)
    g = draw(output_shape(x, kernel, stride), 2)
    got = result_and_gradients(x, kernel, g, stride, method)
    y, dx, dkernel = expected(x, kernel, g, stride)
    for array, reference in zip(got, (y, dx, dkernel.reshape(kernel_shape)), strict=True):
        assert array.dtype == jnp.float32
        np.testing.assert_allclose(array, reference, rtol=1e-5, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kernel_size", [3, 4, 8])
def test_same_padding_and_channel_order_are_pytorchs(kernel_size):
    import torch

    x, kernel = draw((2, 7, 9, 3), 0), draw((kernel_size, kernel_size, 3, 2), 1)
    weight = torch.tensor(kernel.transpose(2, 3, 0, 1).reshape(6, 1, kernel_size, kernel_size))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns that an even kernel needs a padded copy
        y = torch.nn.functional.conv2d(
            torch.tensor(x.transpose(0, 3, 1, 2)), weight, padding="same", groups=3
        )
    np.testing.assert_allclose(
        depthwise(x, kernel), y.numpy().transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-5
    )


def test_bfloat16_sums_in_float32():
    x, kernel = draw((2, 8, 8, 16), 0), draw((8, 8, 16), 1)
    g = draw(x.shape, 2)
    x, g = (jnp.asarray(a, jnp.bfloat16) for a in (x, g))
    y, dx, dkernel = result_and_gradients(x, kernel, g)
    reference = expected(np.asarray(x), kernel, np.asarray(g), 1)
    assert (y.dtype, dx.dtype, dkernel.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    # One rounding to bfloat16's eight bits; the weight gradient is never rounded.
    np.testing.assert_allclose(y.astype(jnp.float32), reference[0], rtol=2**-8, atol=1e-5)
    np.testing.assert_allclose(dx.astype(jnp.float32), reference[1], rtol=2**-8, atol=1e-5)
    np.testing.assert_allclose(dkernel, reference[2][..., 0], rtol=1e-5, atol=2e-5)


def loss(kernel, x):
    return jnp.square(jnp.tanh(depthwise(jnp.tanh(x), kernel))).sum()


def x_gradient(kernel, x):
    return jax.grad(loss, 1)(kernel, x)


def text(function, *arguments):
    """The program before XLA simplifies it, with the names of its scopes."""
    return jax.jit(function).lower(*arguments).as_text(debug_info=True)


@pytest.mark.parametrize("method", ["shift_sum", "grouped"])
def test_a_frozen_kernel_has_no_weight_gradient_in_the_compiled_program(method):
    x, kernel = draw((1, 4, 4, 2), 0), draw((3, 3, 2), 1)

    def compiled(argnums):
        gradient = jax.grad(
            lambda kernel, x: depthwise(jnp.sin(x), kernel, method=method).var(), argnums
        )
        return jax.jit(gradient).lower(kernel, x).compile().as_text()

    assert SCOPE in compiled((0, 1))
    assert SCOPE not in compiled((1,))


def scanned(kernel, x):
    return jax.lax.scan(lambda y, kernel: (depthwise(y, kernel), None), x, kernel[None])[0].var()


@pytest.mark.parametrize(
    "freeze",
    [
        lambda kernel, x: jax.grad(lambda x: loss(kernel, x))(x),
        lambda kernel, x: jax.grad(lambda both: loss(jax.lax.stop_gradient(both[0]), both[1]))(
            (kernel, x)
        ),
        lambda kernel, x: jax.grad(jax.checkpoint(lambda x: loss(kernel, x)))(x),
        lambda kernel, x: jax.vmap(x_gradient, (0, None))(jnp.stack([kernel, kernel]), x),
        lambda kernel, x: jax.grad(scanned, 1)(kernel, x),
    ],
    ids=["closed over", "stopped", "remat", "vmap of grad", "scan"],
)
def test_every_way_to_freeze_is_seen(freeze):
    x, kernel = draw((1, 4, 4, 2), 0), draw((3, 3, 2), 1)
    assert SCOPE not in text(freeze, kernel, x)


def test_a_trained_kernel_has_its_weight_gradient_and_an_input_that_is_data_has_none():
    x, kernel = draw((1, 4, 4, 2), 0), draw((3, 3, 2), 1)
    program = text(
        jax.grad(lambda kernel, x: depthwise(x, kernel, method="grouped").var()), kernel, x
    )
    assert SCOPE in program
    assert program.count("stablehlo.convolution") == 2  # the result and the weight gradient


def saved_shapes(function, *arguments):
    return [leaf.shape for leaf in jax.tree.leaves(jax.vjp(function, *arguments)[1])]


def test_the_backward_pass_keeps_only_what_it_needs():
    x, kernel = draw((1, 4, 5, 2), 0), draw((3, 3, 2), 1)
    assert x.shape not in saved_shapes(lambda x: depthwise(x, kernel), x)
    assert x.shape in saved_shapes(lambda kernel: depthwise(x, kernel), kernel)
    assert kernel.size not in map(
        np.prod, saved_shapes(lambda kernel: depthwise(x, kernel), kernel)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "kernel_shape"),
    [("shift_sum", (4, 4, 3, 2)), ("shift_sum", (6, 6, 16)), ("grouped", (4, 4, 3, 2))],
)
def test_vmap_over_kernels_and_remat_change_no_value(method, kernel_shape):
    x, kernels = draw((2, 5, 4, kernel_shape[2]), 0), draw((2, *kernel_shape), 1)

    def gradients(kernel, x):
        return jax.grad(
            lambda kernel, x: jnp.sin(depthwise(x, kernel, method=method)).sum(), (0, 1)
        )(kernel, x)

    def rematerialised(kernel, x):
        function = jax.checkpoint(
            lambda kernel, x: jnp.sin(depthwise(x, kernel, method=method)).sum()
        )
        return jax.grad(function, (0, 1))(kernel, x)

    one_by_one = [jax.jit(gradients)(kernel, x) for kernel in kernels]
    together = jax.jit(jax.vmap(gradients, (0, None)))(kernels, x)
    again = jax.jit(rematerialised)(kernels[0], x)
    for i in range(2):
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a, b[i], rtol=1e-5, atol=1e-5),
            one_by_one[i],
            together,
        )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), one_by_one[0], again
    )


def test_the_form_follows_the_platform_that_a_program_is_lowered_for():
    x, kernel = draw((1, 4, 4, 2), 0), draw((3, 3, 2), 1)
    traced = jax.jit(jax.grad(loss, (0, 1))).trace(kernel, x)
    for platform in ("tpu", "cuda"):
        lowered = traced.lower(lowering_platforms=(platform,)).as_text()
        assert lowered.count("stablehlo.convolution") == 3
        assert "inlineable" not in lowered
    lowered = traced.lower(lowering_platforms=("cpu",)).as_text()
    assert lowered.count("stablehlo.convolution") == 0
    assert "inlineable" in lowered


@pytest.mark.slow
@pytest.mark.parametrize("method", ["shift_sum", "grouped"])
@pytest.mark.parametrize("kernel_shape", [(3, 3, 16), (3, 3, 4, 2), (6, 6, 16)])
def test_a_batch_over_eight_devices_is_never_gathered(method, kernel_shape):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x, kernel = draw((16, 4, 4, kernel_shape[2]), 0), draw(kernel_shape, 1)

    def gradients(kernel, x):
        return jax.grad(
            lambda kernel, x: jnp.sin(depthwise(jnp.sin(x), kernel, method=method)).sum(), (0, 1)
        )(kernel, x)

    one = jax.jit(gradients)(kernel, x)
    sharded = (
        jax.device_put(kernel, NamedSharding(mesh, PartitionSpec())),
        jax.device_put(x, NamedSharding(mesh, PartitionSpec("data"))),
    )
    compiled = jax.jit(gradients).lower(*sharded).compile()
    assert "all-gather" not in compiled.as_text()
    # the sum of the weight gradient, which shows that this is the right text
    assert "all-reduce" in compiled.as_text()
    for a, b in zip(one, compiled(*sharded), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "options", "message"),
    [
        ((4, 4, 2), (3, 3, 2), {}, r"x must be \[N, H, W, C\], got \[4, 4, 2\]"),
        (
            (1, 4, 4, 2),
            (3, 2, 2),
            {},
            r"x \[1, 4, 4, 2\] must be \[k, k, 2\] or \[k, k, 2, m\], got \[3, 2, 2\]",
        ),
        ((1, 4, 4, 2), (3, 3, 5), {}, r"got \[3, 3, 5\]"),
        ((1, 4, 4, 2), (3, 3), {}, r"got \[3, 3\]"),
        ((1, 4, 4, 2), (), {}, r"got \[\]"),
        ((1, 4, 4, 2), (0, 0, 2), {}, r"got \[0, 0, 2\]"),
        ((1, 4, 4, 2), (3, 3, 2), {"stride": 0}, "stride must be at least 1, got 0"),
        (
            (1, 4, 4, 2),
            (3, 3, 2),
            {"method": "fast"},
            "unknown method 'fast'; choose one of auto, grouped, shift_sum",
        ),
    ],
)
def test_what_does_not_fit_is_refused(x_shape, kernel_shape, options, message):
    with pytest.raises(ValueError, match=message):
        depthwise(jnp.zeros(x_shape), jnp.zeros(kernel_shape), **options)


def test_integers_are_refused():
    with pytest.raises(ValueError, match="x must be floating, got uint8"):
        depthwise(jnp.zeros((1, 4, 4, 2), jnp.uint8), jnp.zeros((3, 3, 2)))
