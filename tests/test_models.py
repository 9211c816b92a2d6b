"""Models: roles by subtree, shapes checked, initial values keyed by path, PyTorch's arithmetic."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from randmix import masks, models
from randmix.config import default
from randmix.errors import UserError
from randmix.models import filters

ARGUMENTS = {"width": 16, "depth": 2, "kernel_size": 3, "patch_size": 2, "num_classes": 10}


def init(images_shape=(1, 8, 8, 3), seed=0, **arguments):
    model = models.build("convmixer", **{**ARGUMENTS, **arguments})
    return model, jax.jit(model.init)(jax.random.key(seed), jnp.zeros(images_shape))


def apply(model, variables, images, **options):
    """``model.apply``, compiled, which is faster than its operators one at a time."""
    return jax.jit(functools.partial(model.apply, **options))(variables, images)


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
    # A bias has the role of its kernel; normalisation is a role; statistics are no parameters.
    assert {
        path.replace("bias", "kernel")
        for path in masks.paths(params, "leaf('bias') - role('norm')")
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


def test_initial_values_depend_on_the_path_alone(small):
    _, shallow = small
    deep = init(depth=3)[1]
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
    with pytest.raises(
        ValueError, match=r"head/classifier/kernel: got shape \(16, 9\), expected \(16, 10\)"
    ):
        model.apply(wrong, jnp.zeros((1, 8, 8, 3)))


def test_normalisation_belongs_to_the_model():
    images = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    plain, variables = init()
    normalising = models.build("convmixer", **ARGUMENTS, mean=mean, std=std)
    np.testing.assert_allclose(
        apply(normalising, variables, images),
        apply(plain, variables, ((images - mean) / std).astype(np.float32)),
        rtol=2e-5,
        atol=1e-6,
    )


@pytest.mark.slow
def test_bfloat16_computes_in_it_and_keeps_parameters_and_logits_in_float32():
    model, variables = init(dtype="bfloat16")
    exact = models.build("convmixer", **ARGUMENTS)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(variables))
    images = np.random.default_rng(0).random((4, 8, 8, 3), np.float32)
    logits, updates = apply(model, variables, images, train=True, mutable=["batch_stats"])
    assert logits.dtype == jnp.float32
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(updates))
    expected, _ = apply(exact, variables, images, train=True, mutable=["batch_stats"])
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
        (
            {"name": "convmixr"},
            "model name: got 'convmixr', allowed convmixer, resnet, metaformer, convmixer_1536_20, "
            "convmixer_768_32, convmixer_1024_20; did you mean 'convmixer'?",
        ),
        (
            {"depthwise_method": "pallas"},
            "model convmixer: depthwise_method: got 'pallas', allowed auto, grouped, shift_sum",
        ),
        (
            {"activation": "gelo"},
            "model convmixer: activation: got 'gelo', allowed gelu, relu; did you mean 'gelu'?",
        ),
        (
            {"dtype": "float16"},
            "model convmixer: dtype: got 'float16', allowed float32, bfloat16; "
            "did you mean 'bfloat16'?",
        ),
        ({"width": 0}, "model convmixer: width: got 0, allowed 1 to 65536"),
        ({"depth": 0}, "model convmixer: depth: got 0, allowed 1 to 1000"),
        (
            {"kernel_size": 2.5},
            "model convmixer: kernel_size: got 2.5, allowed an integer, 1 to 128",
        ),
        ({"width": True}, "model convmixer: width: got True, allowed an integer, 1 to 65536"),
        (
            {"num_classes": None},
            "model convmixer: num_classes: got None, allowed an integer, 1 to 2147483647",
        ),
        ({"mean": (0.5,)}, "model convmixer: mean and std: give both, of equal length, or neither"),
        (
            {"mean": (0.5,), "std": (0.0,)},
            "model convmixer: std: got (0.0,), allowed a tuple of numbers, each 1e-06 to 1000",
        ),
        (
            {"head": "images"},
            "model convmixer: head: got 'images', allowed classifier, image; did you mean 'image'?",
        ),
        (
            {"head": "image"},
            "model convmixer: num_classes: got 10, allowed None with head 'image', "
            "which returns as many channels as the images have",
        ),
        (
            {"head": "image", "num_classes": None},
            "model convmixer: patch_size: got 2, allowed 1 with head 'image', "
            "which maps pixel to pixel",
        ),
        (
            {"name": "convmixer_768_32"},
            "model convmixer_768_32: width: got 16, allowed 768, which the name fixes; "
            "to choose another, build the model by the name of its family",
        ),
        (
            {"filters": "sam"},
            "filters: got 'sam', allowed random, same, box, identity, delta, dct, gaussian, "
            "gaussian8; did you mean 'same'?",
        ),
        (
            {"filters": "random", "smoothing_index": -1.0},
            "smoothing index: got -1.0, allowed 0 to 1000",
        ),
    ],
)
def test_invalid_arguments_are_refused(arguments, message):
    with pytest.raises(UserError) as error:
        models.build(**{"name": "convmixer", **ARGUMENTS, **arguments})
    assert str(error.value) == message


def test_an_unknown_argument_is_named_with_the_nearest():
    with pytest.raises(
        UserError, match=r"no argument 'kernelsize'.*; did you mean 'kernel_size'\?$"
    ):
        models.build("convmixer", **ARGUMENTS, kernelsize=3)


@pytest.mark.parametrize(
    ("name", "foreign"), [("convmixer", "multiplier"), ("resnet", "patch_size")]
)
def test_an_argument_of_the_other_family_is_refused_with_what_is_allowed(name, foreign):
    with pytest.raises(
        UserError, match=rf"^model {name}: no argument '{foreign}', allowed .*\bkernel_size\b"
    ):
        models.build(name, num_classes=10, width=16, depth=2, **{foreign: 2})


@pytest.mark.parametrize("name", models.MODELS)
def test_every_model_has_its_config_keys(name):
    """The keys are exactly those a user can set, with values that `build` accepts."""
    settings = default(name).model.to_dict() | {"mean": (), "std": ()}  # None: the data set's
    head = {"head": "classifier"} if models.MODELS[name][0] is models.ConvMixer else {}
    head |= {"num_classes": 7}
    model = models.build(**settings, **head)
    fields = {field.name for field in dataclasses.fields(model)} - {"name", "parent", "dtype"}
    fixed = models.MODELS[name][1]
    keys = fields - fixed.keys() - head.keys()
    of_filters = {"filter_rank", "smoothing_index", "smoothing_keep_norm"}
    assert settings.keys() == keys | of_filters | {"name"}
    built = {"filters", "smooth_stem"}
    assert all(getattr(model, key) == settings[key] for key in keys - built)
    assert all(getattr(model, key) == value for key, value in fixed.items())


def test_a_published_model_takes_what_its_name_leaves_open():
    model = models.build(
        "convmixer_768_32", num_classes=10, width=768, dtype="bfloat16", filters="same"
    )
    assert (model.width, model.depth, model.kernel_size, model.patch_size) == (768, 32, 7, 7)
    assert (model.activation, model.num_classes, model.dtype) == ("relu", 10, jnp.bfloat16)


@pytest.mark.slow
def test_the_image_head_maps_each_pixel_to_the_images_channels():
    model = models.build("convmixer", width=6, depth=1, kernel_size=3, patch_size=1, head="image")
    images = jnp.asarray(np.random.default_rng(0).random((2, 5, 7, 3), np.float32))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    head = variables["head"]["projection"]
    assert (head["kernel"].shape, head["bias"].shape) == ((6, 3), (3,))
    _, captured = model.apply(
        variables, images, capture_intermediates=True, mutable=["intermediates"]
    )
    (features,) = captured["intermediates"]["block_00"]["__call__"]
    expected = np.einsum("nhwc,cd->nhwd", features, head["kernel"]) + np.asarray(head["bias"])
    result = model.apply(variables, images)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


def spatial_kernels(model):
    """{path: initial value} of the depthwise kernels; only they are compiled."""
    spatial = jax.jit(lambda key: model.init(key, jnp.zeros((1, 8, 8, 3)))["spatial"])(
        jax.random.key(0)
    )
    flat = flatten_dict(spatial, sep="/")
    return {
        path: np.asarray(kernel)
        for path, kernel in flat.items()
        if path.endswith("depthwise/kernel")
    }


@pytest.mark.parametrize(("name", "layers"), [("convmixer", 2), ("resnet", 13)])
def test_a_filter_bank_fills_every_depthwise_layer(name, layers):
    sizes = {"patch_size": 1} if name == "convmixer" else {"multiplier": 9}
    model = models.build(
        name, width=4, depth=2, kernel_size=3, num_classes=2, filters="box", **sizes
    )
    kernels = spatial_kernels(model)
    assert len(kernels) == layers
    assert all((kernel == np.float32(1 / 9)).all() for kernel in kernels.values())


def test_the_bank_same_draws_one_set_for_each_layer_of_a_resnet():
    kernels = spatial_kernels(
        models.build("resnet", width=4, depth=1, num_classes=2, filters="same")
    )
    assert all(
        kernel.shape[3] == 9 and (kernel == kernel[:, :, :1]).all() for kernel in kernels.values()
    )
    sets = [kernel[:, :, 0].reshape(9, 9) for kernel in kernels.values()]
    assert len(np.unique(np.concatenate(sets, axis=1), axis=1).T) == 9 * len(kernels)


@pytest.mark.parametrize("name", ["convmixer", "resnet"])
@pytest.mark.parametrize("keep_norm", [True, False])
def test_smoothing_settings_reach_the_bank(name, keep_norm):
    sizes = {"kernel_size": 3, "patch_size": 1} if name == "convmixer" else {}
    smoothing = {"smoothing_index": 2.0, "smoothing_keep_norm": keep_norm}
    model = models.build(name, width=4, depth=1, num_classes=2, **sizes, **smoothing)
    arguments = (jax.random.key(0), (3, 3, 4, 2), jnp.float32)
    expected = filters.smooth(filters.random(*arguments), 2.0, keep_norm=keep_norm)
    np.testing.assert_array_equal(model.filters(*arguments), expected)


def test_a_patch_that_does_not_divide_the_image():
    model = models.build("convmixer", **{**ARGUMENTS, "patch_size": 3})
    with pytest.raises(UserError) as error:
        model.check_image_shape((28, 28, 1))
    assert str(error.value) == (
        "patch_size: got 3, which doesn't divide the image's 28 x 28 pixels; "
        "allowed is a common divisor of both sides"
    )
    with pytest.raises(UserError, match=r"images: got one of shape \[8, 1\], allowed is \[H, W"):
        model.init(jax.random.key(0), jnp.zeros((8, 8, 1)))
    with pytest.raises(UserError, match="doesn't divide"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


def test_a_kernel_larger_than_the_image_is_fine():
    model = models.build("convmixer", **{**ARGUMENTS, "kernel_size": 9})
    logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    assert logits.shape == (1, 10)  # test_parity checks what it computes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more"), [("convmixer", {"patch_size": 2}), ("resnet", {"between": "relu"})]
)
def test_every_method_of_depthwise_convolution_gives_the_same(name, more):
    arguments = {"width": 4, "depth": 1, "kernel_size": 3, "num_classes": 3, **more}
    images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))
    one, other = (
        models.build(name, **arguments, depthwise_method=method)
        for method in ("shift_sum", "grouped")
    )
    variables = one.init(jax.random.key(1), images)
    texts = [str(jax.make_jaxpr(model.apply)(variables, images)) for model in (one, other)]
    assert [
        "feature_group_count=3" in text or "feature_group_count=4" in text for text in texts
    ] == [
        False,
        True,
    ]
    np.testing.assert_allclose(
        one.apply(variables, images), other.apply(variables, images), rtol=1e-4, atol=1e-5
    )
