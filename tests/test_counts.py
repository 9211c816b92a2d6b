"""Counts: the paper's equations leaf by leaf, closed forms against models, published sizes."""

import math

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict

from randmix import masks, models
from randmix.models import counts

IMAGE = (32, 32, 3)


def leaves(model, image_shape=IMAGE):
    """{path: shape} of every parameter."""
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
    flat = flatten_dict(models.split(variables)[0], sep="/")
    return {path: leaf.shape for path, leaf in flat.items()}


def trainable_by_masks(model, image_shape=IMAGE):
    """The size of what each mode trains, from the label tree instead of the roles' sums."""
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
    params, _ = models.split(variables)
    return {
        mode: masks.summary(params, masks.labels(params, masks.trainable(selector))).trainable
        for mode, selector in masks.MODES.items()
    }


@pytest.mark.parametrize(("kernel_size", "multiplier"), [(3, 9), (3, 2), (5, 25), (4, 3)])
def test_equations_1_to_3_hold_for_every_convolution_of_the_resnet(kernel_size, multiplier):
    model = models.build(
        "resnet", width=4, depth=1, num_classes=10, kernel_size=kernel_size, multiplier=multiplier
    )
    shapes = leaves(model)
    spatial = [path for path in shapes if path.endswith("depthwise/kernel")]
    assert len(spatial) == 7
    for path in spatial:
        k, _, inputs, m = shapes[path]
        mixing = shapes[path.replace("spatial", "channel").replace("depthwise", "pointwise")]
        outputs = mixing[1]
        assert math.prod(shapes[path]) + math.prod(mixing) == counts.separable(
            k, inputs, outputs, m
        )
        assert math.prod(mixing) == counts.chans(inputs, outputs, m)
        dense = math.prod((k, k, inputs, outputs))
        assert dense == counts.standard(k, inputs, outputs)
        assert (math.prod(mixing) == dense) == (m == k * k)


@pytest.mark.parametrize(
    ("name", "arguments"), [("resnet", {"multiplier": 9}), ("convmixer", {"patch_size": 4})]
)
def test_what_chans_trains_does_not_depend_on_the_kernel(name, arguments):
    by_kernel = {
        k: trainable_by_masks(
            models.build(name, width=8, depth=2, num_classes=10, kernel_size=k, **arguments)
        )
        for k in (2, 3, 9)
    }
    assert len({modes["chans"] for modes in by_kernel.values()}) == 1
    assert len({modes["full"] for modes in by_kernel.values()}) == 3


@pytest.mark.parametrize(
    ("width", "depth", "kernel_size", "patch_size", "channels"),
    [(8, 1, 3, 1, 1), (12, 3, 8, 2, 3), (5, 2, 9, 4, 3)],
)
def test_the_convmixers_closed_form(width, depth, kernel_size, patch_size, channels):
    sizes = {"width": width, "depth": depth, "kernel_size": kernel_size, "patch_size": patch_size}
    model = models.build("convmixer", **sizes, num_classes=7)
    by_role = counts.convmixer(**sizes, channels=channels, num_classes=7)
    image = (8, 8, channels)
    assert by_role == counts.parameters(model, image)
    assert counts.trainable(by_role) == trainable_by_masks(model, image)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "millions"),
    [("convmixer_1536_20", 51.6), ("convmixer_768_32", 21.1), ("convmixer_1024_20", 24.4)],
)
def test_published_models_have_their_published_sizes(name, millions):
    model = models.build(name, num_classes=1000)
    by_role = counts.parameters(model, (224, 224, 3))
    assert round(sum(by_role.values()) / 1e6, 1) == millions
    fixed = {key: value for key, value in models.MODELS[name][1].items() if key != "activation"}
    assert by_role == counts.convmixer(**fixed, channels=3, num_classes=1000)


def test_multiply_adds_of_a_convmixer_by_hand():
    model = models.build("convmixer", width=6, depth=1, kernel_size=5, patch_size=2, num_classes=10)
    pixels = 4 * 3
    assert counts.multiply_adds(model, (8, 6, 3)) == {
        "spatial/stem/kernel": 2 * 2 * 3 * 6 * pixels,
        "spatial/block_00/depthwise/kernel": 5 * 5 * 6 * pixels,
        "channel/block_00/pointwise/kernel": 6 * 6 * pixels,
        "head/classifier/kernel": 6 * 10,
    }


def test_the_image_head_is_counted_at_every_pixel():
    model = models.build("convmixer", width=6, depth=1, kernel_size=5, patch_size=1, head="image")
    assert counts.multiply_adds(model, (8, 6, 3))["head/projection/kernel"] == 6 * 3 * 8 * 6


@pytest.mark.parametrize("between", ["none", "bn_relu"])
def test_multiply_adds_of_a_resnet_by_hand_are_those_of_two_steps(between):
    model = models.build("resnet", width=4, depth=1, multiplier=3, between=between, num_classes=10)
    costs = counts.multiply_adds(model, (9, 8, 1))
    assert costs["spatial/stem/depthwise/kernel"] == 3 * 3 * 1 * 3 * 9 * 8
    assert costs["channel/stem/pointwise/kernel"] == 3 * 4 * 9 * 8
    # Strided: 9 x 8 becomes 5 x 4.
    assert costs["spatial/block_01/conv_1/depthwise/kernel"] == 3 * 3 * 4 * 3 * 5 * 4
    assert costs["channel/block_01/conv_1/pointwise/kernel"] == 12 * 8 * 5 * 4
    assert costs["channel/block_01/shortcut/kernel"] == 4 * 8 * 5 * 4
    assert costs["head/classifier/kernel"] == 16 * 10
    assert len(costs) == 2 * 7 + 2 + 1


