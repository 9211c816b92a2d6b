"""MetaFormers: roles by mixer, what is mixed, one program, refusals in one line."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax.traverse_util import flatten_dict

from randmix import config as configs
from randmix import masks, models
from randmix.errors import UserError
from randmix.models import counts, stack
from randmix.models.metaformer import MIXERS
from randmix.runtime import sharding
from randmix.training import ensemble, evaluation, loading, loop, runs

SIZES = {"width": 8, "depth": 2, "patch_size": 2, "head_dim": 4, "num_classes": 3}
STAGES = {"depth": 6, "stages": (1, 2, 5, 8), "norm": "group", "layer_scale": 0.1}
WEIGHTLESS = ("pooling", "shift", "identity")
IMAGE = (8, 12, 3)


def build(mixer, **more):
    return models.build("metaformer", **{**SIZES, "mixer": mixer, **more})


def shapes(mixer, image=IMAGE, **more):
    """{path: shape} of every parameter."""
    variables = counts.abstract_variables(build(mixer, **more), image)
    flat = flatten_dict(models.split(variables)[0], sep="/")
    return {path: leaf.shape for path, leaf in flat.items()}


@functools.cache
def drawn(mixer, **more):
    """A model and random variables in which nothing is 0 or 1."""
    model = build(mixer, **more)
    rng = np.random.default_rng(0)
    draw = lambda x: rng.uniform(-0.5, 0.5, x.shape).astype(np.float32)  # noqa: E731
    return model, jax.tree.map(draw, counts.abstract_variables(model, IMAGE))


# The spatial weights of block 0 with 4 x 6 patches, beside those of the stem.
SPATIAL = {
    "depthwise": {"depthwise/kernel": (3, 3, 8), "depthwise/bias": (8,)},
    "attention": {
        "attention/query/kernel": (8, 8),
        "attention/query/bias": (8,),
        "attention/key/kernel": (8, 8),
        "attention/key/bias": (8,),
    },
    "token_mlp": {
        "token_mlp/mlp/up/kernel": (24, 4),
        "token_mlp/mlp/up/bias": (4,),
        "token_mlp/mlp/down/kernel": (4, 24),
        "token_mlp/mlp/down/bias": (24,),
    },
    "random": {"random/matrix/kernel": (24, 24)},
    **{mixer: {} for mixer in WEIGHTLESS},
}
MLP = {"mlp/up/kernel": (8, 32), "mlp/up/bias": (32,)}
MLP |= {"mlp/down/kernel": (32, 8), "mlp/down/bias": (8,)}
VALUES = {
    f"attention/{name}/{leaf}": shape
    for name in ("value", "output")
    for leaf, shape in (("kernel", (8, 8)), ("bias", (8,)))
}


@pytest.mark.parametrize("mixer", MIXERS)
def test_roles_paths_and_shapes_of_a_block(mixer):
    found = shapes(mixer)

    def block(role):
        prefix = f"{role}/block_00/"
        return {p.removeprefix(prefix): s for p, s in found.items() if p.startswith(prefix)}

    assert block("spatial") == SPATIAL[mixer]
    assert block("channel") == MLP | (VALUES if mixer == "attention" else {})
    assert block("norm") == {
        f"{name}_norm/{leaf}": (8,) for name in ("mixer", "mlp") for leaf in ("scale", "bias")
    }
    outside = {path for path in found if "/block_" not in path}
    assert outside == {
        *("spatial/stem/kernel", "spatial/stem/bias", "norm/final_norm/scale"),
        *("norm/final_norm/bias", "head/classifier/kernel", "head/classifier/bias"),
    } | ({"spatial/position_embedding"} if mixer == "attention" else set())


def test_all_of_attention_may_be_spatial():
    found = shapes("attention", attention_roles="all")
    assert {path.partition("/")[0] for path in found if "/attention/" in path} == {"spatial"}
    assert len(found) == len(shapes("attention"))


@pytest.mark.slow
def test_the_position_embedding_has_the_deviation_asked_for():
    def embedding(mixer, **more):
        model = build(mixer, width=64, head_dim=32, depth=1, **more)
        init = jax.jit(lambda key: model.init(key, jnp.zeros((1, *IMAGE)))["spatial"])
        return init(jax.random.key(0)).get("position_embedding")

    for deviation, more in ((1, {}), (0.02, {"position_embedding": 0.02})):
        values = embedding("attention", **more)
        assert values.shape == (4, 6, 64)
        assert values.std() == pytest.approx(deviation, rel=0.1)
    assert embedding("attention", position_embedding=0.0) is None
    assert embedding("identity") is None
    assert embedding("identity", position_embedding=3.0).std() == pytest.approx(3, rel=0.1)


def test_four_stages_halve_the_sides_and_share_the_blocks():
    found = shapes("random", (32, 48, 3), **{**STAGES, "depth": 12, "patch_size": 4})
    sizes = [found[f"spatial/block_{i:02d}/random/matrix/kernel"][0] for i in range(12)]
    assert sizes == 2 * [8 * 12] + 2 * [4 * 6] + 6 * [2 * 3] + 2 * [1 * 2]
    widths = [found[f"channel/block_{i:02d}/mlp/up/kernel"][0] for i in range(12)]
    assert widths == 2 * [8] + 2 * [16] + 6 * [40] + 2 * [64]
    assert {p: s for p, s in found.items() if "downsample/kernel" in p} == {
        f"spatial/block_{i:02d}/downsample/kernel": (3, 3, *pair)
        for i, pair in ((2, (8, 16)), (4, (16, 40)), (10, (40, 64)))
    }
    assert found["spatial/stem/kernel"] == (7, 7, 3, 8)
    scales = [path for path in found if path.endswith("_scale/scale")]
    assert len(scales) == 2 * 12
    assert all(path.startswith("norm/") for path in scales)


@pytest.mark.slow
@pytest.mark.parametrize("mixer", MIXERS)
def test_what_reaches_another_position_is_the_mixers_alone(mixer):
    """One patch of one image changes: without a mixer of tokens no other position would notice."""
    model, variables = drawn(mixer, width=12, depth=1)  # more channels than the window has places
    images = np.random.default_rng(0).random((2, *IMAGE)).astype(np.float32)
    other = images.copy()
    other[0, 4:6, 4:6] += 0.3  # the patch at (2, 2) of 4 x 6

    def features(images):
        _, captured = model.apply(
            variables, images, capture_intermediates=True, mutable=["intermediates"]
        )
        return captured["intermediates"]["block_00"]["__call__"][0]

    difference = np.abs(jax.jit(features)(images) - jax.jit(features)(other)).max(-1)
    changed = difference > 1e-6
    assert not changed[1].any()
    near = np.zeros((4, 6), bool)
    near[1:4, 1:4] = True
    only = np.zeros((4, 6), bool)
    only[2, 2] = True
    reached = {"identity": only, "depthwise": near, "pooling": near, "shift": near}
    np.testing.assert_array_equal(changed[0], reached.get(mixer, np.ones((4, 6), bool)))


@pytest.mark.slow
@pytest.mark.parametrize("mixer", MIXERS)
def test_bfloat16_stays_near_float32_and_promotes_nothing(mixer):
    model, variables = drawn(mixer, depth=1)
    images = np.random.default_rng(0).random((4, *IMAGE), np.float32)
    rounded = build(mixer, depth=1, dtype="bfloat16")
    exact, got = (jax.jit(each.apply)(variables, images) for each in (model, rounded))
    assert got.dtype == jnp.float32
    assert 1e-5 < np.linalg.norm(got - exact) / np.linalg.norm(exact) < 3e-2


def test_a_scan_stops_where_the_sides_change():
    variables = counts.abstract_variables(build("pooling", **{**STAGES, "depth": 12}), IMAGE)
    assert stack.equal_runs(variables) == ((0, 2), (5, 10))


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["attention", "pooling"])
@pytest.mark.parametrize("remat", [False, True])
def test_scanned_and_recomputed_blocks_are_the_unrolled_ones(mixer, remat):
    model, variables = drawn(mixer)
    images = np.random.default_rng(0).random((2, *IMAGE), np.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def gradients(model, variables):
        def loss(variables):
            outputs, updates = model.apply(variables, images, train=True, mutable=["batch_stats"])
            assert not updates  # it has no running statistics
            return (outputs**2).sum(), outputs

        return jax.grad(loss, has_aux=True)(variables)

    expected = gradients(model, variables)
    got = gradients(model.clone(scan=((0, 2),), remat=remat), variables)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_multiply_adds_of_attention_by_hand():
    costs = counts.multiply_adds(build("attention", depth=1), IMAGE)
    positions = 4 * 6
    projections = {
        f"{role}/block_00/attention/{name}/kernel": 8 * 8 * positions
        for role, name in (
            *(("spatial", "query"), ("spatial", "key")),
            *(("channel", "value"), ("channel", "output")),
        )
    }
    assert costs == projections | {
        "products/block_00/attention": 2 * positions**2 * 8,
        "spatial/stem/kernel": 2 * 2 * 3 * 8 * positions,
        "channel/block_00/mlp/up/kernel": 8 * 32 * positions,
        "channel/block_00/mlp/down/kernel": 8 * 32 * positions,
        "head/classifier/kernel": 8 * 3,
    }
    # Both inputs of the products need a gradient, whatever is frozen.
    frozen = 2 * 8 * 8 * positions
    steps_by_mode = {mode: counts.training_step(costs, mode) for mode in masks.MODES}
    stem = costs["spatial/stem/kernel"]
    assert steps_by_mode["full"] == 3 * sum(costs.values()) - stem
    assert steps_by_mode["full"] - steps_by_mode["chans"] == frozen + stem


def test_multiply_adds_of_tokens_by_hand():
    positions = 4 * 6
    costs = counts.multiply_adds(build("token_mlp", depth=1, token_ratio=2.0), IMAGE)
    assert costs["spatial/block_00/token_mlp/mlp/up/kernel"] == positions * 16 * 8
    assert costs["spatial/block_00/token_mlp/mlp/down/kernel"] == positions * 16 * 8
    assert shapes("token_mlp", token_ratio=0.01)["spatial/block_00/token_mlp/mlp/up/bias"] == (1,)
    costs = counts.multiply_adds(build("random", depth=1), IMAGE)
    assert costs["spatial/block_00/random/matrix/kernel"] == positions**2 * 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"mixer": "atention"},
            "mixer: got 'atention', allowed depthwise, attention, token_mlp, random, pooling, "
            "shift, identity; did you mean 'attention'?",
        ),
        ({"norm": "instance"}, "norm: got 'instance', allowed layer, group, batch"),
        (
            {"attention_roles": "values"},
            "attention_roles: got 'values', allowed queries_keys, all",
        ),
        ({"stages": (1, 2)}, "stages: got (1, 2), allowed one number, or four"),
        ({"stages": ()}, "stages: got (), allowed one number, or four"),
        (
            {"stages": (1, 2, 5, 8), "depth": 8},
            "depth: got 8, allowed with four stages are the multiples of 6: they have 1/6, 1/6, "
            "1/2 and 1/6 of the blocks",
        ),
        (
            {"mixer": "attention", "head_dim": 3},
            "head_dim: got 3, which doesn't divide the width 8; allowed is a divisor of the width "
            "of each stage",
        ),
        (
            {"mixer": "pooling", "filters": "dct"},
            "filters: got 'dct' of rank None and smoothing index 0 with the mixer 'pooling', which "
            "has none; allowed is 'random' without rank and smoothing, or the mixer 'depthwise'",
        ),
        (
            {"mixer": "attention", "smoothing_index": 1.0},
            "filters: got 'random' of rank None and smoothing index 1 with the mixer 'attention', "
            "which has none; allowed is 'random' without rank and smoothing, or the mixer "
            "'depthwise'",
        ),
        ({"remat": "no"}, "remat: got 'no', allowed True or False"),
        (
            {"scan": True},
            "scan: got True, allowed False, or runs of equal blocks from "
            "randmix.models.stack.equal_runs; only a config has True",
        ),
    ],
)
def test_invalid_arguments_are_refused(arguments, message):
    with pytest.raises(UserError) as error:
        build(**{"mixer": "depthwise", **arguments})
    assert str(error.value) == f"model metaformer: {message}"


def test_patches_that_dont_tile_the_image_are_refused_unless_they_overlap():
    with pytest.raises(UserError, match="patch_size: got 2, which doesn't divide"):
        build("pooling").check_image_shape((9, 8, 3))
    build("pooling", **STAGES).check_image_shape((9, 8, 3))
    with pytest.raises(UserError, match="patch_size: got 2, more than a side of the images' 9 x 1"):
        build("pooling", **STAGES).check_image_shape((9, 1, 3))


def test_the_first_stage_has_its_own_width_and_no_patches_of_its_own():
    found = shapes("pooling", stages=[2])  # from a file of JSON
    assert found["spatial/stem/kernel"][-1] == 2 * SIZES["width"]
    assert not [path for path in found if "downsample" in path]


def test_keeping_the_norm_of_no_filters_is_no_mistake():
    build("pooling", smoothing_keep_norm=False)


def config(mixer, mode, **more):
    config = configs.default("metaformer")
    config.model.update(mixer=mixer, width=8, depth=2, patch_size=2, head_dim=4, **more)
    config.mode, config.batch_size, config.steps = mode, 16, 2
    return config


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_mixer_without_weights_is_said_to_make_chans_full(mixer):
    parts = runs.assemble(config(mixer, "chans"))
    note = (
        "2 of 2 blocks have no spatial weights: in these, chans trains what full does, and floor "
        "what space does"
    )
    assert parts.record.notes == ([note] if mixer in WEIGHTLESS else [])
    assert (note in parts.record.description) == (mixer in WEIGHTLESS)
    frozen = {row.path for row in parts.record.summary.rows if row.label == "freeze"}
    assert (frozen == {"spatial/stem/kernel", "spatial/stem/bias"}) == (mixer in WEIGHTLESS)


def test_unshuffling_is_refused():
    wrong = config("pooling", "chans")
    wrong.task = "unshuffling"
    with pytest.raises(UserError) as error:
        runs.assemble(wrong)
    assert str(error.value) == (
        "config.model.name: got 'metaformer', allowed with the task unshuffling is convmixer"
    )


def stepped(mixer, mode, devices=1, **more):
    """The compiled step of a run on the digits."""
    parts = runs.assemble(config(mixer, mode, **more))
    mesh = sharding.make_mesh(jax.devices()[:devices])
    spread = sharding.split_batch(mesh)
    batch = {
        "image": jax.ShapeDtypeStruct((16, 8, 8, 1), jnp.float32, sharding=spread),
        "label": jax.ShapeDtypeStruct((16,), jnp.int32, sharding=spread),
    }
    jitted = jax.jit(small.step_of(parts), out_shardings=sharding.replicated(mesh))
    return parts, jitted.lower(parts.abstract_state(mesh), batch).compile()


@pytest.mark.slow
@pytest.mark.parametrize("mixer", MIXERS)
def test_a_step_moves_what_is_trained_and_nothing_else(mixer):
    parts, step = stepped(mixer, "chans")
    state = jax.jit(parts.init_state)(np.uint32(0))
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.random((16, 8, 8, 1), np.float32),
        "label": rng.integers(0, 10, 16, np.int32),
    }
    before = jax.device_get(state.params)
    for _ in range(2):  # the first learning rate is 0
        state, metrics = step(state, batch)
    assert np.isfinite(metrics["loss"])
    unchanged = masks.diff(before, jax.device_get(state.params)).unchanged
    assert sorted(unchanged) == sorted(masks.paths(before, "role('spatial')"))


@pytest.mark.slow
@pytest.mark.parametrize("mixer", MIXERS)
def test_activations_are_not_gathered_over_the_devices(mixer):
    _, step = stepped(mixer, "full", 8)
    text = step.as_text()
    assert "all-reduce" in text
    assert "all-gather" not in text


def test_only_isotropic_ones_train_together(tmp_path):
    folders = [tmp_path / "0", tmp_path / "1"]
    isotropic = [runs.assemble(config("attention", "full"))] * 2
    assert ensemble.cohorts(isotropic, folders, 2) == [[0, 1]]
    staged = config("attention", "full")
    staged.model.update(depth=6, stages=(1, 2, 5, 8))
    assert ensemble.cohorts([runs.assemble(staged)] * 2, folders, 2) == [[0], [1]]


@pytest.mark.slow
def test_a_run_without_running_statistics_is_loaded_and_evaluated(tmp_path):
    settings = config("token_mlp", "chans", scan=True)
    settings.ema, settings.accumulate, settings.tensorboard = 0.5, 2, False
    loop.train(settings, tmp_path, devices=jax.devices()[:1])
    run = loading.load(tmp_path)
    split = evaluation.open_split(run, "test")
    images, labels = split.arrays()["image"], split.arrays()["label"]
    logits = jax.jit(run.model.apply)(run.variables, images.astype(np.float32) / 255)
    metrics = evaluation.evaluate_run(run, split, batch_size=64)
    assert metrics["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).mean()))
