"""Models: roles by subtree, shapes checked, initial values keyed by path, PyTorch's arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from randmix import masks, models
from randmix.errors import UserError

ARGUMENTS = {"width": 16, "depth": 2, "kernel_size": 3, "patch_size": 2, "num_classes": 10}


def init(images_shape=(1, 8, 8, 3), seed=0, **arguments):
    model = models.build("convmixer", **{**ARGUMENTS, **arguments})
    return model, jax.jit(model.init)(jax.random.key(seed), jnp.zeros(images_shape))


@pytest.fixture(scope="module")
def small():
    return init()


def test_every_parameter_is_in_the_subtree_of_its_role(small):
    _, variables = small
    params, batch_stats = models.split(variables)
    assert set(variables) == {*models.ROLES, "batch_stats"}
    kernels = [path for path in masks.paths(params) if path.endswith("kernel")]
    assert sorted(kernels) == [
        "channel/block_00/pointwise/kernel",
        "channel/block_01/pointwise/kernel",
        "head/classifier/kernel",
        "spatial/block_00/depthwise/kernel",
        "spatial/block_01/depthwise/kernel",
        "spatial/stem/kernel",
    ]
    # A bias has the role of its kernel; normalisation is a role; its statistics are no parameters.
    assert {
        path.replace("bias", "kernel") for path in masks.paths(params, "leaf('bias') - role('norm')")
    } == (set(kernels))
    assert set(masks.paths(params, "leaf('scale')")) <= set(masks.paths(params, "role('norm')"))
    assert {path.rpartition("/")[2] for path in masks.paths(batch_stats)} == {"mean", "var"}


def test_initial_values_are_pytorchs_uniform_by_fan_in(small):
    _, variables = small
    big = init(width=64, kernel_size=7, num_classes=50, patch_size=4)[1]
    for leaf, fan_in in [
        (big["spatial"]["block_00"]["depthwise"], 49),
        (big["channel"]["block_00"]["pointwise"], 64),
        (big["spatial"]["stem"], 4 * 4 * 3),
        (big["head"]["classifier"], 64),
    ]:
        for name in ("kernel", "bias"):
            values = np.asarray(leaf[name], np.float64) * np.sqrt(fan_in)
            assert np.abs(values).max() <= 1 + 1e-6
            assert np.abs(values).max() > 0.9
            assert values.mean() == pytest.approx(0, abs=4 / np.sqrt(3 * values.size))


def test_initial_values_hang_on_the_path_alone(small):
    _, shallow = small
    deep = init(depth=5)[1]
    for role in ("spatial", "channel"):
        for block in ("block_00", "block_01"):
            assert not masks.diff(shallow[role][block], deep[role][block]).moved
    leaves = jax.tree.leaves(deep["spatial"])
    assert len({leaf.tobytes() for leaf in map(np.asarray, leaves)}) == len(leaves)
    other = init(seed=1)[1]
    assert not masks.diff(shallow["spatial"], other["spatial"]).unchanged


def test_the_initial_value_of_one_parameter_is_pinned():
    """Another key derivation would silently change every published seed."""
    kernel = init()[1]["spatial"]["block_01"]["depthwise"]["kernel"]
    assert float(kernel[0, 0, 0]) == pytest.approx(-0.0620647297, rel=1e-6)


def test_a_parameter_of_another_shape_is_named(small):
    model, variables = small
    wrong = {
        **variables,
        "head": {"classifier": {**variables["head"]["classifier"], "kernel": jnp.zeros((16, 9))}},
    }
    with pytest.raises(ValueError, match=r"head/classifier/kernel: got shape \(16, 9\), expected \(16, 10\)"):
        model.apply(wrong, jnp.zeros((1, 8, 8, 3)))


def test_normalisation_belongs_to_the_model():
    images = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    plain, variables = init()
    normalising = models.build("convmixer", **ARGUMENTS, mean=mean, std=std)
    np.testing.assert_allclose(
        normalising.apply(variables, images),
        plain.apply(variables, (images - mean) / std),
        rtol=2e-5,
        atol=1e-6,
    )


def test_bfloat16_computes_in_it_and_keeps_parameters_and_logits_in_float32():
    model, variables = init(dtype="bfloat16")
    exact, _ = init()
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(variables))
    images = np.random.default_rng(0).random((4, 8, 8, 3), np.float32)
    logits, updates = model.apply(variables, images, train=True, mutable=["batch_stats"])
    assert logits.dtype == jnp.float32
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(updates))
    expected, _ = exact.apply(variables, images, train=True, mutable=["batch_stats"])
    error = np.linalg.norm(logits - expected) / np.linalg.norm(expected)
    assert 1e-5 < error < 3e-2  # bfloat16 has 8 bits


def test_arithmetic_promotes_no_dtype_silently():
    model, variables = init(dtype="bfloat16")
    with jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(
            lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]),
            variables,
            jnp.zeros((2, 8, 8, 3)),
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "convmixr"}, "model name: got 'convmixr', allowed convmixer; did you mean 'convmixer'?"),
        ({"activation": "gelo"}, "model activation: got 'gelo', allowed gelu, relu; did you mean 'gelu'?"),
        (
            {"dtype": "float16"},
            "model dtype: got 'float16', allowed float32, bfloat16; did you mean 'bfloat16'?",
        ),
        ({"width": 0}, "model convmixer: width: got 0, allowed a whole number from 1"),
        ({"depth": 0}, "model convmixer: depth: got 0, allowed a whole number from 1"),
        ({"kernel_size": 2.5}, "model convmixer: kernel_size: got 2.5, allowed a whole number from 1"),
        ({"mean": (0.5,)}, "model convmixer: mean and std: give both, of one length, or neither"),
    ],
)
def test_arguments_that_no_model_could_have(arguments, message):
    with pytest.raises(UserError) as error:
        models.build(**{"name": "convmixer", **ARGUMENTS, **arguments})
    assert str(error.value) == message


def test_an_unknown_argument_is_named_with_the_nearest():
    with pytest.raises(UserError, match=r"no argument 'kernelsize'.*; did you mean 'kernel_size'\?$"):
        models.build("convmixer", **ARGUMENTS, kernelsize=3)


def test_a_patch_that_does_not_divide_the_image():
    model = models.build("convmixer", **{**ARGUMENTS, "patch_size": 3})
    with pytest.raises(UserError) as error:
        model.check_image_shape((28, 28, 1))
    assert str(error.value) == (
        "patch_size: got 3, which doesn't divide the image's 28 x 28 pixels; "
        "allowed is a common divisor of both sides"
    )
    with pytest.raises(UserError, match="doesn't divide"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


def test_a_kernel_larger_than_the_image_is_fine():
    model, variables = init(kernel_size=9)
    assert model.apply(variables, jnp.ones((1, 8, 8, 3))).shape == (1, 10)
