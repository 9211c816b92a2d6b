"""Roles proposed for models that declare none."""

import re

import foreign_models as foreign
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st

from randmix import models
from randmix.analysis.roles import propose
from randmix.models.parameters import ROLES

IMAGES = {"image_shape": (32, 32, 3), "num_classes": 10}
ATTENTION = [
    (r".*(query|key)/.*", "spatial", "sure"),
    (r".*(value|out)/.*", "channel", "sure"),
]


def check(proposal, rules):
    """Compares a proposal with (pattern, role, sure), each of which describes some leaf."""
    found, expected = {}, {}
    for one, guess in zip(proposal.parameters, proposal.guesses, strict=True):
        rule = next((rule for rule in rules if re.fullmatch(rule[0], one.path)), None)
        expected[one.path] = rule
        found[one.path] = rule and (rule[0], guess.role, "unsure" if guess.doubt else "sure")
    assert found == expected
    assert set(expected.values()) == set(rules)


# ---- what is detected


def test_an_array_with_two_axes_and_no_name_of_a_kernel_is_not_sure():
    matrices = dict.fromkeys(("a/kernel", "a/proj_weight", "a/table"), (64, 64))
    shapes = {"norm/scale": 64, "norm/bias": 64, **matrices}
    arrays = {path: np.zeros(shape) for path, shape in shapes.items()}
    check(
        propose(arrays),
        [
            ("norm/.*", "norm", "sure"),
            ("a/(kernel|proj_weight)", "channel", "sure"),
            ("a/table", "channel", "unsure"),
        ],
    )


def test_a_vision_transformer():
    check(
        propose(foreign.shapes(foreign.ViT()), **IMAGES),
        [
            *ATTENTION,
            ("patch_embedding/.*", "spatial", "unsure"),
            ("pos_embedding", "spatial", "sure"),
            ("cls", "channel", "unsure"),
            (".*(LayerNorm_[01]|encoder_norm)/.*", "norm", "sure"),
            ("block_./mlp_[12]/.*", "channel", "sure"),
            ("head/.*", "head", "sure"),
        ],
    )


def test_a_mixer_by_the_names_of_its_paper():
    check(
        propose(foreign.shapes(foreign.Mixer())),
        [
            (".*/token_mixing/.*", "spatial", "sure"),
            (".*/channel_mixing/.*", "channel", "sure"),
            ("stem/.*", "spatial", "unsure"),
            (".*LayerNorm_.*", "norm", "sure"),
            ("Dense_0/.*", "channel", "sure"),  # without the number of classes
        ],
    )


@pytest.mark.parametrize("known", [IMAGES, {"tokens": 64, "num_classes": 10}])
def test_a_mixer_by_the_number_of_its_tokens(known):
    mixer = foreign.Mixer(names=("Mlp_0", "Mlp_1"))
    check(
        propose(foreign.shapes(mixer), **known),
        [
            (".*/Mlp_0/.*", "spatial", "sure"),
            (".*/Mlp_1/.*", "channel", "sure"),
            ("stem/.*", "spatial", "unsure"),
            (".*LayerNorm_.*", "norm", "sure"),
            ("Dense_0/.*", "head", "sure"),
        ],
    )


@pytest.mark.parametrize("width", [64, 40])
def test_a_mixer_that_neither_names_nor_sizes_tell_apart_is_not_sure(width):
    # As many channels as tokens; or no image to count the tokens of.
    known = IMAGES if width == 64 else {"num_classes": 10}
    mixer = foreign.Mixer(width=width, names=("one", "two"))
    found = propose(foreign.shapes(mixer), **known)
    assert any("MixerBlock_*/one/Dense_*/kernel" in doubt for doubt in found.doubts)
    assert found.roles["Dense_0/kernel"] == "head"


def test_a_convnext():
    check(
        propose(foreign.shapes(foreign.ConvNeXt()), **IMAGES),
        [
            ("ConvNeXtBlock_./Conv_0/.*", "spatial", "sure"),
            ("ConvNeXtBlock_./Dense_[01]/.*", "channel", "sure"),
            ("ConvNeXtBlock_./gamma", "norm", "unsure"),
            ("Conv_0/.*", "spatial", "unsure"),
            ("downsample/.*", "spatial", "unsure"),
            (".*LayerNorm_./.*", "norm", "sure"),
            ("Dense_0/.*", "head", "sure"),
        ],
    )


