"""A run of seconds: a small ConvMixer on the digits, its compiled steps shared between tests."""

import functools
import os
import signal

import jax
import numpy as np

from randmix.config import default
from randmix.data import loader
from randmix.runtime import sharding
from randmix.training import loop as train
from randmix.training import runs, steps

# For programs that run a few times: LLVM's optimisations take most of a compilation.
QUICK_COMPILATION = {"xla_backend_optimization_level": 0}


PLAIN_SGD = {
    "optimizer__name": "sgd",
    "optimizer__momentum": 0.0,
    "optimizer__weight_decay": 0.0,
    "optimizer__learning_rate": 0.1,
    "schedule__name": "constant",
}
"""Overrides of a config after which a step subtracts a tenth of the gradient."""


def config(**overrides):
    """ConvMixer-16/2 on the digits, 6 steps; overrides write dots as double underscores."""
    config = default("convmixer")
    config.update_from_flattened_dict(
        {
            "model.width": 16,
            "model.depth": 2,
            "model.kernel_size": 3,
            "model.patch_size": 2,
            "batch_size": 32,
            "steps": 6,
            "log_every": 2,
            "eval_every": 3,
            "checkpoint_every": 2,
            "optimizer.clip_norm": 1.0,
            "optimizer.weight_decay": 0.01,
            "data.crop_padding": 1,
        }
        | {key.replace("__", "."): value for key, value in overrides.items()}
    )
    return config


@functools.cache
def parts(mode="full", **overrides):
    """The parts of that run."""
    return runs.assemble(config(mode=mode, **overrides))


@functools.cache
def data():
    """The digits' training set."""
    return parts().data.open()[0].arrays()


@functools.cache
def compiled_step(mode="full", devices=1, phase_step=0, **overrides):
    """The compiled train step of that run, and its arguments after the state; see ``first``."""
    mesh = sharding.make_mesh(jax.devices()[:devices])
    run = parts(mode, **overrides)
    step = train.jit_train_step(run.step, run.phase_at(phase_step), mesh)
    arguments = (
        sharding.replicate(data(), mesh),
        order(mesh),
        sharding.replicate(np.uint32(0), mesh),
    )
    state = first(mode, devices, **overrides)
    return step.lower(state, *arguments).compile(), arguments


def step_of(parts, **options):
    """The train step of a run, ``(state, batch) -> (state, metrics)``, not jitted."""
    return functools.partial(
        steps.train_step,
        model=parts.step.model,
        task=parts.step.task,
        optimizer=parts.step.phases[0].optimizer,
        labels=parts.step.labels,
        **options,
    )


def first(mode="full", devices=1, **overrides):
    """The state before the first step."""
    mesh = sharding.make_mesh(jax.devices()[:devices])
    return sharding.replicate(initial_state(mode, **overrides), mesh)


@functools.cache
def initial_state(mode="full", **overrides):
    """The same state as host arrays."""
    options = {"xla_backend_optimization_level": 1}  # as in ``train``, for the same bits
    init_state = jax.jit(parts(mode, **overrides).init_state, compiler_options=options)
    return jax.device_get(init_state(np.uint32(0)))


def order(mesh):
    """The order of the first epoch."""
    permutation = loader.epoch_order(0, 0, examples=len(data()["label"]))
    return sharding.replicate(permutation, mesh)


def after(steps, mode="full", devices=1, **overrides):
    """The state after ``steps`` steps, as host arrays."""
    step, arguments = compiled_step(mode, devices, **overrides)
    state = first(mode, devices, **overrides)
    for _ in range(steps):
        state, _ = step(state, *arguments)
    return jax.device_get(state)


def stop_after(monkeypatch, steps):
    """Sends this process a real SIGTERM in step ``steps``."""
    inner, count = train.jit_train_step, 0

    class Lowered:
        def __init__(self, compiled):
            self.compiled = compiled

        def lower(self, *arguments):
            self.compiled = self.compiled.lower(*arguments)
            return self

        def compile(self):
            self.compiled = self.compiled.compile()
            return self

        def __call__(self, *arguments):
            nonlocal count
            count += 1
            if count == steps:
                os.kill(os.getpid(), signal.SIGTERM)
            return self.compiled(*arguments)

    monkeypatch.setattr(train, "jit_train_step", lambda *a: Lowered(inner(*a)))
