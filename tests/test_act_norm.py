"""Activation with batch normalisation as one operator, and the pointwise product."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from randmix.models import layers
from randmix.ops import act_norm as operators
from randmix.ops import pointwise as products
from randmix.ops.act_norm import act_norm, act_norm_inference, norm_act, norm_act_inference
from randmix.ops.cpu import norm as norm_cpu
from randmix.ops.pointwise import pointwise

pytestmark = pytest.mark.slow

ORDERS = {"act_norm": (act_norm, act_norm_inference), "norm_act": (norm_act, norm_act_inference)}
SHAPE = (4, 5, 6, 7)


def draw(shape, seed, mean=0.0):
    return (mean + np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def inputs(mean=0.0):
    x, g = draw(SHAPE, 0, mean), draw(SHAPE, 3)
    return x, draw(SHAPE[-1:], 1, 1.0), draw(SHAPE[-1:], 2), g


def in_float64(order, activation, x, scale, bias, g, statistics=None):
    """PyTorch's result, mean, variance, and cotangents of x, scale and bias."""
    import torch

    functions = {
        "gelu": torch.nn.functional.gelu,
        "relu": torch.nn.functional.relu,
        "identity": lambda u: u,
    }
    x, scale, bias = (
        torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (x, scale, bias)
    )
    u = functions[activation](x) if order == "act_norm" else x
    flat = u.reshape(-1, u.shape[-1])
    mean, variance = flat.mean(0), flat.var(0, unbiased=False)
    if statistics is None:
        y = torch.nn.functional.batch_norm(flat, None, None, scale, bias, training=True)
    else:
        given = [torch.tensor(s, dtype=torch.float64) for s in statistics]
        y = torch.nn.functional.batch_norm(flat, *given, scale, bias)
    y = y.reshape(x.shape)
    y = y if order == "act_norm" else functions[activation](y)
    y.backward(torch.tensor(g, dtype=torch.float64))
    return [a.detach().numpy() for a in (y, mean, variance, x.grad, scale.grad, bias.grad)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def result_and_gradients(function, activation, x, scale, bias, g):
    run = functools.partial(function, activation=activation)
    y, pull, statistics = jax.vjp(
        lambda *a: (run(*a)[0], run(*a)[1:]), x, scale, bias, has_aux=True
    )
    return y, *statistics, *pull(g)


@pytest.mark.parametrize("activation", operators.ACTIVATIONS)
@pytest.mark.parametrize(
    "name", ["act_norm", "norm_act", "act_norm_reference", "norm_act_reference"]
)
def test_values_and_gradients_are_those_of_float64(name, activation):
    x, scale, bias, g = inputs(mean=0.3)
    expected = in_float64(name.removesuffix("_reference"), activation, x, scale, bias, g)
    got = result_and_gradients(getattr(operators, name), activation, x, scale, bias, g)
    for array, reference in zip(got, expected, strict=True):
        np.testing.assert_allclose(array, reference, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("order", ORDERS)
def test_values_are_numpys_and_gradients_those_of_the_plain_form(order):
    arguments = inputs(mean=0.3)
    got, plain = (
        result_and_gradients(getattr(operators, name), "gelu", *arguments)
        for name in (order, f"{order}_reference")
    )
    for array, reference in zip(got, plain, strict=True):
        np.testing.assert_allclose(array, reference, rtol=2e-5, atol=2e-5)
    x, scale, bias, _ = (a.astype(np.float64) for a in arguments)

    def gelu(u):
        return u * scipy.stats.norm.cdf(u)

    u = gelu(x) if order == "act_norm" else x
    mean, variance = u.mean((0, 1, 2)), u.var((0, 1, 2))
    y = (u - mean) / np.sqrt(variance + 1e-5) * scale + bias
    expected = (y if order == "act_norm" else gelu(y), mean, variance)
    for array, reference in zip(got[:3], expected, strict=True):
        np.testing.assert_allclose(array, reference, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("order", ORDERS)
def test_inference_uses_the_given_statistics(order, activation):
    x, scale, bias, g = inputs()
    statistics = draw(SHAPE[-1:], 4), 0.5 + draw(SHAPE[-1:], 5) ** 2
    function = functools.partial(ORDERS[order][1], activation=activation)
    y, pull = jax.vjp(lambda x: function(x, *statistics, scale, bias), x)
    expected = in_float64(order, activation, x, scale, bias, g, statistics)
    np.testing.assert_allclose(y, expected[0], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(pull(g)[0], expected[3], rtol=2e-5, atol=2e-5)


def test_the_variance_survives_a_large_mean():
    x = draw((4096, 3), 0, mean=1000.0)
    _, _, variance = norm_act(x, jnp.ones(3), jnp.zeros(3))
    np.testing.assert_allclose(variance, x.astype(np.float64).var(0), rtol=1e-4)


@pytest.mark.parametrize("order", ORDERS)
def test_two_passes_hold_at_a_thousand_deviations_from_zero(order):
    """float32 x, mean 1,000, deviation 1: statistics as exact as x, gradients as the mean."""
    x, g = draw((16, 8, 32, 5), 0, 1000.0), draw((16, 8, 32, 5), 1)
    scale, bias = draw((5,), 2, 1.0), draw((5,), 3)
    exact = in_float64(order, "identity", x, scale, bias, g)
    y, mean, variance, *gradients = result_and_gradients(
        ORDERS[order][0], "identity", x, scale, bias, g
    )
    np.testing.assert_allclose(mean, exact[1], rtol=2**-22)
    np.testing.assert_allclose(variance, exact[2], rtol=1e-5)
    # A mean of 1,000 is known to 2^-15, and so is everything centred by it.
    for array, reference in zip((y, *gradients), (exact[0], *exact[3:]), strict=True):
        deviation = np.abs(array - reference).max() / np.abs(reference).max()
        assert deviation < 2**-12


@pytest.mark.parametrize("shape", [SHAPE, (2, 37, 7), (64, 7)])
@pytest.mark.parametrize("order", ORDERS)
def test_every_platform_computes_the_same(order, shape, monkeypatch):
    x, g, scale, bias = draw(shape, 0, 0.3), draw(shape, 3), draw((7,), 1, 1.0), draw((7,), 2)
    offset = draw((7,), 4)

    def run(x, scale, bias, offset):
        y, *statistics = ORDERS[order][0](x, scale, bias, activation="gelu", offset=offset)
        return y, statistics

    def results():
        y, pull, statistics = jax.vjp(run, x, scale, bias, offset, has_aux=True)
        return y, *statistics, *pull(g)

    on_a_cpu = results()
    monkeypatch.setattr(
        jax.lax, "platform_dependent", lambda *arrays, cpu, default: default(*arrays)
    )
    monkeypatch.setattr(
        norm_cpu, "forward", lambda *a, **k: pytest.fail("the form for CPUs was used")
    )
    for here, elsewhere in zip(on_a_cpu, results(), strict=True):
        np.testing.assert_allclose(here, elsewhere, rtol=1e-4, atol=2e-5)


def test_float32_on_a_cpu_writes_few_arrays():
    """Only its results, where XLA alone keeps one more array as large as x."""
    x, vector = (
        jax.ShapeDtypeStruct((8, 32, 32, 16), jnp.float32),
        jax.ShapeDtypeStruct((16,), jnp.float32),
    )
    compiled = result_and_gradients.lower(act_norm, "gelu", x, vector, vector, x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.5 * 4 * x.size


@pytest.mark.parametrize("order", ORDERS)
def test_float32_over_eight_devices_is_never_gathered(order):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x, scale, bias, g = (
        jnp.asarray(a)
        for a in (draw((16, 3, 4, 7), 0, 0.3), *inputs()[1:3], draw((16, 3, 4, 7), 3))
    )
    split = NamedSharding(mesh, PartitionSpec("data"))
    sharded = jax.device_put(x, split), scale, bias, jax.device_put(g, split)
    compiled = result_and_gradients.lower(ORDERS[order][0], "gelu", *sharded).compile()
    assert "all-gather" not in compiled.as_text()
    expected = result_and_gradients(ORDERS[order][0], "gelu", x, scale, bias, g)
    for a, b in zip(compiled(*sharded), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("mean", "shift"), [(3.0, 0.0), (100.0, 0.0), (100.0, 98.0)])
def test_moments_in_one_pass_are_as_good_as_the_shift(mean, shift):
    """The module's bound for bfloat16: 2^-24 (1 + (mean - shift)^2 / variance), plus rounding."""
    x = jnp.asarray(draw((4096, 64), 0, mean), jnp.bfloat16)
    _, got_mean, variance = norm_act(x, jnp.ones(64), jnp.zeros(64), shift=jnp.full(64, shift))
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(got_mean, exact.mean(0), rtol=1e-6)
    promised = 2**-24 * (1 + (exact.mean(0) - shift) ** 2 / exact.var(0)).max()
    np.testing.assert_allclose(variance, exact.var(0), rtol=24 * promised)


@pytest.mark.parametrize("norm", [layers.ActNorm, layers.NormAct])
def test_the_layer_takes_its_running_mean_for_the_shift(norm):
    x = jnp.asarray(draw((4096, 64), 0, 100.0), jnp.bfloat16)
    variables = {
        "norm": {"scale": jnp.ones(64), "bias": jnp.zeros(64)},
        "batch_stats": {"mean": jnp.full(64, 99.0), "var": jnp.zeros(64)},
    }
    _, updates = norm("identity").apply(variables, x, train=True, mutable=["batch_stats"])
    exact = np.asarray(x, np.float64).var(0, ddof=1)
    np.testing.assert_allclose(updates["batch_stats"]["var"], 0.1 * exact, rtol=5e-6)


def test_a_constant_channel_has_no_negative_variance():
    x = jnp.full((64, 3), 1.1, jnp.bfloat16)
    y, _, variance = norm_act(x, jnp.ones(3), jnp.zeros(3), shift=jnp.full(3, 7.3))
    assert (variance >= 0).all()
    assert jnp.isfinite(y).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("order", ORDERS)
def test_an_offset_is_added_first_and_has_its_gradient(order, dtype):
    x, scale, bias, g = inputs()
    offset, shift = draw(SHAPE[-1:], 6), draw(SHAPE[-1:], 7)
    x, g = (jnp.asarray(a, dtype) for a in (x, g))

    @jax.jit
    def gradients(x, scale, bias, offset, shift):
        def run(*a):
            return ORDERS[order][0](*a[:3], activation="gelu", offset=a[3], shift=a[4])[0]

        y, pull = jax.vjp(run, x, scale, bias, offset, shift)
        return y, *pull(g)

    y, dx, dscale, dbias, doffset, dshift = gradients(x, scale, bias, offset, shift)
    wide = np.asarray(x, np.float64) + offset
    expected = in_float64(order, "gelu", wide, scale, bias, np.asarray(g, np.float64))
    rounding = 2e-5 if dtype == jnp.float32 else 2**-8
    for got, reference in zip((y, dx), (expected[0], expected[3]), strict=True):
        np.testing.assert_allclose(got.astype(jnp.float32), reference, rtol=rounding, atol=2e-5)
    np.testing.assert_allclose(dscale, expected[4], rtol=2e-5, atol=1e-4)
    np.testing.assert_allclose(dbias, expected[5], rtol=2e-5, atol=1e-4)
    np.testing.assert_allclose(
        doffset, expected[3].reshape(-1, SHAPE[-1]).sum(0), rtol=2e-5, atol=5e-4
    )  # 120 terms that cancel: only their rounding is left
    assert not dshift.any()


@pytest.mark.parametrize("order", ORDERS)
def test_bfloat16_exchanges_its_sums_once_each_way(order):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    x = jax.ShapeDtypeStruct((16, 3, 3, 4), jnp.bfloat16, sharding=split)
    vector = jax.ShapeDtypeStruct((4,), jnp.float32)
    text = (
        result_and_gradients.lower(ORDERS[order][0], "gelu", x, vector, vector, x)
        .compile()
        .as_text()
    )
    assert text.count(" all-reduce(") == 2
    assert "all-gather" not in text


@pytest.mark.parametrize("order", ORDERS)
def test_bfloat16_keeps_its_statistics_in_float32(order):
    x, scale, bias, g = inputs()
    x, g = jnp.asarray(x, jnp.bfloat16), jnp.asarray(g, jnp.bfloat16)
    expected = in_float64(order, "gelu", *(np.asarray(a, np.float64) for a in (x, scale, bias, g)))
    got = result_and_gradients(ORDERS[order][0], "gelu", x, scale, bias, g)
    assert [a.dtype for a in got] == [
        jnp.bfloat16,
        *[jnp.float32] * 2,
        jnp.bfloat16,
        *[jnp.float32] * 2,
    ]
    for i, (array, reference) in enumerate(zip(got, expected, strict=True)):
        rounding = 2**-8 if i in (0, 3) else 2e-5  # y and dx are rounded once, nothing else is
        np.testing.assert_allclose(array.astype(jnp.float32), reference, rtol=rounding, atol=2e-5)


@pytest.mark.parametrize("order", ORDERS)
def test_only_the_input_is_kept_for_the_backward_pass(order):
    x, scale, bias, _ = inputs()
    function = ORDERS[order][0]
    _, pull = jax.vjp(lambda *a: function(*a)[0], jnp.asarray(x, jnp.bfloat16), scale, bias)
    large = [leaf for leaf in jax.tree.leaves(pull) if leaf.size > SHAPE[-1]]
    assert [(leaf.size, leaf.dtype) for leaf in large] == [(x.size, jnp.bfloat16)]


@pytest.mark.parametrize("order", ORDERS)
def test_no_gradient_flows_through_the_statistics(order):
    x, scale, bias, _ = inputs()
    gradient = jax.grad(lambda x: sum(s.sum() for s in ORDERS[order][0](x, scale, bias)[1:]))(x)
    assert not gradient.any()


@pytest.mark.parametrize("order", ORDERS)
def test_vmap_remat_and_a_constant_input_change_no_value(order):
    x, scale, bias, g = inputs()

    def loss(x, scale, bias):
        return (ORDERS[order][0](x, scale, bias)[0] * g).sum()

    everything = jax.grad(loss, (0, 1, 2))

    @jax.jit
    def in_four_ways(x, scale, bias):
        return (
            everything(x, scale, bias),
            jax.grad(jax.checkpoint(loss), (0, 1, 2))(x, scale, bias),
            jax.grad(lambda scale, bias: loss(x, scale, bias), (0, 1))(scale, bias),
            jax.vmap(everything, (None, 0, 0))(
                x, jnp.stack([2 * scale, scale]), jnp.stack([bias, bias])
            ),
        )

    plain, remat, constant, models = in_four_ways(x, scale, bias)
    for i, reference in enumerate(plain):
        np.testing.assert_allclose(remat[i], reference, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(models[i][1], reference, rtol=1e-5, atol=1e-5)
    for got, reference in zip(constant, plain[1:], strict=True):
        np.testing.assert_allclose(got, reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", ORDERS)
def test_the_statistics_are_those_of_the_global_batch(order):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    # Each device's images have a different mean.
    x = draw((16, 3, 3, 4), 0) + np.arange(16, dtype=np.float32)[:, None, None, None]
    scale, bias, g = draw((4,), 1, 1.0), draw((4,), 2), draw(x.shape, 3)
    split = NamedSharding(mesh, PartitionSpec("data"))
    one = result_and_gradients(ORDERS[order][0], "gelu", x, scale, bias, g)
    eight = result_and_gradients(
        ORDERS[order][0], "gelu", jax.device_put(x, split), scale, bias, jax.device_put(g, split)
    )
    assert eight[0].sharding.is_equivalent_to(split, 4)
    for a, b in zip(one, eight, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_refused():
    x, scale, bias, _ = inputs()
    with pytest.raises(
        ValueError, match="unknown activation 'swish'; choose one of gelu, relu, identity"
    ):
        act_norm(x, scale, bias, activation="swish")
    with pytest.raises(ValueError, match=r"of x \[4, 5, 6, 7\] must be \[7\], got \[3\]"):
        norm_act(x, scale[:3], bias)
    with pytest.raises(ValueError, match="x must be floating, got int32"):
        act_norm_inference(jnp.zeros(SHAPE, jnp.int32), bias, bias, scale, bias)


def test_pointwise_is_a_matrix_product_for_every_pixel():
    x, kernel = draw((2, 3, 4, 5), 0), draw((5, 6), 1)
    expected = np.einsum("nhwc,co->nhwo", x.astype(np.float64), kernel.astype(np.float64))
    np.testing.assert_allclose(pointwise(x, kernel), expected, rtol=1e-5, atol=1e-5)
    assert jax.eval_shape(pointwise, x[:, :0], kernel).shape == (2, 0, 4, 6)


def test_the_forms_for_each_platform_agree():
    x, kernel = draw((2, 6, 9, 5), 0), draw((3, 3, 5, 4), 1)
    patches = np.einsum(
        "nhpwqc,pqco->nhwo",
        x.reshape(2, 2, 3, 3, 3, 5).astype(np.float64),
        kernel.astype(np.float64),
    )
    for form in (
        products._product_of_patches,
        products._strided_convolution,
        products.patch_product,
    ):
        np.testing.assert_allclose(form(x, kernel), patches, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        products._flat_product(x, kernel[0, 0]), x @ kernel[0, 0], rtol=1e-5, atol=1e-5
    )


def test_pointwise_in_bfloat16_sums_in_float32():
    x, kernel = jnp.ones((1, 1, 4096), jnp.bfloat16), jnp.ones((4096, 1))
    y = pointwise(x, kernel)
    assert y.dtype == jnp.bfloat16
    assert y.item() == 4096  # a sum in bfloat16 stops at 256


def test_pointwise_over_models_stays_a_product():
    x, kernels = draw((2, 3, 3, 5), 0), draw((4, 5, 6), 1)
    program = jax.jit(jax.vmap(pointwise, (None, 0))).lower(x, kernels).as_text()
    assert "dot_general" in program
    assert "convolution" not in program


def test_pointwise_refuses_another_shape():
    with pytest.raises(ValueError, match=r"x \[2, 5\] must be \[5, C_out\], got \[4, 6\]"):
        pointwise(jnp.zeros((2, 5)), jnp.zeros((4, 6)))