def test_a_resnet_of_dense_convolutions():
    proposal = propose(foreign.shapes(foreign.ResNet()), **IMAGES)
    check(
        proposal,
        [
            ("ResNetBlock_./Conv_[01]/kernel", "spatial", "unsure"),
            ("ResNetBlock_./conv_proj/kernel", "channel", "sure"),
            ("conv_init/.*", "spatial", "unsure"),
            (".*(BatchNorm_.|norm_proj|bn_init)/.*", "norm", "sure"),
            ("Dense_0/.*", "head", "sure"),
        ],
    )
    assert proposal.doubts[0] == (
        "ResNetBlock_*/Conv_*/kernel mixes space and channels at once: as spatial mixing, freezing "
        "it freezes both; replace it by a depthwise and a pointwise convolution to tell them apart."
    )


def test_an_nnx_model_with_lists():
    model = nnx.eval_shape(lambda: foreign.NnxMixer(nnx.Rngs(0)))
    check(
        propose(nnx.state(model, nnx.Param), **IMAGES),
        [
            *ATTENTION,
            ("depthwise/./.*", "spatial", "sure"),
            ("pointwise/./.*", "channel", "sure"),
            ("stem/.*", "spatial", "unsure"),
            ("bn/./.*", "norm", "sure"),
            ("classifier/.*", "head", "sure"),
        ],
    )


@pytest.mark.parametrize(
    "model",
    [
        models.build("convmixer", width=8, depth=2, kernel_size=4, patch_size=2, num_classes=5),
        models.build("resnet", width=4, depth=2, kernel_size=3, multiplier=9, num_classes=5),
        models.build(
            "resnet", width=4, depth=1, kernel_size=3, multiplier=1, num_classes=5, stem="imagenet"
        ),
    ],
    ids=["convmixer", "resnet", "imagenet stem"],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_our_own_models_without_their_roles(model, channels):
    image_shape = (32, 32, channels)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    params, _ = models.split(jax.eval_shape(model.init, jax.random.key(0), images))
    declared = {path[1:]: path[0] for path in flatten_dict(params)}
    tree = unflatten_dict({path[1:]: leaf for path, leaf in flatten_dict(params).items()})
    found = propose(tree, image_shape=image_shape, num_classes=5).roles
    assert found == {"/".join(path): role for path, role in declared.items()}


@pytest.mark.parametrize(
    ("shapes", "role", "sure", "why"),
    [
        ({"kernel": (7, 7, 1, 64), "bias": (64,)}, "spatial", True, "depthwise, 7 x 7"),
        ({"kernel": (7, 7, 64)}, "spatial", True, "depthwise, 7 x 7"),
        ({"kernel": (9, 1, 64)}, "spatial", True, "depthwise, 9"),
        ({"weight": (64, 1, 7, 7), "bias": (64, 1, 1)}, "spatial", True, "depthwise, 7 x 7"),
        ({"kernel": (3, 3, 3, 3, 64)}, "spatial", False, "dense first layer, 3 x 3 x 3"),
        ({"kernel": (1, 1, 64, 32), "bias": (32,)}, "channel", True, "pointwise, 1 x 1"),
        ({"weight": (64, 32, 1)}, "channel", True, "pointwise, 1"),
        ({"weight": (32, 32, 3), "bias": (32,)}, "spatial", False, "three axes"),
        ({"kernel": (3, 3, 64, 64)}, "spatial", False, "dense, 3 x 3"),
        ({"kernel": (12, 64, 256)}, "spatial", False, "three axes"),
        ({"kernel": (64, 256)}, "channel", False, "dense, 64 to 256"),
        ({"scale": (64,), "bias": (64,)}, "norm", True, "scale and bias vectors"),
        ({"weight": (64,)}, "norm", False, "lone scale"),
        ({"embedding": (65, 64)}, "spatial", False, "embedding table"),
        ({"positions": (65, 64)}, "spatial", True, "position embedding"),
        ({"table": (1, 65, 64)}, "spatial", False, "65 vectors"),
        ({"temperature": ()}, "norm", False, "vector alone"),
        ({"mystery": (4, 5, 6, 7, 8, 9)}, "spatial", False, "dense, 4 x 5 x 6 x 7"),
        ({"kernel": (3072, 64)}, "spatial", False, "dense, 3072 to 64"),
    ],
)
def test_one_layer(shapes, role, sure, why):
    layer = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    found = propose({"layer": layer}, image_shape=(32, 32, 3))
    assert set(found.roles.values()) == {role}
    assert all(bool(guess.doubt) != sure for guess in found.guesses)
    assert why in {guess.why for guess in found.guesses}


def test_norms_that_a_scan_stacks_are_norms():
    layers, width = 12, 64
    shapes = {
        "stem": {"kernel": (8, 8, 3, width), "bias": (width,)},
        "blocks": {
            "norm": {"scale": (layers, width), "bias": (layers, width)},
            "dense": {"kernel": (layers, width, width), "bias": (layers, width)},
        },
        "LayerNorm_0": {"scale": (width,), "bias": (width,)},
    }
    tree = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )
    found = propose(tree, image_shape=(64, 64, 3))  # 64 positions
    norms = {path for path, role in found.roles.items() if role == "norm"}
    assert norms == {
        f"{layer}/{p}" for layer in ("blocks/norm", "LayerNorm_0") for p in ("bias", "scale")
    }


