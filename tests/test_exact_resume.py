"""Exact resumption: N steps equal k steps plus N - k from a checkpoint.

All bits of the state agree, on 1 and 8 devices.
"""

import jax
import numpy as np
import pytest
import small

from randmix.config import default
from randmix.runtime import sharding
from randmix.training import loop as train
from randmix.training import runs
from randmix.workdir.checkpoints import Checkpoints

pytestmark = pytest.mark.slow

ALL_AUGMENTATION = {
    "data.crop_padding": 1,
    "data.randaugment": "rand-m9-n2-mstd0.5",
    "data.mixup": 0.2,
    "data.random_erasing": 0.5,
}
CASES = [
    ("convmixer", "full", 8, {"data.crop_padding": 1}),
    ("convmixer", "chans", 8, ALL_AUGMENTATION),
    ("resnet", "full", 1, {"data.mixup": 0.2}),
    ("resnet", "chans", 8, {"data.random_erasing": 0.5}),
    ("convmixer", "chans", 8, {"accumulate": 2, "ema": 0.9, "defense.epsilon": 4.0}),
]


@pytest.mark.parametrize(("model", "mode", "devices", "keys"), CASES)
def test_resumed_steps_equal_uninterrupted_ones(model, mode, devices, keys, tmp_path):
    config = default(model)
    config.update_from_flattened_dict(
        {
            "model.width": 8,
            "model.depth": 1,
            "model.kernel_size": 3,
            "mode": mode,
            "batch_size": 32,
            "steps": 5,
        }
        | keys
    )
    parts = runs.assemble(config)
    mesh = sharding.make_mesh(jax.devices()[:devices])
    arguments = (
        sharding.replicate(small.data(), mesh),
        small.order(mesh),
        sharding.replicate(np.uint32(config.seed), mesh),
    )
    first = jax.device_get(
        jax.jit(parts.init_state, compiler_options=small.QUICK_COMPILATION)(np.uint32(0))
    )
    step = (
        train.jit_train_step(parts.step, parts.phase_at(0), mesh)
        .lower(sharding.replicate(first, mesh), *arguments)
        .compile(compiler_options=small.QUICK_COMPILATION)
    )

    def after(state, steps):
        for _ in range(steps):
            state, _ = step(state, *arguments)
        return state

    whole = after(sharding.replicate(first, mesh), 5)
    with Checkpoints(tmp_path, about=parts.record.identity) as checkpoints:
        checkpoints.save(2, after(sharding.replicate(first, mesh), 2))
    with Checkpoints(tmp_path, about=parts.record.identity) as checkpoints:
        restored = checkpoints.restore_latest(parts.abstract_state(mesh))
    assert int(restored.step) == 2
    resumed = after(restored, 3)
    assert _differing(first.params, jax.device_get(whole.params))  # something is learned
    assert not _differing(jax.device_get(whole), jax.device_get(resumed))


def _differing(one, other):
    """The paths of the leaves whose bits differ."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(one)
    others = structure.flatten_up_to(other)
    return [
        jax.tree_util.keystr(path)
        for (path, a), b in zip(leaves, others, strict=True)
        if (np.asarray(a).dtype, np.asarray(a).tobytes())
        != (np.asarray(b).dtype, np.asarray(b).tobytes())
    ]
