"""Evaluating a whole split: every example exactly once."""

from collections.abc import Callable
from typing import Any

import jax

from randmix import sharding, steps
from randmix.data import loader
from randmix.tasks import Task

EvalStep = Callable[[dict[str, Any], loader.Data, int], dict[str, jax.Array]]


def jit_eval_step(*, model: Any, task: Task, mesh: jax.sharding.Mesh, batch_size: int) -> EvalStep:
    """Compiles, on first use, ``(variables, data, index) -> sums`` for a set held on the devices."""

    def eval_step(variables: dict[str, Any], data: loader.Data, index: jax.Array) -> dict[str, jax.Array]:
        batch = loader.eval_batch(data, index, batch_size=batch_size)
        batch = jax.lax.with_sharding_constraint(batch, sharding.split_batch(mesh))
        return steps.eval_step(variables, batch, model=model, task=task)

    return jax.jit(eval_step, out_shardings=sharding.replicated(mesh))


def evaluate_split(
    eval_step: EvalStep, variables: dict[str, Any], data: loader.Data, *, batch_size: int
) -> dict[str, float]:
    """Means of the task's metrics over all examples of ``data``."""
    batches = -(-data["label"].shape[0] // batch_size)
    sums = eval_step(variables, data, 0)
    for index in range(1, batches):
        sums = jax.tree.map(lambda a, b: a + b, sums, eval_step(variables, data, index))
    sums = {name: float(value) for name, value in sums.items()}
    examples = sums.pop("examples")
    return {name: value / examples for name, value in sums.items()}