@pytest.mark.parametrize("name", ["spatial_mlp/Dense_0", "spatial_mixing", "SpatialGatingUnit_0/x"])
def test_spatial_is_a_name_of_token_mixing(name):
    flat = {f"block_0/{name}/kernel": np.zeros((49, 49), np.float32)}
    (guess,) = propose(unflatten_dict(flat, sep="/")).guesses
    assert (guess.role, guess.why, guess.doubt) == ("spatial", "token mixing, by name", "")


@pytest.mark.parametrize(
    ("names", "roles"),
    [
        (("q", "k", "v", "o"), ("spatial", "spatial", "channel", "channel")),
        (("to_q", "to_k", "to_v", "to_out"), ("spatial", "spatial", "channel", "channel")),
        (("q_proj", "k_proj", "v_proj", "out_proj"), ("spatial", "spatial", "channel", "channel")),
        (
            ("query_proj", "key_proj", "value_proj", "output_proj"),
            ("spatial",) * 2 + ("channel",) * 2,
        ),
        (("k", "v"), ("channel", "channel")),  # single letters that mean nothing by themselves
        (("key", "mlp"), ("spatial", "channel")),
    ],
)
def test_the_names_of_attention(names, roles):
    array = np.zeros((64, 64), np.float32)
    found = propose({"layer_3": {name: {"kernel": array, "bias": array[0]} for name in names}})
    for name, role in zip(names, roles, strict=True):
        assert found.roles[f"layer_3/{name}/kernel"] == role
        assert found.roles[f"layer_3/{name}/bias"] == role
    sure = len(names) == 4
    assert any("attention" in doubt or "axis" in doubt for doubt in found.doubts) != sure


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("window", [1, 4])
def test_a_stem_is_spatial_and_not_sure_whatever_its_size_and_colours(window, channels):
    stem = {"stem": {"kernel": np.zeros((window, window, channels, 64))}}
    found = propose(stem, image_shape=(32, 32, channels))
    assert (found.roles, len(found.doubts)) == ({"stem/kernel": "spatial"}, 1)


def test_small_grey_images_confuse_neither_first_layers_nor_hidden_widths():
    # 64 pixels, and as many hidden units.
    params = foreign.shapes(foreign.ViT(), (8, 8, 1))
    params["block_0"]["mlp_2"]["kernel"] = jax.ShapeDtypeStruct((64, 48), jnp.float32)
    params["Conv_0"] = {"kernel": jax.ShapeDtypeStruct((3, 3, 1, 48), jnp.float32)}
    found = propose(params, image_shape=(8, 8, 1), num_classes=10)
    whys = dict(zip(found.roles, (guess.why for guess in found.guesses), strict=True))
    assert whys["block_0/mlp_2/kernel"] == "dense, 64 to 48"
    assert whys["Conv_0/kernel"] == "depthwise or dense, 3 x 3"
    assert found.roles["block_0/mlp_2/kernel"] == "channel"


