"""Batches: every example once an epoch, pure in (seed, step), every test example exactly once."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from randmix.data import loader
from randmix.data.augment import Augmentation, crops

N, BATCH = 23, 5
ROWS = np.arange(N)
DATA = {
    "image": np.broadcast_to(ROWS[:, None, None, None], (N, 6, 7, 2)).astype(np.uint8),
    "label": ROWS.astype(np.int32),
}


@partial(jax.jit, static_argnames="augmentation")
def batch_at(step, seed, data, augmentation=Augmentation()):  # noqa: B008
    epoch = step // (N // BATCH)
    order = loader.epoch_order(seed, epoch, examples=N)
    return loader.train_batch(data, order, step, seed, batch_size=BATCH, augmentation=augmentation)


def labels_of_epoch(epoch, seed=0):
    per_epoch = N // BATCH
    steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
    return np.concatenate([batch_at(jnp.int32(s), seed, DATA)["label"] for s in steps])


def test_an_epoch_visits_no_example_twice_and_drops_the_remainder_only():
    labels = labels_of_epoch(0)
    assert len(labels) == N // BATCH * BATCH
    assert len(set(labels.tolist())) == len(labels)


def test_epochs_and_seeds_have_different_orders():
    first = labels_of_epoch(0).tolist()
    assert labels_of_epoch(0).tolist() == first
    assert labels_of_epoch(1).tolist() != first
    assert labels_of_epoch(0, seed=1).tolist() != first


def test_images_are_in_0_to_1_and_go_with_their_labels():
    batch = batch_at(jnp.int32(2), 3, DATA)
    assert batch["image"].dtype == jnp.float32
    expected = np.broadcast_to(
        np.asarray(batch["label"])[:, None, None, None] / 255, batch["image"].shape
    )
    np.testing.assert_allclose(batch["image"], expected, rtol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 5, 23, 64])
def test_evaluation_sees_every_example_exactly_once(batch_size):
    evaluate = jax.jit(partial(loader.eval_batch, batch_size=batch_size))
    batches = [evaluate(DATA, i) for i in range(-(-N // batch_size))]
    seen = np.concatenate([np.asarray(b["label"])[np.asarray(b["mask"])] for b in batches])
    assert sorted(seen.tolist()) == list(range(N))
    assert all(b["image"].shape == (batch_size, 6, 7, 2) for b in batches)


@pytest.mark.slow
def test_an_augmentation_is_one_of_the_crops_that_numpy_makes():
    rng = np.random.default_rng(0)
    images = rng.random((64, 5, 4, 3), np.float32)
    keys = jax.random.split(jax.random.key(0), 64)
    out = np.asarray(crops.crop_and_flip(keys, images, padding=2, flip=True))
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    seen = set()
    for image, result in zip(padded, out, strict=True):
        candidates = {
            (y, x, flip): image[y : y + 5, x : x + 4][:, :: -1 if flip else 1]
            for y in range(5) for x in range(5) for flip in (False, True)
        }  # fmt: skip
        matches = [key for key, crop in candidates.items() if np.array_equal(crop, result)]
        assert len(matches) == 1
        seen.add(matches[0])
    assert {flip for _, _, flip in seen} == {False, True}
    assert {y for y, _, _ in seen} == {x for _, x, _ in seen} == set(range(5))


def test_augmentation_follows_the_position_in_the_stream():
    plain = batch_at(jnp.int32(1), 0, TEXTURED)
    once = batch_at(jnp.int32(1), 0, TEXTURED, CROP_AND_FLIP)
    again = batch_at(jnp.int32(1), 0, TEXTURED, CROP_AND_FLIP)
    other_seed = batch_at(jnp.int32(1), 1, TEXTURED, CROP_AND_FLIP)
    np.testing.assert_array_equal(once["image"], again["image"])
    assert not np.array_equal(once["image"], plain["image"])
    assert not np.array_equal(once["image"], other_seed["image"])


CROP_AND_FLIP = Augmentation(crop_padding=2, flip=True)
TEXTURED = DATA | {"image": np.random.default_rng(1).integers(0, 256, (N, 6, 7, 2), np.uint8)}
