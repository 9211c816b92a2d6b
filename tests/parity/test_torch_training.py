"""The PyTorch side of benchmarks/time_to_accuracy.py trains as randmix does."""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch_twins as twins
from closeness import assert_close

from randmix import config as configs
from randmix import masks
from randmix.training import runs, steps

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import torch_training

BATCH, STEPS = 16, 5
# On images like the digits. The gradients' norm is larger than 0.1, so they are clipped.
SETTINGS = {
    "data.name": "digits",
    "batch_size": BATCH,
    "steps": STEPS,
    "label_smoothing": 0.1,
    "model.mean": (0.3,),
    "model.std": (0.4,),
    "optimizer.clip_norm": 0.1,
    "optimizer.learning_rate": 0.003,
    "optimizer.weight_decay": 0.05,
}
MODELS = {
    "convmixer_mnist": {"model.width": 8, "model.depth": 2, "model.kernel_size": 3},
    "resnet_cifar": {
        "model.width": 4,
        "model.depth": 1,
        "model.multiplier": 3,
        "optimizer.name": "adamw",
        "schedule.name": "linear",
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["full", "chans"])
@pytest.mark.parametrize("recipe", MODELS)
def test_both_take_the_same_steps(recipe, mode):
    config = configs.recipe(recipe)
    config.update_from_flattened_dict({**SETTINGS, **MODELS[recipe], "mode": mode})
    settings = {**configs.flatten(config), "num_classes": 10, "compile": False}
    torch.manual_seed(0)
    training = torch_training.Training(settings, total_steps=STEPS)
    parts = runs.assemble(config)
    trained = sum(parameter.numel() for parameter in training.trained)
    assert trained == parts.record.summary.trainable

    model, task, optimizer = parts.step.model, parts.step.task, parts.step.phases[0].optimizer
    labels = parts.step.labels
    start = twins.parameters(training.places)
    state = steps.TrainState(
        step=jnp.zeros((), jnp.int32),
        params=start,
        batch_stats=twins.batch_stats(training.places),
        opt_state=optimizer.init(masks.partition(start, labels)[0]),
        totals=steps.empty_totals(),
        failed_step=steps.never_failed(),
    )
    ours = jax.jit(
        functools.partial(
            steps.train_step,
            model=model,
            task=task,
            optimizer=optimizer,
            labels=labels,
            label_smoothing=parts.step.label_smoothing,
        )
    )
    rng = np.random.default_rng(0)
    for step in range(STEPS):
        images = rng.integers(0, 256, (BATCH, 8, 8, 1), np.uint8)
        numbers = rng.integers(0, 10, BATCH)
        batch = {"image": images.astype(np.float32) / 255, "label": numbers.astype(np.int32)}
        state, metrics = ours(state, batch)
        loss = training.step(step, torch.from_numpy(images), torch.from_numpy(numbers))
        assert float(loss) == pytest.approx(float(metrics["loss"]), rel=1e-5)
    ends = state.params, twins.parameters(training.places)
    # The moves, as a parameter may be near because it hardly moved. Adam divides by the root of the
    # second moment, so that the rounding of a small gradient counts as much as that of a large one.
    assert_close(*(jax.tree.map(np.subtract, end, start) for end in ends), 1e-3)
    assert_close(state.batch_stats, twins.batch_stats(training.places), 1e-5)

    batch["mask"] = np.ones(BATCH, bool)
    sums = steps.eval_step(state.variables, batch, model=model, task=task)
    accuracy = training.accuracy(torch.from_numpy(images), torch.from_numpy(numbers), batch_size=5)
    assert accuracy == pytest.approx(float(sums["accuracy"]) / BATCH)


def test_each_image_is_mirrored_or_not():
    images = torch.randint(256, (1000, 2, 3, 1), dtype=torch.uint8)
    flipped = torch_training.flipped(images, torch.Generator().manual_seed(0))
    same, mirrored = ((flipped == other).all((1, 2, 3)) for other in (images, images.flip(2)))
    assert (same | mirrored).all()
    assert 400 < mirrored.sum() < 600