def test_an_mlp_in_a_module_named_as_attention_is_channel_mixing():
    kernel = np.zeros((64, 256))
    found = propose({"attention_block_0": {"mlp": {"Dense_0": {"kernel": kernel}}}})
    assert (*found.roles.values(), found.doubts) == ("channel", [])


@pytest.mark.parametrize(
    "layer",
    [
        {"attn": {"qkv": {"kernel": (64, 192)}}},
        {"self_attention": {"query_key_value": {"kernel": (64, 192)}}},
        {"self_attn": {"in_proj_weight": (192, 64), "in_proj_bias": (192,)}},
        {"Attention_0": {"Dense_0": {"kernel": (64, 192), "bias": (192,)}}},
        {"attn": {"kv": {"weight": (128, 64)}}},
    ],
)
def test_fused_attention_is_spatial_and_not_sure(layer):
    tree = jax.tree.map(np.zeros, layer, is_leaf=lambda node: isinstance(node, tuple))
    found = propose(tree)
    assert set(found.roles.values()) == {"spatial"}
    (doubt,) = found.doubts
    assert "holds query, key and value, or two of them, in one array, which a mask by leaf" in doubt


@pytest.mark.parametrize(
    ("outputs", "num_classes", "heads", "sure"),
    [
        ({"a": 10, "b": 7}, 10, ["a"], True),
        ({"a": 10, "b": 10}, 10, ["b"], False),
        ({"Dense_9": 10, "Dense_10": 10}, 10, ["Dense_10"], False),
        ({"head": 10, "b": 10}, 10, ["head"], True),
        ({"head": 1000, "b": 10}, 10, ["b"], True),
        ({"head": 1000, "b": 7}, 10, ["head"], False),
        ({"head": 1000, "b": 7}, None, ["head"], True),
        ({"fc": 10, "head_aux": 10}, 10, ["fc", "head_aux"], True),
        ({"conv_head": 64, "classifier": 10}, 10, ["classifier"], True),
        ({"a": 7, "b": 8}, 10, [], True),
        ({"MultiHead_0": 10, "b": 7}, None, [], True),
    ],
)
def test_the_head(outputs, num_classes, heads, sure):
    tree = {name: {"kernel": np.zeros((32, n))} for name, n in outputs.items()}
    found = propose(tree, num_classes=num_classes)
    assert [path.split("/")[0] for path, role in found.roles.items() if role == "head"] == heads
    doubts = [guess.doubt for guess in found.guesses if guess.role == "head"]
    assert not any(doubts) if sure else all(doubts)


MODULES = (
    "attention attn qkv query key q k v out mlp fc1 token_mixing norm bn1 head classifier conv dw "
    "stem pos_embed layers_3 0 7 Dense_0 MixerBlock_1 layer_scale"
)
LEAVES = (
    "kernel weight bias scale gamma embedding cls_token pos_embed q_bias in_proj_weight "
    "in_proj_bias running_mean table w x"
)
paths = st.tuples(
    st.lists(st.sampled_from(MODULES.split()), max_size=3), st.sampled_from(LEAVES.split())
)


@given(
    st.dictionaries(
        paths.map(lambda one: "/".join([*one[0], one[1]])),
        st.lists(st.sampled_from([1, 2, 3, 7, 10, 64, 65, 192]), max_size=5).map(tuple),
        max_size=12,
    ),
    st.sampled_from([None, (32, 32, 3), (8, 8, 1)]),
    st.sampled_from([None, 10]),
)
@settings(max_examples=150)
def test_any_tree_gets_a_role_for_every_leaf(shapes, image_shape, num_classes):
    arrays = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}
    found = propose(arrays, image_shape=image_shape, num_classes=num_classes)
    assert found.roles.keys() == arrays.keys()
    assert set(found.roles.values()) <= {*ROLES}
    assert found.selectors.keys() == set(found.roles.values())  # which it has checked
    assert str(found)
    assert found._repr_html_()
