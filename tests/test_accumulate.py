"""Micro-batches and averages of a step, against NumPy in float64 and by hand."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small
from flax import linen as nn

from randmix import attacks
from randmix.errors import UserError
from randmix.runtime import sharding
from randmix.training import aot, steps
from randmix.training import loop as train
from randmix.training.tasks import CLASSIFICATION

pytestmark = pytest.mark.slow

SHAPE, CLASSES, N = (3, 4, 2), 5, 60
EPSILON, RATE, NORM, SMOOTHING = 0.1, 0.7, 0.5, 0.2
LABELS = {"head": {"bias": "freeze", "kernel": "train"}}


class Softmax(nn.Module):
    """Softmax regression: it normalises nothing, and counts its passes in training."""

    @nn.compact
    def __call__(self, images, train=False):
        passes = self.variable("batch_stats", "passes", jnp.zeros, ())
        if train:
            passes.value += 1
        flat = images.reshape(len(images), -1)
        kernel = self.variable("head", "kernel", jnp.zeros, (flat.shape[1], CLASSES))
        bias = self.variable("head", "bias", jnp.zeros, (CLASSES,))
        return flat @ kernel.value + bias.value[None]


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def reference(kernel, bias, batches, learned, decay):
    """Three steps in float64: the kernel, its average, and the mean losses."""
    average, losses = kernel.copy(), []
    for step, batch in enumerate(batches):
        x = np.float64(batch["image"]).reshape(N, -1)
        target = np.eye(CLASSES)[batch["label"]]
        uphill = (softmax(x @ kernel + bias) - target) @ kernel.T
        moved = np.clip(x + EPSILON * np.sign(uphill), 0, 1)
        x = np.where(batch["attacked"][:, None], moved, x)
        target = (1 - SMOOTHING) * target + SMOOTHING / CLASSES
        p = softmax(x @ kernel + bias)
        losses.append(-(target * np.log(p)).sum(-1).mean())
        gradient = learned * (x.T @ (p - target)) / N
        gradient *= min(1, NORM / np.linalg.norm(gradient))
        kernel = kernel - RATE * gradient
        ramped = min(decay, (1 + step) / (10 + step))
        average = ramped * average + (1 - ramped) * kernel
    return kernel, average, losses


@pytest.mark.parametrize(("accumulate", "decay"), [(1, 0.15), (4, 0.9999), (15, 0.0)])
def test_steps_with_attack_mask_and_clipping_are_those_of_numpy(accumulate, decay):
    rng = np.random.default_rng(accumulate)
    kernel, bias = rng.normal(size=(24, CLASSES)), rng.normal(size=CLASSES)
    learned = rng.random(kernel.shape) < 0.7
    kernel[~learned] *= rng.random(kernel.shape)[~learned] < 0.5  # -0.0 among them
    batches = [
        {
            "image": rng.random((N, *SHAPE), np.float32),
            "label": rng.integers(0, CLASSES, N, np.int32),
            "attacked": np.arange(N) < 37,  # more in some micro-batches than in others
        }
        for _ in range(3)
    ]
    params = {"head": jax.tree.map(np.float32, {"kernel": kernel, "bias": bias})}
    model = Softmax()
    optimizer = optax.chain(optax.clip_by_global_norm(NORM), optax.sgd(RATE))
    stats = {"passes": jnp.zeros(())}
    state = steps.AveragedState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=stats,
        opt_state=optimizer.init({"head": {"bias": None, "kernel": params["head"]["kernel"]}}),
        totals=steps.empty_totals(),
        failed_step=steps.never_failed(),
        ema={"head": {**params["head"], "bias": None}, "batch_stats": stats},
    )
    step = jax.jit(
        partial(
            steps.train_step,
            model=model,
            task=CLASSIFICATION,
            optimizer=optimizer,
            labels=LABELS,
            channel_masks={"head": {"bias": None, "kernel": learned}},
            label_smoothing=SMOOTHING,
            perturb=partial(
                attacks.perturb_batch, model=model, perturb=partial(attacks.fgsm, epsilon=EPSILON)
            ),
            accumulate=accumulate,
            ema=decay,
        )
    )
    got = []
    for batch in batches:
        state, metrics = step(state, batch)
        got.append(metrics["loss"])
    expected, average, losses = reference(kernel, bias, batches, learned, decay)
    np.testing.assert_allclose(got, losses, rtol=2e-6)
    np.testing.assert_allclose(state.params["head"]["kernel"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state.ema["head"]["kernel"], average, rtol=1e-5, atol=1e-6)
    assert state.batch_stats["passes"] == 3 * accumulate
    # What isn't trained is bit-equal in the average too.
    averaged = state.averaged_variables["head"]
    np.testing.assert_array_equal(averaged["bias"], params["head"]["bias"])
    kept = ~learned
    bits = params["head"]["kernel"][kept].tobytes()
    assert np.asarray(averaged["kernel"])[kept].tobytes() == bits


def test_micro_batches_partition_the_rows_of_every_device():
    parts, devices = 3, 4
    rows = np.asarray(steps.divide({"label": jnp.arange(24)}, parts)["label"])
    np.testing.assert_array_equal(rows, [np.arange(i, 24, parts) for i in range(parts)])
    # Split over the devices, each micro-batch lies where the batch lay.
    own = np.arange(24).reshape(devices, -1)
    for device, there in enumerate(np.split(rows, devices, axis=1)):
        assert sorted(there.ravel()) == sorted(own[device])


def test_micro_batches_are_normalised_and_move_the_running_statistics_one_by_one():
    sgd = {**small.PLAIN_SGD, "optimizer__clip_norm": 0.0, "model__depth": 1}
    parts = small.parts("chans", **sgd)
    state = jax.tree.map(jnp.asarray, small.initial_state("chans", **sgd))
    rng = np.random.default_rng(2)
    batch = {
        "image": rng.random((24, 8, 8, 1), np.float32),
        "label": rng.integers(0, 10, 24, np.int32),
    }
    model = parts.step.model

    @jax.jit
    def of_part(batch_stats, images, labels):
        def loss(params):
            logits, updates = model.apply(
                {**params, "batch_stats": batch_stats}, images, train=True, mutable=["batch_stats"]
            )
            chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
            return -chosen.mean(), updates["batch_stats"]

        return jax.value_and_grad(loss, has_aux=True)(state.params)

    batch_stats, losses, gradients = state.batch_stats, [], []
    for i in range(3):
        part = {name: values[i::3] for name, values in batch.items()}
        (loss, batch_stats), gradient = of_part(batch_stats, part["image"], part["label"])
        losses.append(loss)
        gradients.append(gradient)
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 3, *gradients)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, mean)
    expected["spatial"] = state.params["spatial"]
    after, metrics = jax.jit(small.step_of(parts, accumulate=3))(state, batch)
    chex.assert_trees_all_close(after.params, expected, rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_close(after.batch_stats, batch_stats, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-6)


def test_accumulation_saves_memory_and_moves_no_images_between_devices():
    def compiled(devices, **overrides):
        return small.compiled_step("full", devices, **overrides)[0]

    one, four = (compiled(1, batch_size=128, accumulate=parts) for parts in (1, 4))
    one, four = (step.memory_analysis().temp_size_in_bytes for step in (one, four))
    assert four < one / 2
    keys = {"accumulate": 4, "defense__epsilon": 8.0, "defense__share": 0.3}
    exchanges = aot.collectives(compiled(8, **keys, ema=0.9).as_text())
    assert exchanges.keys() == {"all-reduce"}


@pytest.mark.parametrize(
    ("accumulate", "devices", "problem"),
    [
        (3, 1, "which 1 device can't share evenly in 3 parts"),
        (16, 8, "which 8 devices can't share evenly in 16 parts"),
    ],
)
def test_a_batch_that_cannot_be_divided_is_refused_in_one_line(
    accumulate, devices, problem, tmp_path
):
    config = small.config(accumulate=accumulate)
    with pytest.raises(UserError) as error:
        train.train(config, tmp_path / "run", devices=jax.devices()[:devices])
    assert str(error.value) == (
        f"config.batch_size: got 32, {problem} (config.accumulate); "
        f"allowed is a multiple of {accumulate * devices}"
    )
    assert not (tmp_path / "run").exists()


def test_evaluations_take_micro_batches():
    parts = small.parts(accumulate=4, defense__epsilon=8.0)
    lowered = train.jit_eval_steps(parts.step, sharding.make_mesh(jax.devices()[:1]))
    variables = jax.eval_shape(parts.init_state, 0).variables
    for step in lowered.values():
        text = step.lower(variables, small.data(), 0).as_text()
        assert "tensor<8x8x8x1xf32>" in text
        assert "tensor<32x8x8x1xf32>" not in text