def products(step, *arguments):
    """Multiply-adds of all convolutions and matrix products that a traced function computes."""
    total = 0
    for equation in jax.make_jaxpr(step)(*arguments).jaxpr.eqns:
        result = math.prod(equation.outvars[0].aval.shape)
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            _, inputs, *window = equation.params["dimension_numbers"].rhs_spec
            zeros = math.prod(equation.params["lhs_dilation"])  # strides, in a gradient to an input
            total += result * kernel[inputs] * math.prod(kernel[d] for d in window) // zeros
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += result * math.prod(equation.invars[0].aval.shape[d] for d in contracted)
    return total


def convolution(x, kernel, *, stride=1):
    """A dense or, for kernels [k, k, 1, C m], a depthwise convolution."""
    return jax.lax.conv_general_dilated(
        *(x, kernel, (stride, stride), "SAME"),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )


def norm(x, scale):
    """What counts of a norm: a learned parameter in front of the layers above."""
    return x * scale


def convmixer(params, images):
    """A ConvMixer of width 6, depth 2, kernel size 3 and patch size 2, in plain JAX."""
    x = norm(convolution(images, params["spatial"][0], stride=2), params["norm"][0])
    for i in (1, 2):
        x = x + norm(convolution(x, params["spatial"][i]), params["norm"][2 * i - 1])
        x = norm(convolution(x, params["channel"][i - 1]), params["norm"][2 * i])
    return x.mean((1, 2)) @ params["head"][0]


def resnet(params, images):
    """A separable ResNet of width 4, depth 1 and 3 filters per channel, in plain JAX."""
    spatial, channel, norms = (iter(params[role]) for role in ("spatial", "channel", "norm"))
    x = convolution(convolution(images, next(spatial)), next(channel))
    for stride in (1, 2, 2):
        y = norm(x, next(norms))
        x = x if stride == 1 else convolution(y[:, ::2, ::2], next(channel))
        y = convolution(convolution(y, next(spatial), stride=stride), next(channel))
        y = norm(y, next(norms))
        x = x + convolution(convolution(y, next(spatial)), next(channel))
    return norm(x, next(norms)).mean((1, 2)) @ params["head"][0]


def metaformer(params, images):
    """A block of attention with one head, between patches of 2 x 2 and a head, in plain JAX."""
    spatial, channel, norms = (iter(params[role]) for role in ("spatial", "channel", "norm"))
    x = convolution(images, next(spatial), stride=2)
    y = norm(x, next(norms)).reshape(len(x), -1, x.shape[-1])
    query, key, value = y @ next(spatial), y @ next(spatial), y @ next(channel)
    mixed = jax.nn.softmax(query @ key.swapaxes(1, 2)) @ value
    x = x + (mixed @ next(channel)).reshape(x.shape)
    y = jax.nn.gelu(norm(x, next(norms)) @ next(channel)) @ next(channel)
    return norm(x + y, next(norms)).mean((1, 2)) @ params["head"][0]


PLAIN = {
    "convmixer": (
        convmixer,
        {"width": 6, "depth": 2, "kernel_size": 3, "patch_size": 2},
        {
            "spatial": [(2, 2, 3, 6), *2 * [(3, 3, 1, 6)]],
            "channel": 2 * [(1, 1, 6, 6)],
            "norm": 5 * [(1, 1, 1, 6)],
            "head": [(6, 10)],
        },
    ),
    "resnet": (
        resnet,
        {"width": 4, "depth": 1, "multiplier": 3},
        {
            "spatial": [(3, 3, 1, 3 * c) for c in (3, 4, 4, 4, 8, 8, 16)],
            "channel": [
                (1, 1, c, out)
                for c, out in (
                    *((9, 4), (12, 4), (12, 4), (4, 8), (12, 8), (24, 8)),
                    *((8, 16), (24, 16), (48, 16)),
                )
            ],
            "norm": [(1, 1, 1, c) for c in (4, 4, 4, 8, 8, 16, 16)],
            "head": [(16, 10)],
        },
    ),
    "metaformer": (
        metaformer,
        {"mixer": "attention", "width": 6, "depth": 1, "patch_size": 2, "head_dim": 6},
        {
            "spatial": [(2, 2, 3, 6), (6, 6), (6, 6)],
            "channel": [(6, 6), (6, 6), (6, 24), (24, 6)],
            "norm": 3 * [(1, 1, 1, 6)],
            "head": [(6, 10)],
        },
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("mode", ["full", "chans", "space", "floor"])
def test_a_training_step_costs_what_its_gradient_computes(name, mode):
    plain, sizes, shapes = PLAIN[name]
    params = {role: [jnp.zeros(shape) for shape in each] for role, each in shapes.items()}
    roles = {"norm", "head"}
    roles |= {"full": {"spatial", "channel"}, "chans": {"channel"}, "space": {"spatial"}}.get(
        mode, set()
    )

    def loss(learned, images):
        return (plain({**params, **learned}, images) ** 2).sum()

    learned, images = {role: params[role] for role in roles}, jnp.zeros((1, 8, 8, 3))
    model = models.build(name, **sizes, num_classes=10)
    expected = counts.training_step(counts.multiply_adds(model, (8, 8, 3)), mode)
    assert products(jax.grad(loss), learned, images) == expected
