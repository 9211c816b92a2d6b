"""Augmentation as a whole: any number of devices, its keys, and what is refused."""

import dataclasses
import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from randmix.data import keys as streams
from randmix.data.augment import (
    Augmentation,
)
from randmix.errors import UserError
from randmix.runtime import sharding
from randmix.training import loop as train

N, H, W = 16, 12, 10
EVERYTHING = Augmentation(
    crop_scale=0.3,
    flip=True,
    randaugment="rand-m9-mstd0.5-inc1",
    color_jitter=0.3,
    mixup=0.5,
    cutmix=0.5,
    random_erasing=0.5,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.3, 0.25),
)


def batch(n=N):
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (n, H, W, 3), np.uint8),
        "label": np.arange(n, dtype=np.int32),
    }


@cache
def compiled(augmentation, devices):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    split = sharding.split_batch(mesh)
    example = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split), batch()
    )
    run = jax.jit(
        lambda batch, seed, step: augmentation(batch, seed=seed, step=step), out_shardings=split
    )
    step = run.lower(example, jnp.uint32(0), jnp.int32(0)).compile(small.QUICK_COMPILATION)
    return lambda seed, step_: jax.device_get(
        step(jax.device_put(batch(), split), jnp.uint32(seed), jnp.int32(step_))
    ), step.as_text()


@pytest.mark.slow
def test_one_and_eight_devices_draw_the_same_and_move_partners_only():
    one, eight = (compiled(EVERYTHING, devices)[0](0, 3) for devices in (1, 8))
    for name in one:
        np.testing.assert_allclose(one[name], eight[name], rtol=1e-5, atol=1e-5, err_msg=name)
    _, text = compiled(EVERYTHING, 8)
    moved = re.findall(
        r"= (\w+\[[\d,]*\])\S* (?:collective-permute|all-gather|all-to-all|all-reduce)\(", text
    )
    # One device's share of the images and of their labels.
    assert set(moved) == {f"f32[{N // 8},{H},{W},3]", f"s32[{N // 8}]"}, moved
    assert "all-gather" not in text


@pytest.mark.slow
def test_what_is_drawn_follows_from_seed_and_step_alone():
    run, _ = compiled(dataclasses.replace(EVERYTHING, randaugment=""), 1)
    first = run(0, 3)
    for name, value in run(0, 3).items():
        np.testing.assert_array_equal(value, first[name])
    assert not np.array_equal(run(1, 3)["image"], first["image"])
    assert not np.array_equal(run(0, 4)["image"], first["image"])
    assert first["image"].dtype == np.float32
    assert np.isfinite(first["image"]).all()


def test_an_example_is_keyed_by_its_position_in_the_stream():
    # A batch twice as large at half the step: its second half has the small batch's positions.
    large = streams.example_keys(7, jnp.int32(2), 32)
    small = streams.example_keys(7, jnp.int32(5), 16)
    data = [jax.random.key_data(k) for k in (large, small)]
    np.testing.assert_array_equal(data[0][16:], data[1])
    assert len(np.unique(data[0], axis=0)) == 32
    # Different augmentations use different child keys: `split` and `fold_in` of small numbers
    # coincide.
    key = jax.random.key(0)
    taken = [*jax.random.split(key), *(jax.random.fold_in(key, i) for i in (2, 3, 4, 5))]
    assert len({tuple(jax.random.key_data(k).tolist()) for k in taken}) == 6


def test_without_settings_images_are_only_scaled():
    out = jax.jit(partial(Augmentation(), seed=0))(batch(), step=jnp.int32(0))
    assert set(out) == {"image", "label"}
    np.testing.assert_allclose(out["image"], batch()["image"] / 255, rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rand-m11", "got m11, allowed is up to 10; raise the limit with mmax"),
        ("rand-m9-m9", "got 'm9' in 'rand-m9-m9'"),
        ("rand-m9-w0", "got 'w0'"),
        ("rand-m9-n2.5", "n in 'rand-m9-n2.5': got 2.5, allowed an integer, 1 to 8"),
        ("rand-m", "got 'm' in 'rand-m'"),
        ("torchvision-m31", "m in 'torchvision-m31': got 31, allowed 0 to 30"),
        ("autoaugment", "got 'autoaugment', allowed \"\" for none, timm's"),
    ],
)
def test_an_invalid_policy_is_refused(text, message):
    with pytest.raises(UserError) as error:
        Augmentation(randaugment=text)
    assert str(error.value).startswith("config.data.randaugment: ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_padding": -1}, "config.data.crop_padding: got -1, allowed 0 to 1024"),
        ({"crop_scale": 0.0}, "config.data.crop_scale: got 0.0, allowed more than 0, up to 1"),
        ({"crop_aspect": 0.5}, "config.data.crop_aspect: got 0.5, allowed 1 to 100"),
        ({"crop_scale": 0.5, "crop_padding": 2}, "choose one of the two crops"),
        ({"color_jitter": -0.1}, "config.data.color_jitter: got -0.1"),
        ({"mixup": -1.0}, "config.data.mixup: got -1.0, allowed 0 to 1000"),
        ({"mix_probability": 1.5}, "config.data.mix_probability: got 1.5, allowed 0 to 1"),
        (
            {"mix_switch_probability": -1},
            "config.data.mix_switch_probability: got -1, allowed 0 to 1",
        ),
        ({"random_erasing": 2.0}, "config.data.random_erasing: got 2.0, allowed 0 to 1"),
    ],
)
def test_an_invalid_augmentation_is_refused(settings, message):
    with pytest.raises(UserError) as error:
        Augmentation(**settings)
    assert message in str(error.value)


@pytest.mark.slow
def test_the_train_step_takes_mixed_labels_on_eight_devices():
    parts, mesh = small.parts(data__mixup=0.5), sharding.make_mesh(jax.devices())
    step = train.jit_train_step(parts.step, parts.step.phases[0], mesh)
    data, seed = (sharding.replicate(x, mesh) for x in (small.data(), np.uint32(0)))
    arguments = (small.first("full", 8), data, small.order(mesh), seed)
    step = step.lower(*arguments).compile(small.QUICK_COMPILATION)
    assert "all-gather" not in step.as_text()
    _, metrics = step(*arguments)

    rows = np.asarray(arguments[2])[:32]
    shown = jax.jit(partial(parts.step.augmentation, seed=0))(
        {name: array[rows] for name, array in small.data().items()}, step=jnp.int32(0)
    )
    apply = jax.jit(partial(parts.step.model.apply, train=True, mutable=["batch_stats"]))
    logits, _ = apply(small.initial_state().variables, shown["image"])
    own, partner = (np.eye(10)[np.asarray(shown[name])] for name in ("label", "mixed_label"))
    weight = np.asarray(shown["label_weight"])[:, None]
    targets = weight * own + (1 - weight) * partner
    losses = -(targets * np.asarray(jax.nn.log_softmax(logits))).sum(-1)
    assert float(metrics["loss"]) == pytest.approx(losses.mean(), rel=1e-4)
