"""Training on FGSM samples: the plain program without it, and the samples of the model at hand."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small

from randmix import attacks, config, masks
from randmix.data import loader
from randmix.data.augment import Augmentation
from randmix.errors import UserError
from randmix.runtime import sharding
from randmix.training import loop as train

DEFENDED = {"defense__epsilon": 16.0, "defense__share": 0.75}


@pytest.mark.slow
def test_without_a_defence_the_program_is_the_plain_one(monkeypatch):
    def program(**overrides):
        run = small.parts("full", **overrides)
        mesh = sharding.make_mesh(jax.devices()[:1])
        step = train.jit_train_step(run.step, run.step.phases[0], mesh)
        return step.lower(
            run.abstract_state(mesh), small.data(), small.order(mesh), np.uint32(0)
        ).as_text()

    with monkeypatch.context() as context:
        context.delattr(attacks, "perturb_batch")
        plain = program()
        assert program(defense__share=0.75) == plain
    assert program(**DEFENDED) != plain


@pytest.mark.slow
@pytest.mark.parametrize(("accumulate", "share", "count"), [(1, 0.75, 24), (4, 0.7, 22)])
def test_a_defended_step_is_a_step_on_fgsm_samples_of_the_model_in_eval_mode(
    accumulate, share, count
):
    keys = {**DEFENDED, "defense__share": share, "accumulate": accumulate}
    run, before = small.parts("chans", **keys), small.initial_state("chans", **keys)
    step, (data, order, seed) = small.compiled_step("chans", **keys)
    got, _ = step(small.first("chans", **keys), data, order, seed)

    batch = loader.train_batch(
        data, order, jnp.int32(0), 0, batch_size=32, augmentation=Augmentation(crop_padding=1)
    )

    @jax.jit
    @jax.grad
    def gradient(images):
        logits = run.step.model.apply(before.variables, images, train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).sum()

    moved = jnp.clip(batch["image"] + 16 / 255 * jnp.sign(gradient(batch["image"])), 0, 1)
    images = jnp.concatenate([moved[:count], batch["image"][count:]])
    expected, _ = jax.jit(small.step_of(run, accumulate=accumulate))(
        before, {**batch, "image": images}
    )
    # The statistics moved once, in the step itself, not in the pass that made the samples.
    chex.assert_trees_all_close(got.batch_stats, expected.batch_stats, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(got.totals, expected.totals, rtol=1e-5)
    for _ in range(2):  # the learning rate of the first step is 0
        got, _ = step(got, data, order, seed)
    difference = masks.diff(before.params, jax.device_get(got.params))
    assert {path.split("/")[0] for path in difference.unchanged} == {"spatial"}
    assert not any(path.startswith("spatial/") for path in difference.moved)


@pytest.mark.slow
def test_a_defended_chans_step_computes_no_depthwise_weight_gradient():
    text = small.compiled_step("chans", **DEFENDED)[0].as_text()
    assert not re.search(r'op_name="[^"]*/depthwise_weight_gradient/', text)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"defense__epsilon": -1.0}, "config.defense.epsilon: got -1.0, allowed 0 to 255"),
        ({"defense__epsilon": 256.0}, "config.defense.epsilon: got 256.0, allowed 0 to 255"),
        ({"defense__share": 0.0}, "config.defense.share: got 0.0, allowed more than 0, up to 1"),
        ({"defense__pgd_steps": 0}, "config.defense.pgd_steps: got 0, allowed 1 to 2147483647"),
        (
            {"defense__epsilon": 8.0, "task": "unshuffling"},
            "config.defense.epsilon: got 8.0, allowed 0 with the task unshuffling",
        ),
    ],
)
def test_an_invalid_defence_is_refused(overrides, message):
    with pytest.raises(UserError) as raised:
        config.check(small.config(**overrides))
    assert str(raised.value).startswith(message)
