"""Tasks: un-shuffling's permutation, loss and PSNR against float64 NumPy and scikit-image."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small
from skimage.metrics import peak_signal_noise_ratio

from randmix import masks, models
from randmix.data import loader
from randmix.data.augment import Augmentation
from randmix.errors import UserError
from randmix.training import steps, tasks

SHAPES = [(1, 1, 1), (8, 8, 1), (5, 7, 3)]
# Plain SGD, so that one and eight devices can be compared.
RUN = {
    "task": "unshuffling",
    "model__patch_size": 1,
    "optimizer__name": "sgd",
    "optimizer__learning_rate": 0.1,
    "schedule__name": "constant",
}


def random_images(shape, n=4, seed=0):
    return np.random.default_rng(seed).random((n, *shape), np.float32)


def build(shape, seed=0):
    return tasks.build("unshuffling", image_shape=shape, permutation_seed=seed)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_permutation_is_a_bijection(shape):
    permutation = build(shape).constants["permutation"]
    assert sorted(permutation.tolist()) == list(range(shape[0] * shape[1]))


def test_seeds_have_different_permutations():
    first, again, other = (tasks.pixel_permutation(seed, 8, 8) for seed in (0, 0, 2**32 - 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.9
    assert (first != np.arange(64)).mean() > 0.9


def test_shuffling_moves_whole_pixels_and_every_image_alike():
    h, w, c = 3, 4, 3
    permutation = tasks.pixel_permutation(0, h, w)
    images = random_images((h, w, c))
    shuffled = tasks.shuffle(images, permutation)
    for n in range(len(images)):
        for i, source in enumerate(permutation):
            expected = images[n, source // w, source % w]
            np.testing.assert_array_equal(shuffled[n, i // w, i % w], expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_inverse_permutation_has_an_infinite_psnr(shape):
    task = build(shape)
    batch = task.prepare({"image": jnp.asarray(random_images(shape))})
    undone = tasks.shuffle(batch["image"], np.argsort(task.constants["permutation"]))
    metrics = task.metrics(undone, batch, 0.0)
    np.testing.assert_array_equal(metrics["loss"], np.zeros(4))
    np.testing.assert_array_equal(metrics["psnr"], np.full(4, np.inf))


@pytest.mark.parametrize("shape", SHAPES)
def test_loss_gradient_and_psnr_by_their_definitions(shape):
    outputs, target = random_images(shape, seed=1) * 3 - 1, random_images(shape, seed=2)
    metrics = tasks.unshuffling_metrics(jnp.asarray(outputs), {"target": target})
    difference = outputs.astype(np.float64) - target
    errors = (difference**2).reshape(4, -1).sum(1) / np.prod(shape)
    np.testing.assert_allclose(metrics["loss"], errors, rtol=1e-5)
    np.testing.assert_allclose(metrics["psnr"], 10 * np.log10(1 / errors), rtol=1e-5, atol=1e-5)

    def loss(outputs):
        metrics = tasks.unshuffling_metrics(outputs, {"target": target})
        return metrics["loss"].mean(), metrics

    gradient, _ = jax.grad(loss, has_aux=True)(jnp.asarray(outputs))
    np.testing.assert_allclose(gradient, 2 * difference / difference.size, rtol=1e-5, atol=1e-7)
    gradient, _ = jax.grad(loss, has_aux=True)(jnp.asarray(target))
    # not NaN where the PSNR is infinite
    np.testing.assert_array_equal(gradient, np.zeros_like(target))


def test_psnr_is_scikit_images():
    outputs, target = random_images((8, 8, 3), seed=1), random_images((8, 8, 3), seed=2)
    psnr = tasks.unshuffling_metrics(jnp.asarray(outputs), {"target": target})["psnr"]
    expected = [
        peak_signal_noise_ratio(t, o, data_range=1) for o, t in zip(outputs, target, strict=True)
    ]
    np.testing.assert_allclose(psnr, expected, rtol=1e-5)


@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_task_returns_the_metrics_that_it_names(name):
    task = tasks.build(name, image_shape=(2, 2, 1), permutation_seed=0)
    images = jnp.asarray(random_images((2, 2, 1)))
    batch = task.prepare({"image": images, "label": jnp.zeros(4, jnp.int32)})
    outputs = batch["image"] if name == "unshuffling" else images.reshape(4, 4)
    metrics = task.metrics(outputs, batch, 0.0)
    assert tuple(metrics) == task.metric_names
    assert all(value.shape == (4,) and value.dtype == jnp.float32 for value in metrics.values())
    assert task.has_accuracy == (name == "classification")
    assert set(steps.empty_totals(task)) == {*task.metric_names, "steps"}


def test_an_unknown_task_names_the_nearest():
    message = (
        r"config.task: got 'unshufling', allowed classification, unshuffling, MODULE:FUNCTION; "
        r"did you mean 'unshuffling'\?"
    )
    with pytest.raises(UserError, match=message):
        tasks.build("unshufling", image_shape=(2, 2, 1), permutation_seed=0)
    with pytest.raises(UserError, match=message):
        tasks.model_arguments("unshufling", 10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "channels"),
    [
        pytest.param("full", 1, marks=pytest.mark.slow),
        ("chans", 3),
        pytest.param("space", 3, marks=pytest.mark.slow),
    ],
)
def test_a_step_is_the_gradient_that_jax_takes_of_the_whole_loss(mode, channels):
    """Against hand-written SGD over the full tree; the frozen role stays bit for bit."""
    shape, rate = (4, 5, channels), 0.1
    model = models.build("convmixer", width=6, depth=1, kernel_size=3, patch_size=1, head="image")
    task, optimizer = build(shape), optax.sgd(rate)
    params, _ = models.split(model.init(jax.random.key(0), jnp.zeros((1, *shape))))
    labels = masks.labels(params, masks.trainable(masks.MODES[mode]))
    state = steps.init_state(
        jax.random.key(0), shape, model=model, task=task, optimizer=optimizer, labels=labels
    )
    images = random_images(shape, n=8)
    positions = task.constants["permutation"]
    shuffled = images.reshape(8, 20, channels)[:, positions].reshape(8, *shape)

    @jax.jit
    def gradients(params):
        def loss(params):
            variables = {**params, "batch_stats": state.batch_stats}
            outputs, _ = model.apply(variables, shuffled, train=True, mutable=["batch_stats"])
            return ((outputs - images) ** 2).mean()

        return jax.grad(loss)(params)

    @jax.jit
    def step(state, images):
        batch = {"image": images, "label": jnp.zeros(8, jnp.int32)}
        return steps.train_step(
            state, batch, model=model, task=task, optimizer=optimizer, labels=labels
        )

    moved, metrics = step(state, images)
    frozen = {"full": None, "chans": "spatial", "space": "channel"}[mode]
    expected = jax.tree.map(lambda p, g: p - rate * g, params, gradients(params))
    for role in params:
        if role == frozen:
            chex.assert_trees_all_equal(moved.params[role], params[role])
        else:
            assert not masks.diff(params[role], moved.params[role]).unchanged
            chex.assert_trees_all_close(moved.params[role], expected[role], rtol=1e-4, atol=1e-6)
    assert set(metrics) == {"loss", "psnr"}


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 47])
def test_pixels_change_places_after_the_augmentation_and_in_every_epoch_alike(step):
    """The loss of the compiled step against a batch shuffled here in NumPy."""
    compiled, (data, order, seed) = small.compiled_step("full", 1, **RUN)
    state = small.first("full", 1, **RUN)
    start = jax.device_put(jnp.int32(step), state.step.sharding)
    _, metrics = compiled(state.replace(step=start), data, order, seed)
    parts, initial = small.parts("full", **RUN), small.initial_state("full", **RUN)
    images = loader.train_batch(
        data, order, jnp.int32(step), seed, batch_size=32, augmentation=Augmentation(crop_padding=1)
    )["image"]
    images = np.asarray(images)
    positions = tasks.pixel_permutation(0, 8, 8)
    shuffled = np.stack([image.ravel()[positions].reshape(8, 8, 1) for image in images])
    apply = jax.jit(partial(parts.step.model.apply, train=True, mutable=["batch_stats"]))
    outputs, _ = apply({**initial.params, "batch_stats": initial.batch_stats}, shuffled)
    assert float(metrics["loss"]) == pytest.approx(
        ((np.asarray(outputs) - images) ** 2).mean(), rel=1e-5
    )


@pytest.mark.slow
def test_one_and_eight_devices_agree_and_gather_nothing():
    one, eight = (small.after(2, "full", devices, **RUN) for devices in (1, 8))
    chex.assert_trees_all_close(one.params, eight.params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(one.totals, eight.totals, rtol=1e-5)
    assert "all-gather" not in small.compiled_step("full", 8, **RUN)[0].as_text()
